"""No test reaches the network: hubs are told to stay offline, and a connection out of this machine fails."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

# Set before any library is imported, since most read them once.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # or vLLM looks for the machine's address in the network
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
    }
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to this machine pass, any other one fails with its address."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
        if host not in ("localhost", "::1", "0.0.0.0") and not str(host).startswith("127."):
            pytest.fail(f"a test tried to reach {address!r} over the network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
