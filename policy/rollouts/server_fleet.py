"""Several servers as one: who gets the next prompt, who is lost, who is back.

A server that fails is asked whether it lives. If not, it is lost: its unfinished prompts go to the others, and it is
tried again with each adapter.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from policy.rollouts.server_answers import Answer, read_answers
from policy.rollouts.server_client import Server, ServerError
from policy.rollouts.server_start import Wanted, check_server, load_mistake
from rlhf.core.errors import EngineError
from rlhf.distributed import processes

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each question whether a server that failed still lives."""
FAILURES = 3
"""A server that fails the same prompt so often is lost, even if it answers questions."""


class Fleet:
    """Servers that stand in for one another.

    Args:
        servers: with their addresses.
        wanted: what they must be.

    Attributes:
        retried: prompts that were asked again.
    """

    def __init__(self, servers: Sequence[Server], wanted: Wanted) -> None:
        first = processes.rank() % len(servers)  # or the odd prompt of every process went to the same one
        self.servers, self.wanted, self.retried = [*servers[first:], *servers[:first]], wanted, 0
        self._lock = threading.Lock()
        self._doubts = {server.url: threading.Lock() for server in servers}

    @property
    def alive(self) -> list[Server]:
        """Those in use."""
        return [server for server in self.servers if server.lost is None]

    def check(self) -> None:
        """Look at all of them before the first rollout.

        Raises:
            ModelError: one is another server than is wanted.
            EngineError: none can be reached.
        """

        def check(server: Server) -> None:
            try:
                check_server(server, self.wanted)
            except ServerError as problem:
                self._lose(server, f"it cannot be reached: {problem}")

        self._on_all(check)
        self.require_one()

    def hand_over(self, name: str, folder: Path, *, first: bool) -> None:
        """Have all of them load an adapter, and unload the one before; a lost server that is back takes part again.

        Raises:
            ModelError: one of them does not take the `first` adapter: it is wrong from the start.
        """

        def hand_over(server: Server) -> None:
            before = server.adapter
            try:
                if server.lost is not None:
                    check_server(server, self.wanted)
                if server.lost is not None or before != name:
                    server.load(name, folder)
                if before is not None and before != name:
                    server.unload(before)
            except ServerError as problem:
                if first and problem.status is not None:
                    raise load_mistake(server, problem, self.wanted, str(folder)) from problem
                self._lose(server, f"it did not take the adapter: {problem}")
                return
            if server.lost is not None:
                server.lost = None
                print(f"Rollout server {server.url} is back, with the present adapter.", flush=True)

        self._on_all(hand_over)

    def look(self, name: str) -> None:
        """Use those that another process gave an adapter."""

        def look(server: Server) -> None:
            try:
                server.lost = None if server.knows(name) else "it has no adapter"
            except ServerError as problem:
                server.lost = str(problem)

        self._on_all(look)

    def answer(self, request: Mapping[str, Any]) -> list[Answer]:
        """Ask the server with the least to do, and another one where it fails.

        Raises:
            EngineError: none is left, or the answer cannot be used.
        """
        failures: Counter[str] = Counter()
        while True:
            server = self._least_busy()
            try:
                return read_answers(server.complete(request), request, server.url)
            except ServerError as problem:
                failures[server.url] += 1
                self._judge(server, problem, str(request["model"]), failures[server.url])
            finally:
                with self._lock:
                    server.in_flight -= 1
            with self._lock:
                self.retried += 1

    def require_one(self) -> None:
        """Make sure that there is a server to ask.

        Raises:
            EngineError: all are lost.
        """
        if not self.alive:
            raise EngineError(
                "\n".join(
                    ["No rollout server is left:", *(f"  {each.url}: {each.lost}" for each in self.servers)]
                ),
                allowed="at least one that runs",
                fix=f"start one ({self.wanted.command()}), and go on with --resume",
            )

    def _on_all(self, what: Callable[[Server], None]) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(what, self.servers))

    def _least_busy(self) -> Server:
        with self._lock:
            self.require_one()
            server = min(self.alive, key=lambda server: server.in_flight)
            server.in_flight += 1
            return server

    def _judge(self, server: Server, problem: ServerError, adapter: str, failures: int) -> None:
        """After a failure: is the server lost?

        Raises:
            EngineError: it is the prompt that is at fault.
        """
        if problem.status == 404:
            self._lose(server, f"it has no adapter any more ({problem}); was it started again?")
        elif problem.status in (401, 403):
            self._lose(server, f"it refuses the token in ${self.wanted.token_env} ({problem})")
        elif not problem.may_pass:
            raise EngineError(f"{server.url} refuses a prompt: {problem}") from problem
        elif problem.timed_out or failures >= FAILURES:
            self._lose(server, str(problem))
        else:
            with self._doubts[server.url]:  # all of its prompts fail at once: one of them finds out why
                if server.lost is None and (why := self._dead(server, problem, adapter)):
                    self._lose(server, why)

    def _dead(self, server: Server, problem: ServerError, adapter: str) -> str:
        """Why a server that failed cannot go on; the empty string where it can."""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return "" if server.knows(adapter) else "it was started again, and has no adapter"
            except ServerError:
                continue
        return str(problem)

    def _lose(self, server: Server, why: str) -> None:
        with self._lock:
            before, server.lost = server.lost, why
            if before is None:
                print(
                    f"Rollout server {server.url} is lost: {why}. In use: {len(self.alive)} of {len(self.servers)}. "
                    "What it had not finished goes to the others; it is tried again at each update.",
                    flush=True,
                )
