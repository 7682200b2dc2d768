"""Rollouts by transformers' continuous batching: a paged key-value cache on the trained model itself.

The base is in memory once. Each engine step extends all running answers by a token; the prompt of a group is
prefilled once, and a finished answer makes room for the next. The cache takes a share of the GPU's free
memory and is freed afterwards. Autocast does not apply in the engine's thread: adapters in float32 compute in
float32.

On a CPU it serves the tests only. transformers 5.17: `generation/continuous_batching/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from policy.rollouts.protocol import Sampling, as_rollout
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.distributed.sharding import compute_device
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, base_of
from rlhf.runs.gpu_memory import GpuMemoryError, memory_error

BLOCK_TOKENS = 32
"""Tokens of a cache block."""
MEMORY_SHARE = 0.8
"""Share of the GPU's free memory for cache and activations: transformers' default where logits are processed
(`continuous_batching/initialization.py`, `resolve_max_memory_percent`)."""
POLL_SECONDS = 1.0


class PagedEngine:
    """Samples with the trainer's model, without a copy of its weights.

    Args:
        sampling: sampling parameters.
        chat: decodes answers.
        max_batch_tokens: tokens of an engine step, prompts included.
    """

    def __init__(self, sampling: Sampling, chat: Chat, *, max_batch_tokens: int) -> None:
        self.sampling, self.chat, self.max_batch_tokens = sampling, chat, max_batch_tokens
        self.model: PeftModel | PreTrainedModel | None = None

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Keep a reference to the model."""
        self.model = model

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """One request per sample, in an order fixed by the seed, with log-probabilities.

        Raises:
            EngineError: a request failed or returned no answer, or `sync` was not called before.
            GpuMemoryError: there is no memory for a cache or a step.
        """
        if self.model is None:
            raise EngineError("generate was called before sync.")
        repeated = [list(ids) for ids in prompts for _ in range(samples)]
        model, base = self.model, base_of(self.model)
        was_training = model.training
        device = compute_device(model)
        model.eval()
        try:
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                _stock_attention(base),
                torch.no_grad(),
            ):
                outputs = self._run(base, repeated, seed)
        finally:
            model.train(was_training)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the cache's blocks would fragment the memory of the update
        rollouts = [
            as_rollout(ids, out.generated_tokens, out.logprobs, self.sampling.stop_ids, self.chat)
            for ids, out in zip(repeated, outputs, strict=True)
        ]
        return [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]

    def figures(self) -> dict[str, float]:
        """No figures."""
        return {}

    def _run(self, base: Any, prompts: list[list[int]], seed: int) -> list[Any]:
        """The outputs of all requests, in order.

        They are queued before the start, so that timing does not change the samples.
        """
        longest = max(map(len, prompts))
        manager = base.init_continuous_batching(
            generation_config=self._generation_config(),
            continuous_batching_config=self._memory(base, prompts, seed),
            workload_hints=WorkloadHints(
                max_prompt_length=longest,
                max_generated_length=self.sampling.max_new_tokens,
                num_requests=len(prompts),
            ),
        )
        outputs: dict[str, Any] = {}
        try:
            if torch.cuda.is_available():
                _warm_up(manager)
            requests = manager.add_requests(prompts, max_new_tokens=self.sampling.max_new_tokens)
            manager.start()
            while len(outputs) < len(requests):
                output = manager.get_result(timeout=POLL_SECONDS)
                if output is not None and output.is_finished():
                    outputs[output.request_id] = output
                elif output is None and not manager.is_running():
                    break
        finally:
            manager.stop(block=True)
            manager.destroy()
        failed = [output.error for output in outputs.values() if output.error is not None]
        failed += [
            "it has no answer"
            for request in requests
            if request not in outputs or not outputs[request].generated_tokens
        ]
        if failed and (known := memory_error(RuntimeError(failed[0]), "rollouts")):
            raise known
        if failed:
            raise EngineError(
                f"transformers' continuous batching failed for {len(failed)} of {len(requests)} answers: "
                f"{failed[0]}",
                fix="rollouts.continuous_batching=false, or fewer rollouts.max_new_tokens",
            )
        return [outputs[request] for request in requests]

    def _generation_config(self) -> GenerationConfig:
        greedy = self.sampling.temperature == 0
        return GenerationConfig(
            do_sample=not greedy,
            temperature=None if greedy else self.sampling.temperature,
            top_k=None if greedy else 0,
            top_p=None if greedy else 1.0,
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=list(self.sampling.stop_ids),
            pad_token_id=self.chat.pad_id,
        )

    def _memory(self, base: Any, prompts: list[list[int]], seed: int) -> ContinuousBatchingConfig:
        """Cache size: on a GPU as many blocks as fit, on a CPU as many as all answers need."""
        blocks = None
        if not torch.cuda.is_available():
            blocks = sum(-(-(len(ids) + self.sampling.max_new_tokens) // BLOCK_TOKENS) + 1 for ids in prompts)
        return ContinuousBatchingConfig(
            block_size=BLOCK_TOKENS,
            num_blocks=blocks,
            max_batch_tokens=self.max_batch_tokens,
            max_memory_percent=MEMORY_SHARE,
            return_logprobs=True,
            seed=seed,
            # CUDA graphs of 4-bit kernels are not tested.
            use_cuda_graph=False if getattr(base, "is_loaded_in_4bit", False) else None,
        )


def _warm_up(manager: Any) -> None:
    """Allocate the cache and capture CUDA graphs.

    Raises:
        GpuMemoryError: the free memory does not hold a cache of one block and one step.
    """
    try:
        manager.warmup()
    except (MemoryError, ValueError) as error:  # raised by transformers where the sizes do not fit
        raise GpuMemoryError("rollouts", f"No room for a paged cache: {error}") from error


@contextmanager
def _stock_attention(base: Any) -> Iterator[None]:
    """Within the block the model uses transformers' SDPA attention, which has a paged form."""
    previous = base.config._attn_implementation  # noqa: SLF001  # transformers' name for it everywhere
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(previous)
