"""Where the figures of an update go: metrics.jsonl, the trackers, the progress line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.runs.folder import RunFolder
from rlhf.runs.progress import Progress
from rlhf.tracking.trackers import Trackers

LogUpdate = Callable[[int, Mapping[str, float | str]], None]
"""Receives the number and the figures of an update or a validation."""
LogPolicyUpdate = Callable[[int, Mapping[str, float], Sequence[Mapping[str, Any]]], None]
"""Receives the number, the figures and the sampled answers of an update."""


def recorder(run: RunFolder, track: Trackers, progress: Progress) -> LogUpdate:
    """A function that writes figures to metrics.jsonl, the trackers and the progress line."""
    shown = {"loss": "loss/total", "accuracy": "reward/accuracy"}

    def record(step: int, figures: Mapping[str, float | str]) -> None:
        run.metrics(step, figures)
        track.metrics(step, figures)
        if "loss/total" in figures:
            progress.update(
                step, **{short: float(figures[name]) for short, name in shown.items() if name in figures}
            )

    return record


def policy_recorder(run: RunFolder, track: Trackers | None, progress: Progress) -> LogPolicyUpdate:
    """A function that also writes answers, to samples.jsonl and the trackers."""
    shown = {"reward": "reward/mean", "gold": "gold/mean", "kl": "kl/sum", "tokens": "length/mean"}

    def record(step: int, figures: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> None:
        run.metrics(step, figures)
        run.samples(samples)
        if track is not None:
            track.metrics(step, figures)
            track.samples(samples)
        progress.update(step, **{short: figures[name] for short, name in shown.items() if name in figures})

    return record
