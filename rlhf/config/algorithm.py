"""How rewards become an update, and how far from the reference: the `algorithm` section of an alignment run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import Count, CountOrZero, NonNegative, Number, Positive, Share, Strict


class KLConfig(Strict):
    """How the policy is kept close to the reference."""

    estimator: Literal["k1", "abs", "k2", "k3"] = "abs"
    """Per token, with d = log policy - log reference: k1 = d, abs = |d|, k2 = d^2/2, k3 = exp(-d) - 1 + d. `rloo`, `ppo`: k1."""
    reduction: Literal["sum", "mean"] = "mean"
    """Over the tokens of an answer: TRL sums, NeMo-Aligner takes the mean (of `abs`). The coefficients differ by the length. `rloo`, `ppo`: sum."""
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


class CriticConfig(Strict):
    """PPO's critic: one more adapter and head on the base, and what is made of its values."""

    start: Literal["reward", "zero"] = "reward"
    """`reward`: as the reward model, where that is one adapter on the policy's base (the paper, NeMo-Aligner); `zero`: it expects nothing yet."""
    learning_rate: Positive = 3e-4
    """Peak learning rate; ten times the policy's default, as NeMo-Aligner's 9e-6 is of 9e-7. The rest is as `optimizer` says."""
    warmup_steps: CountOrZero = 0
    """Updates at the start in which the critic alone learns, so that the policy does not follow one that knows nothing yet (NeMo-Aligner's `critic_warmup_steps`)."""
    clip: Positive | None = 0.2
    """How far a value may move from what it was when sampled, before the loss no longer rewards it, in units of reward; null is no end."""
    discount: Share = 1.0
    """Gamma: what a reward one token later is worth."""
    gae_lambda: Share = 0.95
    """Generalised advantages: 1 looks at all that follows a token, 0 at the next value alone."""
    whiten: bool = True
    """Shift and scale the update's advantages to mean 0 and variance 1, over all tokens that count."""


class AlgorithmConfig(Strict):
    """How rewards become an update. What is left out is as the algorithm's authors have it."""

    name: Literal["reinforce", "rloo", "ppo"] = "reinforce"
    """`reinforce`: NeMo-Aligner's, leave-one-out baseline, no ratio; `rloo`: TRL's, number for number; `ppo`: with a critic."""
    compat: bool = False
    """`reinforce` with NeMo-Aligner's slips: the loss is a mean of answers' means, answers without a loss included."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "token_mean"
    """Log-probabilities in the loss: summed over an answer (TRL's RLOO), averaged over it (NeMo-Aligner), or one mean over the update's tokens. `rloo`: sequence_sum; `compat`: sequence_mean."""
    clip: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """How far the ratio of new to old probability may go from 1, of an answer (`rloo`) or a token (`ppo`): 0.2; `reinforce` has no ratio."""
    clip_high: Annotated[Number, Field(gt=0)] | None = None
    """How far the ratio may go above 1, where that is another bound than `clip`, as in DAPO (0.28); null is `clip`."""
    epochs: Count = 1
    """Passes over the answers of one update, each with a step of the optimizer; more than one needs a ratio. `ppo`: 4."""
    critic: CriticConfig | None = None
    """The critic of `ppo`, which alone has one."""
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
        if self.compat and self.reduction != "sequence_mean":
            raise ValueError(
                "compat is NeMo-Aligner's mean of answers' means: reduction must be sequence_mean, or left out"
            )
        if (self.name != "reinforce") != (self.clip is not None):
            raise ValueError("clip goes with name: rloo or ppo, which need it, and only with them")
        if self.clip_high is not None and self.clip is None:
            raise ValueError("clip_high goes with name: rloo or ppo, and only with them")
        if (self.name == "ppo") != (self.critic is not None):
            raise ValueError("critic goes with name: ppo, which needs it, and only with it")
        if self.name == "rloo" and self.reduction != "sequence_sum":
            raise ValueError("rloo has one ratio an answer: reduction must be sequence_sum")
        if self.name == "reinforce" and self.epochs > 1:
            raise ValueError(
                "reinforce has no ratio to correct a second pass: epochs must be 1, or name: rloo or ppo"
            )
        if self.kl.target is not None and not self.kl.coefficient:
            raise ValueError("kl.target steers kl.coefficient by factors: it cannot start at 0")
        return self

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """How far the ratio may go below and above 1; None of an algorithm without a ratio."""
        return None if self.clip is None else (self.clip, self.clip_high or self.clip)


IMPLIED: Mapping[str, Mapping[str, Any]] = {
    "compat": {"reduction": "sequence_mean"},
    "rloo": {
        "reduction": "sequence_sum",
        "clip": 0.2,
        "unfinished": "keep",
        "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.05},
    },
    "ppo": {
        "clip": 0.2,
        "epochs": 4,
        "critic": {},
        "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.01},
    },
}
"""What an algorithm implies where the config is silent; the fields' own defaults are those of `reinforce`.

`ppo` is NeMo-Aligner's in its numbers (conf/gpt_ppo_actor.yaml and gpt_ppo_critic.yaml: clips 0.2, discount 1, lambda 0.95, advantages
normalised, KL 0.01 a token, cut-off answers without gradient), but for two of TRL's former PPOTrainer: k1 in place of its |k1|,
and 4 passes over the whole update in place of one pass in 8 parts.
"""
