"""One base model with a reward model and any number of policies as adapters: the Python API.

base = SharedBase.load("embedded")
base.add_reward("runs/demo/reward/final")
base.add_policy("runs/demo/policy/final")
base.answer(["Tell me about tea."], policy="policy")
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from policy.rollouts.protocol import Sampling
from policy.rollouts.transformers_engine import TransformersEngine
from reward.scorer import Score, Scorer
from rlhf.adapters import attached
from rlhf.adapters import storage as adapters
from rlhf.config.schema import ModelConfig
from rlhf.core.errors import DataError, ModelError, did_you_mean
from rlhf.core.records import Conversation, Message, Rollout
from rlhf.models.chat import Chat
from rlhf.models.chat.template import DATE
from rlhf.models.loading import PeftModel
from rlhf.models.roles import role
from rlhf.models.trunk import load_trunk


class SharedBase:
    """A frozen base model that samples from itself or one of its policies, and scores with its reward model.

    Attributes:
        chat: tokenizer and chat template.
    """

    def __init__(self, model: PreTrainedModel, chat: Chat) -> None:
        self.chat = chat
        self._model: PreTrainedModel | PeftModel = model.eval()
        self._scorer: Scorer | None = None
        self._roles: dict[str, str] = {}  # name of a policy -> adapter name in PEFT

    @classmethod
    def load(
        cls,
        base: str = "embedded",
        *,
        revision: str | None = None,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        quantization: Literal["none", "nf4"] = "none",
        template_date: str = DATE,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        chat: Chat | None = None,
    ) -> SharedBase:
        """Load the base; the arguments are the keys of a config's `model`.

        Args:
            chat: in place of the base's, such as that of a policy.

        Raises:
            ModelError: no model, or no tokenizer with a chat template, can be loaded from `base`.
        """
        if chat is None:
            chat = Chat.load(
                base,
                revision=revision,
                template_date=template_date,
                chat_template=chat_template,
                chat_template_kwargs=chat_template_kwargs,
            )
        config = ModelConfig(base=base, revision=revision, dtype=dtype, quantization=quantization)
        return cls(load_trunk(config), chat)

    @property
    def context(self) -> int:
        """Context length of the base in tokens, prompt and answer together."""
        return int(self._model.config.get_text_config().max_position_embeddings)

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the attached policies, in the order in which they were added."""
        return tuple(self._roles)

    def add_reward(self, folder: str | Path) -> None:
        """Attach a reward model, in place of an earlier one: `final/` of a `train-reward` run.

        Raises:
            ModelError: no reward model there, its head is missing, or it is for another base or chat
                template.
        """
        self._scorer = Scorer.share(folder, self._model, self.chat)
        self._model = self._scorer.model.eval()
        self._compare_format(folder, self._scorer.trained_dtype)

    def add_policy(self, folder: str | Path, name: str = "policy") -> None:
        """Attach a policy, in place of one of the same name: `final/` of an `align-policy` run.

        Raises:
            ModelError: no policy there, or it is for another base or chat template.
        """
        adapter = adapters.read_policy(Path(folder))
        adapter.check_template(self.chat)
        role_name = self._role_name(name)
        self._model = adapter.attach(self._model, role_name).eval()
        self._roles[name] = role_name
        self._compare_format(folder, adapter.card["dtype"])

    def blend(self, name: str, weights: Mapping[str, float]) -> None:
        """Add a policy whose weight update is exactly the weighted sum of those of other policies.

        The base has the update 0: `{"policy": 0.5}` is half way from the base to the policy, 1.5 extrapolates
        by half.

        Raises:
            ModelError: `weights` is empty or names a policy that is not there.
        """
        if not weights or name in weights or not all(map(math.isfinite, weights.values())):
            raise ModelError(
                f"{dict(weights)} are not weights of a blend {name!r}.",
                allowed="a finite weight for each of one or more other policies, such as {'policy': 0.5}",
            )
        for policy in weights:
            self._check_policy(policy)
        by_role = {self._roles[policy]: weight for policy, weight in weights.items()}
        role_name = self._role_name(name)
        attached.blend(self._model, role_name, by_role)
        self._model.eval()
        self._roles[name] = role_name

    def answer(
        self,
        prompts: Sequence[str | Conversation],
        *,
        policy: str | None = None,
        samples: int = 1,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """Sample answers to each prompt, all in one batch; the same arguments give the same answers.

        Args:
            prompts: user messages, or conversations that end with the user.
            policy: name of a policy; None for the base.
            samples: answers to each prompt.
            max_new_tokens: maximal length of an answer.
            temperature: 1 samples from the model's distribution, 0 decodes greedily.
            seed: of the samples.

        Raises:
            ModelError: no policy of that name is there.
            DataError: a prompt and an answer to it may be longer than the base's context.
        """
        rollouts = self.rollouts(
            prompts,
            policy=policy,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        return [[rollout.text for rollout in group] for group in rollouts]

    def rollouts(
        self,
        prompts: Sequence[str | Conversation],
        *,
        policy: str | None,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        streamer: Any = None,
    ) -> list[list[Rollout]]:
        """Like `answer`, with the tokens of each answer and whether it finished.

        Args:
            streamer: a transformers TextStreamer, for a single answer.

        Raises:
            ModelError: no policy of that name is there.
            DataError: a prompt and an answer to it may be longer than the base's context.
        """
        if policy is not None:
            self._check_policy(policy)
        prompt_ids = [self.chat.prompt_ids(_conversation(prompt)) for prompt in prompts]
        if not prompt_ids:
            return []
        longest = max(map(len, prompt_ids))
        if longest + max_new_tokens > self.context:
            raise DataError(
                f"The longest prompt has {longest} tokens; with an answer it can reach "
                f"{longest + max_new_tokens}.",
                allowed=f"{self.context} tokens, the context of the base",
                fix="shorten the prompt, or lower max_new_tokens",
            )
        engine = TransformersEngine(Sampling(max_new_tokens, temperature, self.chat.stop_ids), self.chat)
        engine.streamer = streamer
        engine.sync(self._model)
        with self._active(policy):
            return engine.generate(prompt_ids, samples=samples, seed=seed)

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """Score conversations that end with the assistant's message.

        Raises:
            ModelError: no reward model is attached.
            DataError: a conversation does not end with the assistant, or is longer than the base's context.
        """
        if self._scorer is None:
            raise ModelError(
                "No reward model is attached to this base.", fix='base.add_reward("runs/demo/reward/final")'
            )
        return self._scorer.score(conversations)

    def _active(self, policy: str | None) -> contextlib.AbstractContextManager[None]:
        return role(self._model, None if policy is None else self._roles[policy])

    def _check_policy(self, name: str) -> None:
        if name not in self.policies:
            raise ModelError(
                f"No policy {name!r} is attached to this base.{did_you_mean(name, self.policies)}",
                allowed=", ".join(map(repr, self.policies)) or "none yet",
                fix=f'base.add_policy("runs/demo/policy/final", name={name!r})',
            )

    def _compare_format(self, folder: str | Path, trained: str) -> None:
        """Warn of rounding errors that the model's training did not have."""
        if trained == "float32" and self._model.dtype == torch.bfloat16:
            warnings.warn(
                f"{folder} was trained in float32, and the base is in bfloat16: results differ by rounding. "
                "SharedBase.load(..., dtype='float32') gives those of the training.",
                stacklevel=3,
            )

    def _role_name(self, policy: str) -> str:
        return self._roles.get(policy, f"policy_{len(self._roles)}")


def _conversation(prompt: str | Conversation) -> Conversation:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt
