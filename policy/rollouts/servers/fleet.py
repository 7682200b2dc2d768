"""A set of servers that share the prompts, with failover.

A server whose request failed is probed. If it does not respond it is lost: its unfinished prompts go to the
other servers, and it is tried again with each new adapter.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from policy.rollouts.servers.answers import SampledIds, read_response
from policy.rollouts.servers.client import Server, ServerError
from policy.rollouts.servers.start import Wanted, check_server, load_mistake
from rlhf.core.errors import EngineError, ModelError
from rlhf.distributed import processes

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each probe of a server whose request failed."""
FAILURES = 3
"""Failures of one prompt after which a server is lost, even if it responds to probes."""


class Fleet:
    """Interchangeable servers.

    Args:
        servers: all of them.
        wanted: the requirements on each.

    Attributes:
        retried: number of retried prompts.
    """

    def __init__(self, servers: Sequence[Server], wanted: Wanted) -> None:
        first = processes.rank() % len(servers)  # spreads the first prompts of the ranks over the servers
        self.servers, self.wanted, self.retried = [*servers[first:], *servers[:first]], wanted, 0
        self._lock = threading.Lock()
        self._probe_locks = {server.url: threading.Lock() for server in servers}

    @property
    def alive(self) -> list[Server]:
        """The servers in use."""
        return [server for server in self.servers if server.lost is None]

    def check(self) -> None:
        """Check all servers before the first rollout.

        Raises:
            ModelError: a server does not meet the requirements.
            EngineError: none can be reached.
        """

        def check(server: Server) -> None:
            try:
                check_server(server, self.wanted)
            except ServerError as problem:
                self._lose(server, f"it cannot be reached: {problem}")

        self._for_all(check)
        self.require_server()

    def load_adapter(self, name: str, folder: Path, *, first: bool) -> None:
        """Load an adapter on all servers and unload the previous one; a lost server that responds is used
        again.

        Raises:
            ModelError: a server rejects the `first` adapter of a run: it is misconfigured.
        """

        def load(server: Server) -> None:
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
                self._lose(server, f"it did not load the adapter: {problem}")
                return
            except ModelError as problem:
                if first:
                    raise
                # A lost server answers again, with another base or token: the others suffice.
                self._lose(server, problem.found)
                return
            if server.lost is not None:
                server.lost = None
                print(f"Rollout server {server.url} is back, with the current adapter.", flush=True)

        self._for_all(load)

    def find_adapter(self, name: str) -> None:
        """Use the servers on which the main process loaded an adapter."""

        def find(server: Server) -> None:
            try:
                server.lost = None if server.has_adapter(name) else "it has no adapter"
            except ServerError as problem:
                server.lost = str(problem)

        self._for_all(find)

    def answer(self, request: Mapping[str, Any]) -> list[SampledIds]:
        """Answers of the least busy server; of another where that fails.

        Raises:
            EngineError: no server is left, or a response is invalid.
        """
        failures: Counter[str] = Counter()
        while True:
            server = self._least_busy()
            try:
                return read_response(server.complete(request), request, server.url)
            except ServerError as problem:
                failures[server.url] += 1
                self._handle_failure(server, problem, str(request["model"]), failures[server.url])
            finally:
                with self._lock:
                    server.in_flight -= 1
            with self._lock:
                self.retried += 1

    def require_server(self) -> None:
        """Check that a server is in use.

        Raises:
            EngineError: all are lost.
        """
        if not self.alive:
            raise EngineError(
                "\n".join(
                    [
                        "No rollout server is left:",
                        *(f"  {server.url}: {server.lost}" for server in self.servers),
                    ]
                ),
                allowed="at least one running server",
                fix=f"start one ({self.wanted.command()}), then continue with --resume",
            )

    def _for_all(self, what: Callable[[Server], None]) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(what, self.servers))

    def _least_busy(self) -> Server:
        with self._lock:
            self.require_server()
            server = min(self.alive, key=lambda server: server.in_flight)
            server.in_flight += 1
            return server

    def _handle_failure(self, server: Server, problem: ServerError, adapter: str, failures: int) -> None:
        """Decide after a failed request whether the server is lost.

        Raises:
            EngineError: the server rejects the prompt.
        """
        if problem.status == 404:
            self._lose(server, f"it has no adapter any more ({problem}): it was probably restarted")
        elif problem.status in (401, 403):
            self._lose(server, f"it rejects the token in ${self.wanted.token_env} ({problem})")
        elif not problem.is_temporary:
            raise EngineError(f"{server.url} rejects a prompt: {problem}") from problem
        elif problem.timed_out or failures >= FAILURES:
            self._lose(server, str(problem))
        else:
            with self._probe_locks[server.url]:  # all of its prompts fail together: one thread probes it
                if server.lost is None and (reason := self._probe(server, problem, adapter)):
                    self._lose(server, reason)

    def _probe(self, server: Server, problem: ServerError, adapter: str) -> str:
        """Why a server cannot be used any more; empty where it responds and has the adapter."""
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return "" if server.has_adapter(adapter) else "it was restarted and has no adapter"
            except ServerError:
                continue
        return str(problem)

    def _lose(self, server: Server, reason: str) -> None:
        with self._lock:
            before, server.lost = server.lost, reason
            if before is None:
                print(
                    f"Rollout server {server.url} is lost: {reason}. In use: {len(self.alive)} of "
                    f"{len(self.servers)}. Its unfinished prompts go to the others; it is tried again at "
                    "each update.",
                    flush=True,
                )
