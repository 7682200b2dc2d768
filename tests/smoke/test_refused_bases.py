"""A base that cannot be used is refused by training commands, dry and in earnest, before weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import architectures
import pytest
from typer.testing import Result

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = {
    "train-dpo": "dpo",
    "train-principle": "principle",
    "train-justifier": "justifier",
}


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.build("bloom", tmp_path_factory.mktemp("bases") / "bloom")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_base_without_sdpa(
    command: str,
    dry: tuple[str, ...],
    bloom: Path,
    rlhf_command: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlhf.models.loading._load", lambda *_, **__: pytest.fail("weights were loaded"))
    result = rlhf_command(
        command,
        CONFIGS / COMMANDS[command] / "demo.yaml",
        f"model.base={bloom}",
        "model.max_length=256",
        "--output",
        tmp_path / "run",
        *dry,
    )
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    # The cause and a fix, and not the advice for a base that is not found.
    message = " ".join(result.stderr.split("Error: ")[1].split())
    assert "scaled_dot_product_attention" in message and "Do this: " in message
    assert "hf download" not in message
