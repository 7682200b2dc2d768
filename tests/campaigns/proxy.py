"""An HTTP proxy on loopback that injects faults into the answers of a server."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

FAULTS = ("500", "503", "slow", "cut before", "cut within", "not JSON")
"""Answers with status 500 or 503; an answer after `slow` seconds; a connection that is closed before the
request is passed on, or within the answer; an HTML page with status 200."""


class FaultyProxy:
    """Passes requests on to a server; each gets a fault with the given probability.

    Args:
        port: of the server on loopback.
        rates: probability of each fault.
        slow: seconds; longer than the clients wait.

    Attributes:
        port: its own.
        counts: requests by fault; "" counts those without one.
    """

    def __init__(self, port: int, rates: Mapping[str, float], *, slow: float, seed: int = 0) -> None:
        assert set(rates) <= set(FAULTS)
        self._to, self._rates, self._slow = port, rates, slow
        self._draw = random.Random(seed)
        self.port, self.counts = 0, Counter[str]()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()

    def close(self) -> None:
        """Stop at once."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(*await _request(reader), writer):
                pass
        writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; returns whether the connection stays open."""
        fault = self._fault()
        self.counts[fault] += 1
        if fault == "cut before":
            return False
        if fault in ("500", "503"):
            answer = _plain(fault, "application/json", b'{"error": "injected"}')
        elif fault == "not JSON":
            answer = _plain("200", "text/html", b"<html>a gateway</html>")
        else:
            answer = await self._forward(head, body)
        if fault == "slow":
            await asyncio.sleep(self._slow)
        writer.write(answer[: len(answer) // 2] if fault == "cut within" else answer)
        await writer.drain()
        return fault != "cut within" and b"\r\nconnection: close\r\n" not in answer.lower()

    def _fault(self) -> str:
        drawn = self._draw.random()
        for fault, rate in self._rates.items():
            if drawn < rate:
                return fault
            drawn -= rate
        return ""

    async def _forward(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._to)
        try:
            writer.write(head + body)
            answer_head, answer_body = await _request(reader)
            return answer_head + answer_body
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of an HTTP message with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    return head, await reader.readexactly(length)


def _plain(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
