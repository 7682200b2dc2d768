"""Lines that describe a run's algorithm, rewards and roles, for a dry run."""

from __future__ import annotations

import json
from pathlib import Path

from policy.training.critic import critic_start
from policy.update.losses import trl_beta
from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.policy import PolicyConfig
from rlhf.models.embedded import known_as

EXAMPLE_KL = 0.05
"""KL per token, in nats, at which `abs` is converted to k1: their ratio depends on it."""
GRADIENTS = {
    "k1": "has a gradient with mean zero: no pull towards the reference",
    "abs": "has the gradient of the total variation, which does not shrink near the reference",
    "k3": "has the gradient of KL(reference, policy), not of KL(policy, reference)",
}
"""Estimators whose gradient is not that of KL(policy, reference)."""


def describe_algorithm(algorithm: AlgorithmConfig, longest: int) -> list[str]:
    """Lines on the algorithm and its KL, with the KL coefficient in TRL's convention.

    Args:
        longest: tokens of the longest answer.
    """
    kl = algorithm.kl
    length, nats = max(1, longest // 2), EXAMPLE_KL
    beta = trl_beta(kl.coefficient, kl.estimator, kl.reduction, length, nats)
    power = -1 if kl.reduction == "mean" else 0
    if kl.placement == "loss" and algorithm.reduction != "sequence_sum":
        # The KL is a mean over answers, beside a policy loss that is a mean over tokens.
        beta, power = beta * length, power + 1
    formula = f"coefficient{('', ' x L', ' / L')[power]}"
    if power:
        formula += f", for answers of L = {length} tokens (half of rollouts.max_new_tokens)"
    if kl.estimator == "abs":
        formula += (
            f", x 2 / sqrt(pi k), the mean of |d| over that of d, for a KL of k = {nats:g} nats a token"
        )
    compat = ", with NeMo-Aligner's bugs" if algorithm.compat else ""
    by_token = " of each token" if algorithm.critic is not None and kl.placement == "reward" else ""
    lines = [
        f"Algorithm: {algorithm.name}{compat}; loss: {algorithm.reduction}; unfinished answers: "
        f"{algorithm.unfinished}"
        + ("; groups with equal rewards are skipped" if algorithm.flat_groups == "skip" else ""),
        f"KL penalty: {kl.coefficient:g} x {kl.reduction} of {kl.estimator} over an answer's tokens, in "
        f"the {kl.placement}{by_token}",
        f"In TRL's convention (beta x sum of k1, in the reward): beta = {beta:.3g} = {formula}",
    ]
    if kl.target is not None:
        lines.append(
            f"The coefficient is adapted to a KL of {kl.target:g}, with a horizon of {kl.horizon:g} answers"
        )
    if kl.budget is not None:
        lines.append(f"The run stops when the mean KL of an answer exceeds {kl.budget:g} nats")
    if kl.placement == "loss" and kl.estimator in GRADIENTS:
        lines.append(f"Note: in the loss, {kl.estimator} {GRADIENTS[kl.estimator]}")
    return lines


def describe_rewards(config: PolicyConfig) -> list[str]:
    """Lines on rewards, their shaping and the held-out reward."""
    shaping, penalty = config.reward_shaping, config.reward_shaping.length_penalty
    lines = [f"Reward: {reward_words(config)}"]
    steps = [
        "" if shaping.normalise == "none" else f"normalised by the {shaping.normalise} mean and deviation",
        "" if shaping.clip is None else f"clipped to {shaping.clip[0]:g} .. {shaping.clip[1]:g}",
        "" if penalty is None else f"less {penalty.per_token:g} for each token above {penalty.above}",
    ]
    if shaping.active:
        lines.append(f"Shaping: {', then '.join(step for step in steps if step)}")
    if shaping.missing == "drop":
        lines.append("Answers without a reward are left out and counted")
    if config.held_out_reward is not None:
        every = config.held_out_reward.every
        when = "each update" if every == 1 else f"one update in {every}"
        lines.append(
            f"Held-out reward: {config.held_out_reward.words()}, before and after training, and at {when}"
        )
    return lines


def other_bases(config: PolicyConfig) -> list[str]:
    """A note on each reward model whose card names another base than the config.

    The run compares the weights, which may be the same in two places.
    """
    sources = [*config.reward, *([] if config.held_out_reward is None else [config.held_out_reward])]
    folders = [source.adapter for source in sources if source.adapter is not None]
    folders += [folder for source in sources if source.ensemble for folder in source.ensemble.adapters]
    lines = []
    for folder in dict.fromkeys(folders):
        base = json.loads((Path(folder) / "reward.json").read_text("utf-8"))["base"]
        if known_as(base) != known_as(config.model.base):
            lines.append(
                f"Note: {folder} was trained on {base}, and model.base is {config.model.base}: the run stops "
                "if their weights differ"
            )
    return lines


def describe_roles(config: PolicyConfig) -> list[str]:
    """Lines on the reference and, where there is one, the critic."""
    reference = reference_words(config.start)
    if config.adapter is None:
        reference = "a frozen copy of the base; all weights of the policy are trained, kept in float32"
    lines = [f"Reference: {reference}"]
    algorithm, critic, start = config.algorithm, config.algorithm.critic, critic_start(config)
    if critic is not None:
        begins = "from a fresh adapter and a head of zeros" if start is None else f"from {start.adapter}"
        clip = "no clip" if critic.clip is None else f"values clipped at {critic.clip:g}"
        whitened = ", whitened over the update" if critic.whiten else ""
        alone = (
            f"; only the critic is trained for {critic.warmup_steps} updates" if critic.warmup_steps else ""
        )
        lines += [
            f"Critic: an adapter and a head of one output; starts {begins}; learning rate "
            f"{critic.learning_rate:g}, {clip}{alone}",
            f"Advantages: per token, discount {critic.discount:g}, lambda {critic.gae_lambda:g}{whitened}",
            f"Epochs per update: {algorithm.epochs}, each with an optimizer step of policy and critic",
        ]
    return lines


def reference_words(start: str | None) -> str:
    """The reference of a policy with an adapter."""
    return "the base" if start is None else f"a frozen copy of {start}, from which the policy starts"


def reward_words(config: PolicyConfig) -> str:
    """The reward as a sum, such as `adapter runs/reward/final + 0.5 x function gold`."""
    return " + ".join(
        source.words() if source.weight == 1 else f"{source.weight:g} x {source.words()}"
        for source in config.reward
    )
