"""Rollouts by transformers' continuous batching: a paged key-value cache on the very model that is trained.

The base is in memory once. Each step of the engine extends all answers that are under way by a token, prompts of one group are read
once, and an answer that ends makes room for the next one. The cache takes a share of the GPU's free memory and is freed afterwards.
Autocast does not reach the engine's thread: adapters in float32 compute in float32.

On a CPU it is for tests alone; not yet run on a GPU. transformers 5.17: `generation/continuous_batching/`.
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
from rlhf.runs.gpu_memory import GpuMemoryError

BLOCK_TOKENS = 32
"""Tokens of a block of the cache."""
MEMORY_SHARE = 0.8
"""Share of the GPU's free memory that cache and working memory take together; transformers' own where logits are processed."""
POLL_SECONDS = 1.0


class PagedEngine:
    """Samples with the model it was last synced with; the model is the trainer's, so there is nothing to copy.

    Args:
        sampling: how answers are drawn.
        chat: decodes them.
        max_batch_tokens: tokens of one step, prompts included.
    """

    def __init__(self, sampling: Sampling, chat: Chat, *, max_batch_tokens: int) -> None:
        self.sampling, self.chat, self.max_batch_tokens = sampling, chat, max_batch_tokens
        self.model: PeftModel | PreTrainedModel | None = None

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Remember the model; its weights are already there."""
        self.model = model

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """One request a sample, in an order that the seed fixes, with the log-probabilities of what was drawn.

        Raises:
            EngineError: a request failed or came back without an answer, or there was no sync before.
            GpuMemoryError: there is no room for a cache, or for a step.
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
                torch.cuda.empty_cache()  # the cache's memory, which the update needs in other pieces
        rollouts = [
            as_rollout(ids, out.generated_tokens, out.logprobs, self.sampling.stop_ids, self.chat)
            for ids, out in zip(repeated, outputs, strict=True)
        ]
        return [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]

    def figures(self) -> dict[str, float]:
        """None."""
        return {}

    def _run(self, base: Any, prompts: list[list[int]], seed: int) -> list[Any]:
        """The outputs of all requests, in order. They are queued before the engine starts, or their timing would decide the draws."""
        longest = max(map(len, prompts))
        manager = base.init_continuous_batching(
            generation_config=self._drawing(),
            continuous_batching_config=self._memory(base, prompts, seed),
            workload_hints=WorkloadHints(
                max_prompt_length=longest,
                max_generated_length=self.sampling.max_new_tokens,
                num_requests=len(prompts),
            ),
        )
        found: dict[str, Any] = {}
        try:
            if torch.cuda.is_available():
                _warm_up(manager)
            wanted = manager.add_requests(prompts, max_new_tokens=self.sampling.max_new_tokens)
            manager.start()
            while len(found) < len(wanted):
                output = manager.get_result(timeout=POLL_SECONDS)
                if output is not None and output.is_finished():
                    found[output.request_id] = output
                elif output is None and not manager.is_running():
                    break
        finally:
            manager.stop(block=True)
            manager.destroy()
        failed = [found[one].error for one in wanted if one in found and found[one].error is not None]
        failed += [
            "it has no answer" for one in wanted if one not in found or not found[one].generated_tokens
        ]
        if failed and "out of memory" in failed[0].lower():
            raise GpuMemoryError("rollouts", failed[0])
        if failed:
            raise EngineError(
                f"transformers' continuous batching failed for {len(failed)} of {len(wanted)} answers: {failed[0]}",
                fix="rollouts.continuous_batching=false, or fewer rollouts.max_new_tokens",
            )
        return [found[one] for one in wanted]

    def _drawing(self) -> GenerationConfig:
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
        """On a GPU as many blocks as fit; on a CPU, where free memory is everybody's, as many as all answers need."""
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
            # Kernels for 4-bit weights were never captured in a graph by us.
            use_cuda_graph=False if getattr(base, "is_loaded_in_4bit", False) else None,
        )


def _warm_up(manager: Any) -> None:
    """Make the cache, and capture graphs.

    Raises:
        GpuMemoryError: what is free on the GPU holds no cache of one block and one step.
    """
    try:
        manager.warmup()
    except (MemoryError, ValueError) as error:  # the vendor's, whose sizes do not work out
        raise GpuMemoryError("rollouts", f"No room for a paged cache: {error}") from error


@contextmanager
def _stock_attention(base: Any) -> Iterator[None]:
    """Within the block the model attends by transformers' own kernels, of which there are paged forms."""
    ours = base.config._attn_implementation  # noqa: SLF001  # transformers' name for it everywhere
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(ours)
