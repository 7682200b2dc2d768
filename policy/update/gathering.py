"""What an update's answers were, from all processes: figures are of all answers, and every process comes to the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policy.rollouts.probe import EngineProbe
from policy.update.statistics import UpdateStatistics
from rlhf.distributed import processes

SUMMED = (
    "engine/tokens_per_second",
    "engine/retried_prompts",
    "judge/requests",
    "judge/cached",
    "judge/unparsed",
    "judge/prompt_tokens",
    "judge/completion_tokens",
    "judge/dollars",
)
"""Figures that are added up over the processes."""
MEANED = ("judge/seconds", "judge/position_bias", "judge/order_agreement")
"""Figures of which the mean over the processes is taken."""


def gather_statistics(own: UpdateStatistics) -> UpdateStatistics:
    """The statistics of all processes' answers, in the order of the processes."""
    return merge(processes.all_gather(own.read()))


def gather_probes(own: EngineProbe) -> EngineProbe:
    """The comparisons of all processes' answers."""
    return merge_probes(processes.all_gather(own.read()))


def gather_times(own: Mapping[str, float]) -> dict[str, float]:
    """Figures of all processes, see `merge_figures`."""
    return merge_figures(processes.all_gather(own))


def merge_figures(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of times the longest, since the others waited for it; of rates and counts the sum; of a judge's bias the mean.

    Of anything else the value of the first process that has the figure.
    """
    figures = dict[str, float]()
    for name in dict.fromkeys(name for one in every for name in one):
        values = [one[name] for one in every if name in one]
        if name.startswith("time/"):
            figures[name] = max(values)
        elif name in SUMMED:
            figures[name] = sum(values)
        else:
            figures[name] = sum(values) / len(values) if name in MEANED else values[0]
    return figures


def merge(parts: Sequence[UpdateStatistics]) -> UpdateStatistics:
    """Several processes' statistics of one update as one."""
    parts = [part.read() for part in parts]
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    missing, first = dict[int, str](), 0
    for part in parts:
        missing |= {first + place: why for place, why in part.missing.items()}
        first += len(part.rollouts)
    whole = UpdateStatistics(
        [reward for part in parts for reward in part.rewards],
        [rollout for part in parts for rollout in part.rollouts],
        parts[0].passes,
        columns={name: [one for part in parts for one in part.columns[name]] for name in names},
        missing=missing,
    )
    whole.kl_sum = [one for part in parts for one in part.kl_sum]
    whole.charged = [one for part in parts for one in part.charged]
    for part in parts:
        whole.advantages += part.advantages
        whole.log_ratios += part.log_ratios
        whole.entropies += part.entropies
        whole.add_losses(part.losses, part.own)
        for estimator, total in part.sums.items():
            whole.sums[estimator] += total
    return whole.read()


def merge_probes(parts: Sequence[EngineProbe]) -> EngineProbe:
    """Several processes' comparisons as one."""
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
