"""The schema of `rlhf align-policy`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.rewards import HeldOut, ShapingConfig, Sources, check_names
from rlhf.config.rollouts import MAX_LORA_RANK, RolloutConfig
from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Place,
    Positive,
    RunConfig,
    Strict,
)


class EvaluationConfig(Strict):
    """Evaluation on held-out prompts, before and after training."""

    prompts: Count = 64
    """Number of held-out prompts."""
    samples: Count = 2
    """Answers per prompt."""


class PolicyDataConfig(Strict):
    """Training prompts; the held-out ones are split off first, by a hash of the prompt."""

    prompts: list[DataSource] = Field(min_length=1)
    """Sources of prompts."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped and counted."""


class PolicyOptimizerConfig(OptimizerConfig):
    """AdamW for the policy, with lower defaults than for a reward model."""

    learning_rate: Positive = 3e-5
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay on matrices."""


class PolicyConfig(RunConfig):
    """An alignment run."""

    model: ModelConfig = ModelConfig()
    """The frozen base of policy, reward and critic; it is the reference unless `start` is set."""
    adapter: AdapterConfig | None = AdapterConfig()
    """The policy's LoRA adapter. null: full fine-tuning of the base, with a frozen copy of it as the
    reference; see docs/full-fine-tuning.md."""
    start: Place | None = None
    """Start from an aligned policy (its `final/` folder) with the same base, template and adapter settings; a
    frozen copy of it is the reference. null: a new adapter, and the base is the reference."""
    reward: Sources = Field(min_length=1)
    """A reward model: the `final/` folder of `rlhf train-reward`, on the same base. Or another source of
    rewards, or a list of sources, whose rewards are summed."""
    reward_shaping: ShapingConfig = ShapingConfig()
    """Transformations of the reward before the algorithm uses it."""
    held_out_reward: HeldOut = None
    """A source of rewards that is only logged, never trained on: it exposes a policy that exploits `reward`.
    null: none."""
    data: PolicyDataConfig
    """The training prompts."""
    rollouts: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """The RL algorithm."""
    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """AdamW."""
    steps: Count = 100
    """Number of updates."""
    tokens_per_batch: Count = 2048
    """Token budget of one packed forward pass; a prompt and its answers are never split."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation before and after training."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        importance = self.rollouts.importance_sampling
        if self.algorithm.name == "rloo" and importance is not None and importance.level == "token":
            raise ValueError(
                "algorithm.name: rloo needs rollouts.importance_sampling.level: sequence, as its ratio is "
                "per answer"
            )
        return self

    @model_validator(mode="after")
    def _horizon_fits(self) -> Self:
        answers = self.rollouts.answers
        if self.algorithm.kl.target is not None and self.algorithm.kl.horizon < answers:
            raise ValueError(
                f"algorithm.kl.horizon is {self.algorithm.kl.horizon:g}, below the {answers} answers of an "
                f"update, so that the coefficient would jump: raise it to {answers} or more"
            )
        return self

    @model_validator(mode="after")
    def _rewards_apart(self) -> Self:
        check_names(self.reward)
        held_out = self.held_out_reward
        if held_out is not None and held_out.place in [source.place for source in self.reward]:
            raise ValueError(
                f"held_out_reward {held_out.place} is one of `reward`, which the policy is trained on; "
                "name another model, or remove held_out_reward"
            )
        return self

    @property
    def reward_folders(self) -> list[tuple[Literal["reward", "held_out_reward"], str]]:
        """The config key and folder of each reward model on the policy's base."""
        folders: list[tuple[Literal["reward", "held_out_reward"], str]] = [
            ("reward", source.adapter) for source in self.reward if source.adapter is not None
        ]
        if self.held_out_reward is not None and self.held_out_reward.adapter is not None:
            folders.append(("held_out_reward", self.held_out_reward.adapter))
        return folders

    @model_validator(mode="after")
    def _without_adapter(self) -> Self:
        if self.adapter is not None:
            return self
        conflicts = {
            "model.quantization is nf4, and 4-bit weights cannot be trained": self.model.quantization
            != "none",
            "rollouts.engine is servers, which take adapters only": self.rollouts.engine == "servers",
            "algorithm.name is ppo, whose critic is an adapter on a frozen base": self.algorithm.critic
            is not None,
            "start names an adapter; put a whole model into model.base instead": self.start is not None,
        }
        if reasons := [reason for reason, holds in conflicts.items() if holds]:
            raise ValueError("adapter: null trains all weights of the base, but " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _rank_fits_engine(self) -> Self:
        if self.adapter is None or self.rollouts.engine == "transformers":
            return self
        if self.adapter.rank > MAX_LORA_RANK:
            raise ValueError(
                f"adapter.rank is {self.adapter.rank}, and vLLM supports ranks up to {MAX_LORA_RANK}: "
                f"set adapter.rank={MAX_LORA_RANK}, or rollouts.engine=transformers"
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.adapter is not None and self.adapter.dropout:
            raise ValueError(
                f"adapter.dropout is {self.adapter.dropout:g}, which adds noise to the log-probabilities and "
                "the KL of a policy: set adapter.dropout=0"
            )
        return self
