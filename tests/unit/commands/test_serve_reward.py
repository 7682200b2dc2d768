"""`rlhf serve-reward`: its output at the start, and what it refuses."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import Result

from rlhf.web import serving

Rlhf = Callable[..., Result]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, scorer: object) -> list[tuple[FastAPI, tuple[str, int]]]:
    """Applications with their addresses, of servers that stop at once; the model is the fake one."""
    seen: list[tuple[FastAPI, tuple[str, int]]] = []
    monkeypatch.setattr(serving, "serve", lambda app, bound: seen.append((app, bound.getsockname())))
    monkeypatch.setattr(type(scorer), "attributes", ("reward", "turns"), raising=False)
    monkeypatch.delenv("RLHF_REWARD_TOKEN", raising=False)
    return seen


def health(app: FastAPI, *tokens: str) -> list[int]:
    """The status of /health for each token."""
    with TestClient(app) as client:
        headers = [{"Authorization": f"Bearer {token}"} for token in tokens]
        return [client.get("/health", headers=header).status_code for header in headers]


Served = list[tuple[FastAPI, tuple[str, int]]]


def test_a_token_is_generated_and_shown_once(served: Served, rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "model", "--port", "0")
    assert result.exit_code == 0, result.output
    ((app, (_, port)),) = served
    assert f"Serving model at http://127.0.0.1:{port}; rewards: reward, turns" in result.output
    shown = re.search(r"export RLHF_REWARD_TOKEN=(\S+)", result.output)
    assert shown is not None and len(shown[1]) >= 40 and result.output.count(shown[1]) == 1
    assert health(app, shown[1], "another") == [200, 401]
    assert "Note" not in result.output and result.output.endswith("Stopped.\n")


def test_ones_own_token_is_not_shown(served: Served, rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "sesame-sesame")
    result = rlhf("serve-reward", "model", "--port", "0", "--token-env", "MY_TOKEN")
    assert result.exit_code == 0 and health(served[0][0], "sesame-sesame") == [200]
    assert "sesame" not in result.output


def test_a_note_where_other_machines_can_connect(served: Served, rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "model", "--port", "0", "--host", "0.0.0.0")
    assert "Note: other machines can reach this, and nothing is encrypted" in result.output


def test_an_ipv6_address(served: Served, rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "model", "--port", "0", "--host", "::1")
    if result.exit_code:  # a machine without IPv6
        assert result.exit_code == 2 and "::1:0" in result.output
    else:
        assert f"http://[::1]:{served[0][1][1]}" in result.output and "Note" not in result.output


@pytest.mark.parametrize("token", ["", "short", "with a space", "tokén-tokén"])
def test_a_token_that_cannot_be_used(
    served: Served, rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", token)
    result = rlhf("serve-reward", "model", "--port", "0")
    assert result.exit_code == 2 and "RLHF_REWARD_TOKEN" in result.output
    assert not served and (not token or token not in result.output)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine(served: Served, rlhf: Rlhf, host: str) -> None:
    result = rlhf("serve-reward", "model", "--port", "0", "--host", host)
    assert result.exit_code == 2 and f"{host}:0" in result.output


def test_a_port_in_use(served: Served, rlhf: Rlhf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = rlhf("serve-reward", "model", "--port", str(port))
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}: Address already in use" in result.output
    assert "--port" in result.output


def test_no_reward_model_there(served: Served, rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "elsewhere", "--port", "0")
    assert result.exit_code == 2 and "elsewhere" in result.output
