"""Tasks whose responses are sampled while people annotate, a few tasks ahead of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.core.errors import RlhfError
from rlhf.core.records import Conversation

Sample = Callable[[Conversation, int], tuple[str, str]]
"""The two responses to a conversation, of the first and of the second model, with a seed."""

AHEAD = 3
"""Tasks that are kept ready, not opened by anybody yet."""
ATTEMPTS = 3
"""Seeds that are tried until the two responses differ."""
PAUSE = 0.5
"""Seconds between two polls of the store."""


class LivePairs:
    """Samples a pair of responses to one prompt after another, and adds it as a task.

    Response 1 is always the first model's; the page shuffles the sides. Prompts that the store has already
    are not sampled again, so a restarted server continues.

    Attributes:
        skipped: how many prompts have no task, by reason.
        failure: the error that ended the sampling; None while there is none.
    """

    def __init__(self, store: Store, prompts: Sequence[Conversation], sample: Sample) -> None:
        known = {task.prompt for task in store.tasks().values()}
        self.store, self.sample = store, sample
        self.left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        self.left.reverse()  # the next one is the last
        self.skipped = Counter[str]()
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> bool:
        """Whether further tasks will come."""
        return bool(self.left) and self.failure is None

    def add_next(self) -> bool:
        """Sample a pair for the next prompt; returns whether it became a task.

        Blank and equal responses are sampled again with other seeds; after `ATTEMPTS` the prompt is skipped.
        """
        prompt, reason = self.left[-1], "the two responses are the same, or one is blank"
        added = False
        for seed in range(ATTEMPTS):
            try:
                first, second = self.sample(prompt, seed)
            except RlhfError as error:  # such as a prompt longer than the context
                reason = str(error)
                break
            if first.strip() and second.strip() and first.strip() != second.strip():
                added = self.store.add_tasks([Task(prompt, first, second)]) == 1
                break
        self.left.pop()  # after the task is there: `waiting` must not end before
        self.skipped.update([] if added else [reason])
        return added

    def run(self) -> None:
        """Add tasks until no prompt is left or `close` is called."""
        while self.left and not self._stop.is_set():
            if self.store.count_untouched() >= AHEAD:
                self._stop.wait(PAUSE)
                continue
            try:
                self.add_next()
            except Exception as error:  # noqa: BLE001 (the server prints it)
                self.failure = error
                return

    def start(self, finished: Callable[[], None]) -> None:
        """Call `run` in a thread, then `finished`."""

        def work() -> None:
            self.run()
            finished()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the pair under way: a thread inside torch would abort the process at its end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
