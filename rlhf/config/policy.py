"""What `rlhf align-policy` may be told."""

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
    """Held-out prompts, answered before and after."""

    prompts: Count = 64
    """How many held-out prompts."""
    samples: Count = 2
    """Answers to each."""


class PolicyDataConfig(Strict):
    """Prompts to learn on; held-out ones are taken off first, by a hash of the prompt."""

    prompts: list[DataSource] = Field(min_length=1)
    """Sources of prompts."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped, and counted."""


class PolicyOptimizerConfig(OptimizerConfig):
    """AdamW for the policy: gentler than for a reward model."""

    learning_rate: Positive = 3e-5
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay on matrices."""


class PolicyConfig(RunConfig):
    """An alignment run."""

    model: ModelConfig = ModelConfig()
    """The frozen base: the reference where there is no `start`, and the ground of policy, reward and critic."""
    adapter: AdapterConfig | None = AdapterConfig()
    """The adapter that becomes the policy. null: none, and all weights of the base are trained, beside a frozen copy of it that is the reference; see docs/full-fine-tuning.md."""
    start: Place | None = None
    """Begin from an aligned policy (its `final/` folder) with the same base, template and adapter settings: a second round, in which a frozen copy of it is the reference. null: a fresh adapter, and the base is the reference."""
    reward: Sources = Field(min_length=1)
    """A reward model: the `final/` folder of `rlhf train-reward`, on the same base. Or one or a list of other rewards, which are added up."""
    reward_shaping: ShapingConfig = ShapingConfig()
    """What the algorithm is given in place of the bare reward."""
    held_out_reward: HeldOut = None
    """A reward, given like one of `reward`, that only watches: a policy that pleases `reward` alone is shown by it. Null is none."""
    data: PolicyDataConfig
    """What it practises on."""
    rollouts: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """How rewards become an update."""
    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """AdamW."""
    steps: Count = 100
    """Updates."""
    save_every: Count = 20
    """Updates between two checkpoints."""
    tokens_per_batch: Count = 2048
    """Token budget of one packed forward pass; a prompt and its answers always stay together."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Before and after."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        importance = self.rollouts.importance_sampling
        if self.algorithm.name == "rloo" and importance is not None and importance.level == "token":
            raise ValueError(
                "rloo has one ratio an answer: rollouts.importance_sampling.level must be sequence"
            )
        return self

    @model_validator(mode="after")
    def _rewards_apart(self) -> Self:
        check_names(self.reward)
        held_out = self.held_out_reward
        if held_out is not None and held_out.place in [source.place for source in self.reward]:
            raise ValueError(f"held_out_reward is one the policy learns from: {held_out.place}; name another")
        return self

    @property
    def reward_folders(self) -> list[tuple[Literal["reward", "held_out_reward"], str]]:
        """The reward models on the policy's base: the key that names each, and its folder."""
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
        wanting = {
            "model.quantization is nf4: weights in 4 bits cannot be trained": self.model.quantization
            != "none",
            "rollouts.engine is servers: stock servers take adapters, not weights": self.rollouts.engine
            == "servers",
            "algorithm.name is ppo: its critic is an adapter on the policy's base": self.algorithm.critic
            is not None,
            "start is a policy that is an adapter; to begin from a whole model, name it in model.base": self.start
            is not None,
        }
        if found := [reason for reason, there in wanting.items() if there]:
            raise ValueError("adapter is null, so all weights are trained; but " + "; ".join(found))
        return self

    @model_validator(mode="after")
    def _rank_fits_engine(self) -> Self:
        if self.adapter is None or self.rollouts.engine == "transformers":
            return self
        if self.adapter.rank > MAX_LORA_RANK:
            raise ValueError(
                f"adapter.rank is {self.adapter.rank}, and vLLM takes adapters of rank {MAX_LORA_RANK} at most: "
                f"adapter.rank={MAX_LORA_RANK}, or rollouts.engine=transformers"
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.adapter is not None and self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0 for a policy: with it every log-probability, and so the KL, is noise"
            )
        return self
