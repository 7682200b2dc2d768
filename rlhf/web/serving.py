"""Serve an application on an address: errors of the address as errors for people, no log of requests."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from rlhf.core.errors import ConfigError

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which does not listen yet; port 0 takes a free one.

    Raises:
        ConfigError: the address is in use, or does not belong to this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"No server can be started at {host}:{port}: {error.strerror}",
            allowed="an address of this machine, and a free port",
            fix="--port with another number, or 0 for a free one",
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The address of a bound socket, as a browser takes it."""
    address, port = bound.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """The HTTP server of an application; it logs no requests."""
    return uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, backlog=BACKLOG))


def serve(app: FastAPI, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, then answer the requests under way and return."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again at its end
    try:
        with suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, previous)
