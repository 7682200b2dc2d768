"""Statistics, engine comparisons and figures of all ranks as those of the whole update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policy.rollouts.probe import EngineProbe
from policy.update.sampling import HELD_OUT
from policy.update.statistics import UpdateStatistics
from reward.judge import judge
from rlhf.distributed import processes

SUMMED = (
    "engine/tokens_per_second",
    "engine/retried_prompts",
    "reward/groups_skipped",
    *judge.SUMMED,
)
"""Figures that are summed over ranks."""
AVERAGED = ("judge/seconds", "judge/position_bias", "judge/order_agreement", "reward/spread")
"""Figures that are averaged over the ranks that have them."""


def gather_statistics(local: UpdateStatistics) -> UpdateStatistics:
    """The statistics of all ranks, in the order of the ranks."""
    return merge_statistics(processes.all_gather(local.read()))


def gather_probes(local: EngineProbe) -> EngineProbe:
    """The engine comparisons of all ranks."""
    return merge_probes(processes.all_gather(local.read()))


def reduce_figures(local: Mapping[str, float]) -> dict[str, float]:
    """Figures of all ranks, see `merge_figures`."""
    return merge_figures(processes.all_gather(local))


def merge_figures(by_rank: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The maximum of times and memory, the sum of `SUMMED`, the mean of `AVERAGED`.

    Of others the first rank's value that has one.
    """
    figures = dict[str, float]()
    for name in dict.fromkeys(name for rank_figures in by_rank for name in rank_figures):
        values = [rank_figures[name] for rank_figures in by_rank if name in rank_figures]
        kind = name.removeprefix(f"{HELD_OUT}/")
        if name.startswith(("time/", "memory/")):
            figures[name] = max(values)
        elif kind in SUMMED:
            figures[name] = sum(values)
        else:
            figures[name] = sum(values) / len(values) if kind in AVERAGED else values[0]
    return figures


def merge_statistics(parts: Sequence[UpdateStatistics]) -> UpdateStatistics:
    """Statistics of parts of an update as those of the whole update."""
    parts = [part.read() for part in parts]
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    missing, offset = dict[int, str](), 0
    for part in parts:
        missing |= {offset + position: reason for position, reason in part.missing.items()}
        offset += len(part.rollouts)
    whole = UpdateStatistics(
        [reward for part in parts for reward in part.rewards],
        [rollout for part in parts for rollout in part.rollouts],
        parts[0].epochs,
        columns={name: [value for part in parts for value in part.columns[name]] for name in names},
        missing=missing,
    )
    whole.kl_sum = [value for part in parts for value in part.kl_sum]
    whole.charged = [value for part in parts for value in part.charged]
    whole.tokens = [tokens for part in parts for tokens in part.tokens]
    for part in parts:
        whole.advantages += part.advantages
        whole.entropies += part.entropies
        whole.add_losses(part.losses, part.algorithm_figures)
        for estimator, value in part.sums.items():
            whole.sums[estimator] += value
    return whole.read()


def merge_probes(parts: Sequence[EngineProbe]) -> EngineProbe:
    """Engine comparisons of parts of an update as those of the whole update."""
    if len(parts) == 1:
        return parts[0]
    whole = EngineProbe(parts[0].level, parts[0].cap)
    for part in parts:
        whole.to_policy += part.to_policy
        whole.to_reference += part.to_reference
        whole.weights += part.weights
    samplers = [part.sampler for part in parts if part.sampler is not None]
    whole.sampler = merge_probes(samplers) if samplers else None
    return whole
