"""A policy that is judged by a language model behind a real HTTP server, through the real command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, serving, shown
from typer.testing import Result

Rlhf = Callable[..., Result]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("RLHF_JUDGE_TOKEN", raising=False)
    with serving() as running:
        yield running


def words(server: Server, **judge: Any) -> list[str]:
    """Overrides of a config: two updates, judged by the server, with no pause between attempts."""
    source = {"url": server.url, "model": "judge", "retries": 0, **judge}
    return [f"reward={json.dumps({'judge': source})}", "steps=2", "save_every=1"]


def first_place(content: str, number: int) -> str:
    """A judge that gives the response shown first two points more."""
    return f"\\boxed{{4, {2 if len(shown(content)) == 2 else 0}}} \\boxed{{1}}"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_judges_bias_agreement_and_cost_are_logged_and_reported(
    rlhf_command: Rlhf, policy_config: Path, tiny_reward: Path, server: Server, tmp_path: Path
) -> None:
    server.reply = first_place
    run = tmp_path / "run"
    held_out = f"held_out_reward={tiny_reward}"
    judge = words(server, pairing="all", dollars_per_million=[1, 10])
    done = rlhf_command("align-policy", policy_config, *judge, held_out, "--output", run)
    assert done.exit_code == 0, done.output
    row = metrics(run)[0]
    # Two prompts with three answers each: three pairs in both orders; equal pairs are sent once.
    assert row["judge/requests"] == 2 * 3 * 2
    assert (row["judge/position_bias"], row["judge/order_agreement"], row["judge/unparsed"]) == (2.0, 0.0, 0)
    sent = row["judge/requests"] - row["judge/cached"]
    assert row["judge/dollars"] == pytest.approx(sent * (10 * 1 + 2 * 10) / 1e6)
    assert row["judge/seconds"] > 0
    assert rlhf_command("report", run, "--output", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "The judge gives the answer shown first" in page
    assert "Position bias of the judge" in page


def test_texts_without_a_verdict_end_the_run_or_are_counted(
    rlhf_command: Rlhf, policy_config: Path, server: Server, tmp_path: Path
) -> None:
    server.reply = lambda content, number: "I like it." if number % 3 == 0 else "\\boxed{4}"
    ended = rlhf_command("align-policy", policy_config, *words(server), "--output", tmp_path / "ended")
    assert (ended.exit_code, "Traceback" in ended.output) == (1, False), ended.output
    assert "I like it." in ended.output
    dropping = [*words(server, concurrency=1), "reward_shaping.missing=drop"]
    done = rlhf_command("align-policy", policy_config, *dropping, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    rows = metrics(tmp_path / "run")
    assert sum(row["reward/missing"] for row in rows) > 0
    assert all(row["reward/mean"] == 4.0 for row in rows), "no score is made up"


def test_a_token_that_is_refused_within_the_run(
    rlhf_command: Rlhf, policy_config: Path, server: Server, tmp_path: Path
) -> None:
    server.reply = lambda content, number: (401, {})  # the list of models needed none
    done = rlhf_command("align-policy", policy_config, *words(server), "--output", tmp_path / "run")
    assert (done.exit_code, "Traceback" in done.output) == (2, False), done.output
    assert server.url in "".join(done.output.split())


def test_after_a_time_out_the_run_resumes_with_a_longer_one(
    rlhf_command: Rlhf, policy_config: Path, server: Server, tmp_path: Path
) -> None:
    def slow_from_the_seventh(content: str, number: int) -> str:
        if number > 6:  # the second update's answers
            time.sleep(0.6)
        return "\\boxed{4}"

    server.reply = slow_from_the_seventh
    run = tmp_path / "run"
    done = rlhf_command("align-policy", policy_config, *words(server, timeout=0.3), "--output", run)
    assert (done.exit_code, "judge.timeout" in done.output) == (1, True), done.output
    server.reply = lambda content, number: "\\boxed{4}"
    patient = words(server, timeout=20)
    done = rlhf_command("align-policy", policy_config, *patient, "--output", run, "--resume")
    assert done.exit_code == 0, done.output
    assert [row["step"] for row in metrics(run)] == [1, 2]
