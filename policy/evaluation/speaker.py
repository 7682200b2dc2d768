"""A policy or a base that answers prompts, by vLLM or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from policy.rollouts.protocol import Sampling
from policy.rollouts.vllm.arguments import check_adapter
from policy.shared_base import SharedBase
from rlhf.adapters.storage import read_policy
from rlhf.core.errors import ModelError, did_you_mean
from rlhf.core.formats import effective_dtype
from rlhf.core.places import missing_local
from rlhf.core.records import Conversation, Rollout
from rlhf.models.bases import read_config
from rlhf.models.chat import Chat
from rlhf.models.chat.template import DATE
from rlhf.models.checkpoint_folder import model_folder
from rlhf.models.embedded import absolute_base, resolve_base
from rlhf.models.loading import LoraConfig
from rlhf.models.names import TRAINED_WHOLE

ENGINES = ("vllm", "transformers")
LOADED_AS: Mapping[str, Any] = {
    "revision": None,
    "dtype": "bfloat16",
    "quantization": "none",
    "template_date": DATE,
    "chat_template_kwargs": {},
}
"""Arguments of `SharedBase.load` that are missing in a policy's card, as in those of older versions."""


class Sample(Protocol):
    """Samples answers to conversations that end with the user."""

    def __call__(
        self, conversations: Sequence[Conversation], *, samples: int, temperature: float, seed: int
    ) -> list[list[Rollout]]:
        """`samples` answers to each conversation; the same arguments give the same answers."""
        ...


@dataclass(frozen=True)
class Speaker:
    """A policy or a base, read but not loaded.

    Attributes:
        name: in files and tables.
        folder: of the policy's adapter; None for a plain base.
        model: base, revision, dtype, quantization, template_date, chat_template_kwargs.
        adapter: PEFT's settings of the adapter; None for a plain base.
        chat: tokenizer and chat template.
        context: context length in tokens, prompt and answer together.
        card: the training card of a policy that was trained without an adapter; else empty.
    """

    name: str
    folder: Path | None
    model: Mapping[str, Any]
    adapter: LoraConfig | None
    chat: Chat
    context: int
    card: Mapping[str, Any]

    @classmethod
    def read(cls, policy: str) -> Speaker:
        """A policy's `final/` folder; or `embedded`, a folder with a whole model, or a Hugging Face name.

        Raises:
            ModelError: none of these, or without a chat template.
        """
        folder = model_folder(policy)
        card: Mapping[str, Any] = {}
        if folder.is_dir() and not (folder / "config.json").exists():
            adapter = read_policy(folder)
            model: dict[str, Any] = {"base": absolute_base(adapter.card["base"])}
            model |= {key: adapter.card.get(key, value) for key, value in LOADED_AS.items()}
            chat = Chat.beside(folder, model)
            adapter.check_template(chat)
            settings, place = adapter.config, folder
        else:
            _require_there(policy)
            card = _whole_card(folder)
            model = {"base": absolute_base(str(folder)), **LOADED_AS}
            pinned = ("template_date", "chat_template_kwargs")
            model |= {key: card[key] for key in ("dtype", *pinned) if key in card}
            chat, settings, place = Chat.load(folder, **{key: model[key] for key in pinned}), None, None
        context = _context(model["base"], model["revision"])
        return cls(name_of(policy), place, model, settings, chat, context, card)

    def check_engine(self, name: str) -> None:
        """Check that an engine can serve the policy, before anything is loaded.

        Raises:
            ModelError: there is no such engine, or vLLM does not support the adapter.
        """
        if name not in ENGINES:
            raise ModelError(
                f"--engine {name} is not known.{did_you_mean(name, ENGINES)}", allowed=", ".join(ENGINES)
            )
        if name == "vllm" and self.adapter is not None and self.folder is not None:
            check_adapter(self.adapter, self.folder)

    def transformers(self, max_new_tokens: int) -> Sample:
        """Load it, and sample by transformers' `generate`."""
        base = SharedBase.load(**self.model, chat=self.chat)
        if self.folder is not None:
            base.add_policy(self.folder)
        return on_base(base, None if self.folder is None else "policy", max_new_tokens)

    def vllm(
        self, max_new_tokens: int, *, longest: int, sequences: int, memory_gib: float, gpu_memory_share: float
    ) -> Sample:
        """Load base and adapter into vLLM.

        Args:
            longest: tokens of the longest prompt with its answer.
            sequences: answers sampled at once.
            memory_gib: of the key-value cache, on a CPU.
            gpu_memory_share: share of the GPU's memory.
        """
        from policy.rollouts.vllm.arguments import EngineSettings
        from policy.rollouts.vllm.engine import VLLMEngine  # vllm may not be installed

        sampling = Sampling(max_new_tokens, 1.0, self.chat.stop_ids)
        settings = EngineSettings(
            resolve_base(self.model["base"]),
            revision=self.model["revision"],
            rank=8 if self.adapter is None else self.adapter.r,
            max_model_len=min(longest, self.context),
            max_sequences=sequences,
            dtype=effective_dtype(self.model["dtype"]),
            quantization=self.model["quantization"],
            memory_gib=memory_gib,
            gpu_memory_share=gpu_memory_share,
            seed=0,
        )
        engine = VLLMEngine(settings, sampling, self.chat)
        if self.folder is not None:
            engine.load(self.folder)

        def sample(
            conversations: Sequence[Conversation], *, samples: int, temperature: float, seed: int
        ) -> list[list[Rollout]]:
            engine.sampling = replace(sampling, temperature=temperature)
            prompts = [self.chat.prompt_ids(conversation) for conversation in conversations]
            return engine.generate(prompts, samples=samples, seed=seed)

        return sample


def _whole_card(folder: Path) -> Mapping[str, Any]:
    """The training card in the config.json of a policy that was trained without an adapter; else empty."""
    file = folder / "config.json"
    card: Mapping[str, Any] = (
        json.loads(file.read_text(encoding="utf-8")).get(TRAINED_WHOLE, {}) if file.is_file() else {}
    )
    return card


def on_base(base: SharedBase, policy: str | None, max_new_tokens: int) -> Sample:
    """Samples from one of the policies on a base, or from the base itself."""

    def sample(
        conversations: Sequence[Conversation], *, samples: int, temperature: float, seed: int
    ) -> list[list[Rollout]]:
        return base.rollouts(
            conversations,
            policy=policy,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )

    return sample


def name_of(policy: str) -> str:
    """The name of a policy: its run's for `RUN/final`, else the last part of its path or name."""
    path = Path(policy)
    return (path.resolve().parent if path.name == "final" else path).name


def _require_there(policy: str) -> None:
    explicit = policy.startswith((".", "/", "~")) or policy.count("/") > 1
    if explicit and not Path(policy).exists():
        raise ModelError(
            f"There is no folder {policy}.",
            allowed="the final/ folder of an `align-policy` run, `embedded`, a folder with a model, or a "
            "Hugging Face name",
            fix=f"correct the path: {missing_local(policy)}",
        )


def _context(base: str, revision: str | None) -> int:
    config = read_config(base, revision)
    return int(config.get_text_config().max_position_embeddings)
