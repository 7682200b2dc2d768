"""Isolates the trainer from vLLM's changes to the process.

vLLM 0.31 sets torch to one CPU thread, makes its own CUDA stream the current one (`utils/torch_utils.py`) and
freezes all live objects for the garbage collector (`utils/gc_utils.py`). Here the trainer keeps its threads,
stream and collector; the engine works on its own stream, and the two streams wait for each other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class EngineProcess:
    """The engine's CUDA stream in the trainer's process; None on a CPU."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start the engine within the block.

        Afterwards restore the trainer's threads, stream and garbage collector.
        """
        threads, set_threads = torch.get_num_threads(), torch.set_num_threads
        on_gpu = torch.cuda.is_available()
        trainers = torch.cuda.current_stream() if on_gpu else None
        try:
            yield
        finally:
            torch.set_num_threads = set_threads  # vLLM's CPU worker replaces it by a no-op
            torch.set_num_threads(threads)
            gc.unfreeze()
            if trainers is not None:
                engines = torch.cuda.current_stream()
                torch.cuda.set_stream(trainers)
                trainers.wait_stream(engines)
                self.stream = engines

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the block on the engine's stream, after the trainer's work so far and before its next."""
        if self.stream is None:
            yield
            return
        trainers = torch.cuda.current_stream()
        self.stream.wait_stream(trainers)
        with torch.cuda.stream(self.stream):
            yield
        trainers.wait_stream(self.stream)
