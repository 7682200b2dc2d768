"""Work on many items in threads, a little ahead of who uses the results; and one by one where a chunk fails."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

TOGETHER = 32  # items that a thread works on at a time

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def ahead(items: Iterable[T], work: Callable[[Sequence[T]], Sequence[R]]) -> Iterator[R]:
    """The results of `work` on all items, in their order.

    For work that leaves Python's lock, such as a tokenizer's. Threads stay a little ahead, no more: results that are not
    used yet are held in memory. The first item is worked on alone: it settles state that threads may only read.
    """
    some = iter(items)
    threads = os.cpu_count() or 1
    coming: deque[Future[Sequence[R]]] = deque()
    for first in itertools.islice(some, 1):
        yield from work([first])
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(some, TOGETHER)):
            coming.append(pool.submit(work, chunk))
            if len(coming) > 2 * threads:
                yield from coming.popleft().result()
        for made in coming:
            yield from made.result()


def each(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], error: type[E]) -> list[R | E]:
    """The results of `work` on all items together; where it raises `error`, of each by itself, or the error in its place."""
    try:
        return [*work(items)]
    except error as raised:
        if len(items) == 1:
            return [raised]
    return [made for one in items for made in each([one], work, error)]
