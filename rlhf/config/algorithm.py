"""The `algorithm` section of a policy config: the RL algorithm and the KL to the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config.schema import Count, CountOrZero, NonNegative, Number, Positive, Share, Strict


class KLConfig(Strict):
    """The KL penalty between policy and reference."""

    estimator: Literal["k1", "abs", "k2", "k3"] = "abs"
    """Per token, with d = log policy - log reference: k1 = d, abs = |d|, k2 = d^2/2, k3 = exp(-d) - 1 + d.
    `rloo`, `ppo`: k1."""
    reduction: Literal["sum", "mean"] = "mean"
    """Over the tokens of an answer: TRL sums, NeMo-Aligner takes the mean (of `abs`). Equal coefficients
    differ in effect by a factor of the answer's length. `rloo`, `ppo`: sum."""
    placement: Literal["reward", "loss"] = "reward"
    """`reward`: subtracted from the reward, without a gradient; `loss`: a term of the loss, a mean over
    answers. In the loss only k2 has the gradient of KL(policy, reference); k3 has that of the reverse KL, k1
    none. With `token_mean` and `sequence_mean`, which average over tokens, a coefficient in the loss weighs
    as much as one in the reward times the length of an answer."""
    coefficient: NonNegative = 0.01
    """Reward per unit of KL; with `target`, the initial value. `rloo`: 0.05."""
    target: Positive | None = None
    """Adapt the coefficient until the KL, by the estimator and reduction above, has this value; null keeps it
    fixed."""
    horizon: Positive = 10_000.0
    """With `target`: number of answers over which an error of 100 % doubles the coefficient; errors are
    clipped to 20 %."""
    budget: Positive | None = None
    """Stop when the mean KL per answer (k1, summed, in nats) exceeds this, and keep the best weights before;
    null: no limit."""


class CriticConfig(Strict):
    """PPO's critic: another adapter and head on the base, and how its values are used."""

    start: Literal["reward", "zero"] = "reward"
    """`reward`: initialised from the reward model, which must be one adapter on the policy's base (the paper,
    NeMo-Aligner); `zero`: all values are 0 at first."""
    learning_rate: Positive = 3e-4
    """Peak learning rate; ten times the policy's default, as in NeMo-Aligner (9e-6 and 9e-7). Other settings
    are those of `optimizer`."""
    warmup_steps: CountOrZero = 0
    """Updates at the start in which only the critic is trained (NeMo-Aligner's `critic_warmup_steps`)."""
    clip: Positive | None = 0.2
    """Value clipping: largest change from the value at sampling time that still has a gradient, in units of
    reward; null: none."""
    discount: Share = 1.0
    """Discount factor per token (gamma)."""
    gae_lambda: Share = 0.95
    """Lambda of generalised advantage estimation: 1 uses all later rewards, 0 only the next value."""
    whiten: bool = True
    """Normalise the advantages of an update to mean 0 and variance 1, over all unmasked tokens."""


class AlgorithmConfig(Strict):
    """The RL algorithm. Keys that are left out have the values of the algorithm's authors."""

    name: Literal["reinforce", "rloo", "ppo"] = "reinforce"
    """`reinforce`: NeMo-Aligner's, leave-one-out baseline, no ratio; `rloo`: TRL's, number for number; `ppo`:
    with a critic."""
    compat: bool = False
    """`reinforce` exactly as NeMo-Aligner computes it: the loss is the mean over all answers, masked ones
    included, of each answer's token mean."""
    reduction: Literal["sequence_sum", "sequence_mean", "token_mean"] = "token_mean"
    """Log-probabilities in the loss: summed per answer (TRL's RLOO), averaged per answer (NeMo-Aligner), or
    averaged over all tokens of the update. `rloo`: sequence_sum; `compat`: sequence_mean."""
    clip: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Clip range of the importance ratio around 1, per answer (`rloo`) or per token (`ppo`): 0.2; `reinforce`
    has no ratio."""
    clip_high: Annotated[Number, Field(gt=0)] | None = None
    """Separate upper clip range, as in DAPO (0.28); null: `clip`."""
    epochs: Count = 1
    """Passes over the answers of one update, each with an optimizer step; more than one needs a ratio. `ppo`:
    4."""
    critic: CriticConfig | None = None
    """The critic; required by `ppo`, not allowed otherwise."""
    kl: KLConfig = KLConfig()
    """The KL to the reference."""
    unfinished: Literal["drop", "keep", "penalty"] = "drop"
    """Answers cut off at max_new_tokens. `drop`: masked, in the loss and in the baseline (NeMo-Aligner);
    `keep`: used as they are; `penalty`: their reward is `unfinished_reward`. `rloo`: keep."""
    unfinished_reward: float | None = None
    """Reward of an unfinished answer with `unfinished: penalty`."""
    flat_groups: Literal["keep", "skip"] = "keep"
    """Groups whose shaped rewards are all equal: `skip` leaves them out of the update
    (`reward/groups_skipped`). `ppo`: keep."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_algorithm(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        implied = IMPLIED.get("compat" if data.get("compat") is True else str(data.get("name")), {})
        kl = data.get("kl", {})
        merged = {**implied, **data}
        if isinstance(kl, Mapping) and "kl" in implied:
            merged["kl"] = {**implied["kl"], **kl}
        return merged

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.unfinished == "penalty") != (self.unfinished_reward is not None):
            raise ValueError("unfinished_reward and unfinished: penalty need each other; set both or neither")
        if self.compat and (self.name, self.unfinished) != ("reinforce", "drop"):
            raise ValueError("compat: true needs name: reinforce and unfinished: drop")
        if self.compat and self.reduction != "sequence_mean":
            raise ValueError(
                "compat: true needs reduction: sequence_mean, NeMo-Aligner's; or leave reduction out"
            )
        if (self.name != "reinforce") != (self.clip is not None):
            raise ValueError("clip is required with name: rloo or ppo, and not allowed with reinforce")
        if self.clip_high is not None and self.clip is None:
            raise ValueError("clip_high needs name: rloo or ppo")
        if (self.name == "ppo") != (self.critic is not None):
            raise ValueError("critic is required with name: ppo, and not allowed otherwise")
        if self.critic is not None and self.flat_groups == "skip":
            raise ValueError(
                "flat_groups: skip is not allowed with name: ppo, whose baseline is the critic: there equal "
                "rewards in a group carry a signal"
            )
        if self.name == "rloo" and self.reduction != "sequence_sum":
            raise ValueError("name: rloo needs reduction: sequence_sum, as its ratio is per answer")
        if self.name == "reinforce" and self.epochs > 1:
            raise ValueError(
                "name: reinforce needs epochs: 1, as it has no ratio for a second pass; or use rloo or ppo"
            )
        if self.kl.target is not None and not self.kl.coefficient:
            raise ValueError("kl.target multiplies kl.coefficient, which must be above 0 at the start")
        return self

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """The clip range below and above 1; None for an algorithm without a ratio."""
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
"""Defaults that depend on the algorithm; those of the fields themselves are for `reinforce`.

`ppo` has the values of NeMo-Aligner (conf/gpt_ppo_actor.yaml and gpt_ppo_critic.yaml: clips 0.2, discount 1,
lambda 0.95, normalised advantages, KL 0.01 per token, unfinished answers masked), with two exceptions from
TRL's former PPOTrainer: k1 instead of |k1|, and 4 passes over the whole update instead of one pass in 8
minibatches.
"""
