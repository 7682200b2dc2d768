"""Rollouts by servers, at once and one update ahead: which policy samples what, and a resume or a lost server
that change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from resuming import assert_same_run, killed_after
from typer.testing import CliRunner, Result

from policy.rollouts.servers import fleet as server_fleet
from rlhf import cli

Pair = list[Any]


@pytest.fixture(scope="module")
def start_pair(fake_vllm: Any, tiny_base: Path) -> Iterator[Callable[[], Pair]]:
    """Starts two servers with the tiny base, which load real adapters."""
    running: Pair = []

    def start() -> Pair:
        model = fake_vllm.TinyModel(tiny_base)
        pair = [fake_vllm.FakeVLLM(str(tiny_base), answer=model, max_model_len=400) for _ in range(2)]
        running.extend(pair)
        return pair

    yield start
    for server in running:
        server.kill()
        server.rest()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_fleet, "PAUSES", (0.0, 0.02, 0.05))


@dataclass
class Aligner:
    """`rlhf align-policy` with five updates, each with another learning rate."""

    config: Path

    def run(self, output: Path, servers: Pair, overlap: int, *words: str) -> Result:
        options = {
            "rollouts.engine": "servers",
            "rollouts.servers": json.dumps([server.url for server in servers]),
            "rollouts.importance_sampling": "{level: token}",
            "rollouts.overlap": overlap,
            "optimizer.schedule": "linear",
            "steps": 5,
        }
        settings = [f"{key}={value}" for key, value in options.items()]
        command = ["align-policy", str(self.config), *settings, "--output", str(output), *words]
        return CliRunner().invoke(cli.app, command, prog_name="rlhf")


@pytest.fixture(scope="module")
def align(policy_config: Path) -> Aligner:
    return Aligner(policy_config)


@pytest.fixture(scope="module")
def unbroken(
    align: Aligner, start_pair: Callable[[], Pair], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, Pair]]:
    """A run at once and one ahead, and the servers of each."""
    runs = {}
    for overlap in (0, 1):
        folder, servers = tmp_path_factory.mktemp("unbroken") / "run", start_pair()
        result = align.run(folder, servers, overlap)
        assert result.exit_code == 0, result.output
        runs[overlap] = folder, servers
    return runs


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_answers(run: Path, unbroken: Path) -> None:
    assert_same_run(run, unbroken)
    for name in ("samples.jsonl", "eval.json"):
        assert (run / name).read_text() == (unbroken / name).read_text()


def test_at_once_the_servers_sample_from_the_present_policy(unbroken: dict[int, tuple[Path, Pair]]) -> None:
    run, servers = unbroken[0]
    rows = rows_of(run)
    for row in rows:
        assert row["engine/logprob_difference_max"] < 1e-4  # the same float32 model on both sides
        assert row["engine/servers"] == 2 and row["engine/retried_prompts"] == 0
        assert "engine/lag" not in row
    assert rows[2]["engine/reference_difference"] > 1e-3
    for server in servers:
        loads = [body["lora_name"] for path, body in server.asked if path == "/v1/load_lora_adapter"]
        # The answers before and update 1 share the fresh adapter; then four updates, and the answers after.
        assert len(loads) == len(set(loads)) == 6
        assert list(server.adapters) == loads[-1:]


def test_ahead_they_sample_from_the_policy_an_update_before(unbroken: dict[int, tuple[Path, Pair]]) -> None:
    run, _ = unbroken[1]
    rows = rows_of(run)
    assert [row["engine/lag"] for row in rows] == [0, 1, 1, 1, 1]
    for row in rows:
        assert (
            row["engine/logprob_difference_max"] < 1e-4
        )  # held against the policy that sampled: no lag in it
    for row in rows[1:]:
        assert row["engine/lagged_difference"] > 100 * row["engine/logprob_difference"]
        assert row["importance/max"] > 1.001
    # The second update's answers are the fresh policy's, which is the reference.
    assert rows[1]["engine/reference_difference"] < 1e-4 < rows[2]["engine/reference_difference"]


def test_the_first_update_is_the_same_ahead_or_not(unbroken: dict[int, tuple[Path, Pair]]) -> None:
    now, ahead = (rows_of(unbroken[overlap][0]) for overlap in (0, 1))
    for name in ("reward/mean", "loss/policy", "kl/sum", "optimizer/grad_norm"):
        assert now[0][name] == ahead[0][name]
    assert now[1]["loss/policy"] != ahead[1]["loss/policy"]


@pytest.mark.parametrize("overlap", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_resumed_run_is_the_unbroken_one_whatever_servers_it_has(
    align: Aligner,
    start_pair: Callable[[], Pair],
    unbroken: dict[int, tuple[Path, Pair]],
    tmp_path: Path,
    overlap: int,
) -> None:
    run = tmp_path / "run"
    with killed_after(5):
        align.run(run, start_pair(), overlap)
    assert (run / "checkpoints" / "step-4" / "ahead.json").exists() == bool(overlap)

    servers = start_pair()
    result = align.run(run, servers, overlap, "--resume")
    assert result.exit_code == 0, result.output
    # Three prompts before and three after; the two of the fifth update are asked only where the checkpoint
    # has no answers.
    assert sum(len(server.completions) for server in servers) == (6 if overlap else 8)
    assert_same_answers(run, unbroken[overlap][0])


def test_a_server_lost_on_the_way_changes_no_answer(
    align: Aligner, start_pair: Callable[[], Pair], unbroken: dict[int, tuple[Path, Pair]], tmp_path: Path
) -> None:
    servers, seen = start_pair(), set()

    def die(request: Any) -> None:
        seen.add(request["model"])
        if len(seen) == 3:  # in the third update
            seen.add("killed")
            servers[1].kill()

    servers[1].disturb = die
    result = align.run(tmp_path / "run", servers, 0)
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"Rollout server \S+ is lost", result.output)) == 1
    rows = rows_of(tmp_path / "run")
    assert [row["engine/servers"] for row in rows] == [2, 2, 1, 1, 1]
    assert [row["engine/retried_prompts"] for row in rows] == [0, 0, 1, 0, 0]
    for name in ("samples.jsonl", "eval.json"):
        assert (tmp_path / "run" / name).read_text() == (unbroken[0][0] / name).read_text()


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_server_that_ignores_the_adapter_is_found_out(
    align: Aligner, start_pair: Callable[[], Pair], tmp_path: Path, overlap: int
) -> None:
    servers = start_pair()
    for server in servers:
        server.answer = lambda adapter, request, answer=server.answer: answer(None, request)
    result = align.run(tmp_path / "run", servers, overlap)
    assert result.exit_code == 1
    assert f"reference at update {2 + overlap}" in result.output
