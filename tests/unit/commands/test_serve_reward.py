"""`rlhf serve-reward`: what it says at its start, and what it refuses."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest
from typer.testing import Result

from reward.server import RewardServer

Rlhf = Callable[..., Result]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, scorer: object) -> list[RewardServer]:
    """Servers that end at once, as if by Ctrl-C; the model is the fake one."""
    seen: list[RewardServer] = []

    def stop(self: RewardServer) -> None:
        seen.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(RewardServer, "serve_forever", stop)
    monkeypatch.setattr(type(scorer), "attributes", ("reward", "turns"), raising=False)
    monkeypatch.delenv("RLHF_REWARD_TOKEN", raising=False)
    return seen


def test_a_token_is_made_and_shown_once(served: list[RewardServer], rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "model", "--port", "0")
    assert result.exit_code == 0, result.output
    (server,) = served
    assert f"Serving model at http://127.0.0.1:{server.server_port}; rewards: reward, turns" in result.output
    found = re.search(r"export RLHF_REWARD_TOKEN=(\S+)", result.output)
    assert found is not None and found[1] == server.token and len(server.token) >= 40
    assert result.output.count(server.token) == 1
    assert "Note" not in result.output and result.output.endswith("Stopped.\n")


def test_a_token_of_ones_own_is_not_shown(
    served: list[RewardServer], rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "sesame-sesame")
    result = rlhf("serve-reward", "model", "--port", "0", "--token-env", "MY_TOKEN")
    assert result.exit_code == 0 and served[0].token == "sesame-sesame"
    assert "sesame" not in result.output


def test_other_machines_are_a_note(served: list[RewardServer], rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "model", "--port", "0", "--host", "0.0.0.0")
    assert "Note: other machines can reach this, and nothing is encrypted" in result.output


@pytest.mark.parametrize("token", ["", "short", "with a space", "tokén-tokén"])
def test_a_token_that_cannot_be_used(
    served: list[RewardServer], rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", token)
    result = rlhf("serve-reward", "model", "--port", "0")
    assert result.exit_code == 2 and "The token in RLHF_REWARD_TOKEN cannot be used." in result.output
    assert not served and (not token or token not in result.output)


def test_a_port_in_use(served: list[RewardServer], rlhf: Rlhf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = rlhf("serve-reward", "model", "--port", str(port))
    assert result.exit_code == 2
    assert f"No server can be started at 127.0.0.1:{port}: Address already in use" in result.output
    assert "--port with another number" in result.output


def test_no_reward_model_there(served: list[RewardServer], rlhf: Rlhf) -> None:
    result = rlhf("serve-reward", "elsewhere", "--port", "0")
    assert result.exit_code == 2 and "elsewhere is not a reward model" in result.output
