"""Process chunks of items in threads, ahead of their use; and single items if a chunk fails."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

CHUNK = 32  # items per call of `work`

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def ahead(items: Iterable[T], work: Callable[[Sequence[T]], Sequence[R]]) -> Iterator[R]:
    """Yield the results of `work` on all items, in order.

    For work that releases the GIL, such as tokenization. Threads work only a few chunks ahead, to limit
    memory. The first item is processed alone, which initialises caches that threads then only read.
    """
    iterator = iter(items)
    threads = os.cpu_count() or 1
    pending: deque[Future[Sequence[R]]] = deque()
    for first in itertools.islice(iterator, 1):
        yield from work([first])
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(iterator, CHUNK)):
            pending.append(pool.submit(work, chunk))
            if len(pending) > 2 * threads:
                yield from pending.popleft().result()
        for future in pending:
            yield from future.result()


def each(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], error: type[E]) -> list[R | E]:
    """The results of `work` on all items.

    If it raises `error`, of each item alone, or the error in its place.
    """
    try:
        return [*work(items)]
    except error as raised:
        if len(items) == 1:
            return [raised]
    return [result for item in items for result in each([item], work, error)]
