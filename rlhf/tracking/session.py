"""The start that all training commands share: callbacks, threads, seed, run folder and trackers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import TrainerCallback, set_seed

from rlhf.config.schema import RunConfig
from rlhf.runs import checkpoints
from rlhf.runs.folder import RunFolder
from rlhf.tracking.callbacks import load_callbacks
from rlhf.tracking.trackers import Trackers


class Session(NamedTuple):
    """The open run folder, its trackers, and the callbacks of a training command."""

    run: RunFolder
    track: Trackers
    callbacks: list[TrainerCallback]


def last_checkpoint(run: RunFolder, track: Trackers, *, resume: bool) -> Path | None:
    """The checkpoint that a resumed run continues from; None for a new run.

    Opens the trackers, and drops figures of later updates; a collective call.
    """
    checkpoint = checkpoints.latest_everywhere(run.checkpoints) if resume else None
    track.open(run)
    run.truncate(checkpoints.step_of(checkpoint) if checkpoint else 0)
    return checkpoint


def check_session(config: RunConfig) -> None:
    """Check what `open_run` will load.

    Raises:
        ConfigError: a callback cannot be loaded, or a tracker is not installed.
    """
    load_callbacks(config.callbacks)
    Trackers(config)


@contextmanager
def open_run(
    config: RunConfig, command: str, *, resume: bool, trackers: Trackers | None = None
) -> Iterator[Session]:
    """Load the callbacks, set threads and seed, and open run folder and trackers for the block.

    Args:
        trackers: open trackers of a caller, who closes them; None: opened and closed here.

    Raises:
        ConfigError: a callback or a tracker cannot be loaded, or on resume a key differs that may not change.
        OutputError: the folder cannot be used.
    """
    callbacks = load_callbacks(config.callbacks)
    if config.threads:
        torch.set_num_threads(config.threads)
    set_seed(config.seed)
    with (
        RunFolder.create(config.output, config, resume=resume, command=command) as run,
        nullcontext(trackers) if trackers else Trackers(config) as track,
    ):
        yield Session(run, track, callbacks)
