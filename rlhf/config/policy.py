"""What `rlhf align-policy` may be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    ModelConfig,
    NonNegative,
    Number,
    OptimizerConfig,
    Positive,
    RunConfig,
    Strict,
)


class KLConfig(Strict):
    """How the policy is kept close to the reference."""

    estimator: Literal["k1", "abs", "k2", "k3"] = "abs"
    """Per token, with d = log policy - log reference: k1 = d, abs = |d|, k2 = d^2/2, k3 = exp(-d) - 1 + d. `rloo`: k1."""
    reduction: Literal["sum", "mean"] = "mean"
    """Over the tokens of an answer: TRL sums, NeMo-Aligner takes the mean (of `abs`). The coefficients differ by the length. `rloo`: sum."""
    placement: Literal["reward", "loss"] = "reward"
    """Taken from the reward, as a constant; or a term of the loss, with its gradient: there only k2 is KL(policy, reference), k3 is the other direction and k1 has no pull at all."""
    coefficient: NonNegative = 0.01
    """How much a unit of KL costs in units of reward; where `target` is given, at the start. `rloo`: 0.05."""
    target: Positive | None = None
    """Steer the coefficient so that the KL, in the estimator and reduction above, comes to this; null keeps it fixed."""
    horizon: Positive = 10_000.0
    """With `target`: answers over which an error of 100 % would double the coefficient; an update counts an error of at most 20 %."""
    budget: Positive | None = None
    """The run ends when an answer's mean KL (k1, summed, in nats) is beyond this, and keeps its best weights before; null is no end."""


class AlgorithmConfig(Strict):
    """How rewards become an update. What is left out is as the algorithm's authors have it."""

    name: Literal["reinforce", "rloo"] = "reinforce"
    """`reinforce`: NeMo-Aligner's, leave-one-out baseline, no ratio; `rloo`: TRL's, number for number."""
    compat: bool = False
    """`reinforce` with NeMo-Aligner's slips: the loss is a mean of answers' means, answers without a loss included."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "token_mean"
    """Log-probabilities in the loss: summed over an answer (TRL's RLOO), averaged over it (NeMo-Aligner), or one mean over the update's tokens. `rloo`: sequence_sum; `compat`: sequence_mean."""
    clip: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """How far the ratio of new to old probability may go from 1. `rloo`: 0.2; `reinforce` has no ratio."""
    epochs: Count = 1
    """Passes over the answers of one update, each with a step of the optimizer; more than one needs a ratio."""
    kl: KLConfig = KLConfig()
    """The KL to the reference."""
    unfinished: Literal["drop", "keep", "penalty"] = "drop"
    """Answers cut at max_new_tokens: no gradient and no part in the baseline (NeMo-Aligner), as they are, or `unfinished_reward`. `rloo`: keep."""
    unfinished_reward: float | None = None
    """The reward of an unfinished answer where `unfinished` is `penalty`."""

    @model_validator(mode="before")
    @classmethod
    def _as_its_authors_have_it(cls, told: Any) -> Any:
        if not isinstance(told, Mapping):
            return told
        implied = IMPLIED.get("compat" if told.get("compat") is True else str(told.get("name")), {})
        kl = told.get("kl", {})
        merged = {**implied, **told}
        if isinstance(kl, Mapping) and "kl" in implied:
            merged["kl"] = {**implied["kl"], **kl}
        return merged

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.unfinished == "penalty") != (self.unfinished_reward is not None):
            raise ValueError("unfinished_reward goes with unfinished: penalty, and only with it")
        if self.compat and (self.name, self.unfinished) != ("reinforce", "drop"):
            raise ValueError("compat goes with name: reinforce and unfinished: drop, and only with them")
        if (self.name == "rloo") != (self.clip is not None):
            raise ValueError("clip goes with name: rloo, which needs it, and only with it")
        if self.name == "rloo" and self.reduction != "sequence_sum":
            raise ValueError("rloo has one ratio an answer: reduction must be sequence_sum")
        if self.name == "reinforce" and self.epochs > 1:
            raise ValueError(
                "reinforce has no ratio to correct a second pass: epochs must be 1, or name: rloo"
            )
        if self.kl.target is not None and not self.kl.coefficient:
            raise ValueError("kl.target steers kl.coefficient by factors: it cannot start at 0")
        return self


IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "compat": {"reduction": "sequence_mean"},
    "rloo": {
        "reduction": "sequence_sum",
        "clip": 0.2,
        "unfinished": "keep",
        "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.05},
    },
}
"""What an algorithm implies where the config is silent; the fields' own defaults are those of `reinforce`."""


class ImportanceConfig(Strict):
    """Truncated importance sampling between the engine that samples and the trainer that learns."""

    level: Literal["token", "sequence"] = "token"
    """One weight a token, or one an answer, which `rloo` needs."""
    cap: Annotated[Number, Field(ge=1)] = 2.0
    """Weights, exp(log-probability by the trainer - by the engine), are cut off here."""


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


class RolloutConfig(Strict):
    """How answers are sampled."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """vLLM in this process, or transformers' own generate where vLLM is not installed."""
    prompts_per_step: Count = 16
    """Prompts in one update, over all processes."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt; the leave-one-out baseline needs two, the paper uses four."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities are those of the same distribution."""
    memory_gib: Positive = 0.5
    """CPU only: size of vLLM's key-value cache."""
    gpu_memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.35
    """GPU only: share of the card's memory that vLLM may take, its copy of the base included."""
    logprob_bound: Positive = 0.5
    """The run stops when engine and trainer differ by more than this, in the mean over a batch's tokens."""
    importance_sampling: Annotated[ImportanceConfig | None, BeforeValidator(_off)] = None
    """Correct what mismatch of engine and trainer remains; `off` (null) only logs what the weights would be."""


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
    """The frozen base: the reference, and the ground of policy and reward."""
    adapter: AdapterConfig = AdapterConfig()
    """The adapter that becomes the policy."""
    reward: str
    """A reward model: the `final/` folder of `rlhf train-reward`, on the same base."""
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
    def _no_dropout(self) -> Self:
        if self.adapter.dropout:
            raise ValueError(
                "adapter.dropout must be 0 for a policy: with it every log-probability, and so the KL, is noise"
            )
        return self
