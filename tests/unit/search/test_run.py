"""A search through the real command, its trials by a tiny script: results, mistakes, pruning, kills,
company."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from typer.testing import Result

from rlhf.search import storage
from rlhf.search.run import Search

Rlhf = Callable[..., Result]
Write = Callable[..., Path]
RATE = "stages.0.optimizer.learning_rate"


FAST = """
from rlhf.search import attempt, storage
storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS, attempt.POLL_SECONDS = 1, {grace}, 0.05
from rlhf.cli import main
main()
"""


@pytest.fixture(autouse=True)
def fast_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 3)


def results(output: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output / "search.json").read_text())
    return result


def states(output: Path) -> list[str]:
    return [trial["state"] for trial in results(output)["trials"]]


def starts(output: Path, number: int) -> list[dict[str, Any]]:
    """How often a trial's process was started, and with what."""
    lines = (output / "trials" / str(number) / "starts").read_text().splitlines()
    return [json.loads(line) for line in lines]


def value_of(rate: float) -> float:
    """What the script makes of a learning rate."""
    return 1 - abs(math.log10(rate) + 3)


def begin(config: Path, grace: int = 3) -> subprocess.Popen[str]:
    """The search as a process of its own, with a faster heartbeat."""
    command = [sys.executable, "-c", FAST.format(grace=grace), "search", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(result: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not result():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_search_and_what_it_leaves(rlhf_command: Rlhf, write_search: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = rlhf_command("search", write_search(trials=4, overrides=["adapter.rank=4"]))
    assert result.exit_code == 0, result.output
    actual = results(out)
    assert states(out) == ["complete"] * 4
    for trial in actual["trials"]:
        expected = value_of(trial["parameters"][RATE])
        assert trial["value"] == pytest.approx(expected)
        assert trial["ci95"] == pytest.approx([expected - 0.1, expected + 0.1])
        assert f"trial {trial['number']}: " in result.stdout
    best = max(actual["trials"], key=lambda trial: trial["value"])
    assert actual["best"] == best["number"]
    rows = list(csv.DictReader((out / "search.csv").read_text().splitlines()))
    assert [float(row["value"]) for row in rows] == [trial["value"] for trial in actual["trials"]]
    # The command to paste holds the very numbers of the best trial, and the search's own overrides.
    assert actual["train"] in result.stdout
    assert f"adapter.rank=4 {RATE}={best['parameters'][RATE]!r} --output {out}-best" in actual["train"]
    page = (out / "report.html").read_text()
    assert (
        page.startswith("<!DOCTYPE html>")
        and "<script" not in page
        and f"Best: trial {best['number']}" in page
    )
    assert "<svg" in (out / "search-history.svg").read_text() and "data:image/svg+xml" in page
    assert (out / "trials" / "0.log").read_text().startswith("trial at ")


def test_the_same_command_again_starts_nothing_and_more_trials_continue(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path
) -> None:
    out, config = tmp_path / "out", write_search(trials=2)
    rlhf_command("search", config)
    first = results(out)
    again = rlhf_command("search", config)
    assert again.exit_code == 0 and results(out) == first
    more = rlhf_command("search", config, "trials=3")
    assert more.exit_code == 0 and len(starts(out, 0)) == len(starts(out, 2)) == 1
    assert results(out)["trials"][:2] == first["trials"]


def test_a_dry_run_says_what_the_first_trial_will_be(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path
) -> None:
    config = write_search(trials=1)
    output = rlhf_command("search", config, "--dry-run")
    assert output.exit_code == 0 and not (tmp_path / "out").exists()
    assert f"  {RATE}: {{low: 1.0e-05, high: 0.01, log: true}}\n" in output.stdout
    assert "The study 'search' is new." in output.stdout
    announced = float(output.stdout.split(f"{RATE}=")[1].split()[0])
    rlhf_command("search", config)
    assert results(tmp_path / "out")["trials"][0]["parameters"][RATE] == announced
    after = rlhf_command("search", config, "--dry-run").stdout
    assert "1 of 1 trials: 1 complete" in after and "No further trial would start." in after


def test_no_trial_starts_after_the_timeout(rlhf_command: Rlhf, write_search: Write, tmp_path: Path) -> None:
    result = rlhf_command("search", write_search(timeout=1e-9))
    assert result.exit_code == 0 and "0 of 3 trials" in result.stdout
    assert not (tmp_path / "out" / "trials" / "0").exists()


def test_to_minimize(rlhf_command: Rlhf, write_search: Write, tmp_path: Path) -> None:
    rlhf_command("search", write_search(objective={"metric": "overall", "direction": "minimize"}))
    result = results(tmp_path / "out")
    assert result["best"] == min(result["trials"], key=lambda trial: trial["value"])["number"]


def test_a_failed_trial_is_stored_with_its_last_lines_and_the_search_continues(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path
) -> None:
    parameters = {RATE: {"low": 1e-5, "high": 1e-2, "log": True}, "benchmark": {"choices": ["crash", "fine"]}}
    result = rlhf_command("search", write_search(parameters=parameters, trials=4, seed=6))
    assert result.exit_code == 0, result.output
    actual = results(tmp_path / "out")["trials"]
    assert {trial["state"] for trial in actual} == {"complete", "failed"}, "another seed is needed"
    for trial in actual:
        assert (trial["state"] == "failed") == (trial["parameters"]["benchmark"] == "crash")
        assert trial["reason"] == ("failed with exit code 1" if trial["state"] == "failed" else None)
    assert "ends with\n    trial at " in result.stdout and "    out of luck\n" in result.stdout


def test_a_search_without_a_single_result_has_failed(rlhf_command: Rlhf, write_search: Write) -> None:
    result = rlhf_command("search", write_search(overrides=["benchmark=crash"], trials=2))
    assert result.exit_code == 1 and "2 trials" in result.stderr


def test_a_storage_that_fails_on_the_way(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError("server closed the connection to hunter2")

    monkeypatch.setattr(Search, "wait_for_trial", gone)
    monkeypatch.setenv("SECRET", "hunter2")
    storage = f"sqlite:///{tmp_path}/${{SECRET}}.db"
    result = rlhf_command("search", write_search(trials=1, storage=storage))
    assert result.exit_code == 1 and "server closed the connection to ***" in result.stderr
    monkeypatch.undo()
    assert rlhf_command("search", write_search(trials=1)).exit_code == 0


def test_a_refused_first_trial_ends_the_search_and_a_corrected_config_continues(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path
) -> None:
    refused = rlhf_command("search", write_search(overrides=["benchmark=refuse"]))
    assert refused.exit_code == 2
    assert "    Error: row 3 is empty" in refused.stderr
    assert not (tmp_path / "out" / "trials" / "1").exists()
    corrected = rlhf_command("search", write_search(trials=2))
    assert corrected.exit_code == 0, corrected.output
    assert states(tmp_path / "out") == ["failed", "complete"]


@pytest.mark.parametrize(
    ("values", "message", "allowed"),
    [
        (
            {"objective": {"metric": "overal"}},
            "objective.metric",
            "held_out.overall",
        ),
        ({"pruning": {"metric": "validation/acc"}}, "pruning.metric", "validation/accuracy"),
    ],
)
def test_a_metric_that_is_not_there_shows_after_the_first_trial_which_is_kept(
    rlhf_command: Rlhf,
    write_search: Write,
    tmp_path: Path,
    values: dict[str, Any],
    message: str,
    allowed: str,
) -> None:
    wrong = rlhf_command("search", write_search(trials=2, **values))
    assert wrong.exit_code == 2 and message in wrong.stderr
    assert allowed in wrong.stderr.split("Allowed: ")[1]
    corrected = rlhf_command("search", write_search(trials=2))
    assert corrected.exit_code == 0, corrected.output
    assert states(tmp_path / "out") == ["complete", "complete"]
    assert len(starts(tmp_path / "out", 0)) == 1


@pytest.mark.parametrize(
    ("method", "direction"), [("median", "maximize"), ("median", "minimize"), ("halving", "maximize")]
)
def test_pruning_stops_a_bad_trial_early(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path, method: str, direction: str
) -> None:
    good, bad = (1e-3, 1.0) if direction == "maximize" else (1.0, 1e-3)
    # The objective stands the other way round from the compared metric: less of `negative` is more of
    # `overall`.
    turned = {"maximize": "minimize", "minimize": "maximize"}[direction]
    config = write_search(
        parameters={RATE: {"choices": [good, bad]}},
        overrides=[f"benchmark=hang at {bad:g}"],  # a bad trial never ends by itself
        objective={"metric": "negative", "direction": turned},
        pruning={
            "metric": "validation/accuracy",
            "direction": direction,
            "method": method,
            "warmup_updates": 2,
            "startup_trials": 1,
        },
        seed=6,  # draws good, bad, good
    )
    result = rlhf_command("search", config)
    assert result.exit_code == 0, result.output
    first, second, third = results(tmp_path / "out")["trials"]
    assert [trial["parameters"][RATE] for trial in (first, second, third)] == [good, bad, good]
    assert [first["state"], second["state"], third["state"]] == ["complete", "pruned", "complete"]
    assert (second["updates"], second["value"]) == (
        2,
        None,
    )  # not before the warm-up, and as soon as it is over
    assert not (tmp_path / "out" / "trials" / "1" / "eval.json").exists()
    assert "trial 1: pruned at update 2; " in result.stdout
    with pytest.raises(ProcessLookupError):
        os.kill(starts(tmp_path / "out", 1)[0]["pid"], 0)


@pytest.mark.parametrize("orphan", ["lives on", "is killed too"])
def test_killed_and_started_again(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path, orphan: str
) -> None:
    out, config, hold = tmp_path / "out", write_search(), tmp_path / "hold-1"
    hold.touch()
    search = begin(config)
    wait_for((out / "trials" / "1" / "metrics.jsonl").exists)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert states(out) == ["complete"]  # as it was written after trial 0
    if orphan == "is killed too":
        os.kill(starts(out, 1)[0]["pid"], signal.SIGKILL)
        hold.unlink()
        result = rlhf_command("search", config)
        assert result.exit_code == 0, result.output
        assert f"trial 1: was interrupted; resuming it in {out}/trials/1" in result.stdout
        first, second = starts(out, 1)
        assert (first["resume"], second["resume"]) == (False, True)
        assert first["learning_rate"] == second["learning_rate"]
    else:
        again = begin(config)
        assert again.stdout is not None
        lines = again.stdout.readline() + again.stdout.readline()
        assert "trial 1: still running, started by a search that was killed" in lines
        assert not (out / "trials" / "2").exists()  # two trials at once may not fit on one GPU
        hold.unlink()
        output, _ = again.communicate(timeout=60)
        assert again.returncode == 0, output
        assert [start["resume"] for start in starts(out, 1)] == [False]
    assert states(out) == ["complete"] * 3
    assert len(starts(out, 0)) == len(starts(out, 2)) == 1
    unbroken = rlhf_command("search", config, "--output", tmp_path / "unbroken")
    assert unbroken.exit_code == 0, unbroken.output
    keep = ("number", "value", "parameters")
    assert [[trial[key] for key in keep] for trial in results(out)["trials"]] == [
        [trial[key] for key in keep] for trial in results(tmp_path / "unbroken")["trials"]
    ]


def test_sigterm_stops_the_trial_and_leaves_it_open(write_search: Write, tmp_path: Path) -> None:
    out, hold = tmp_path / "out", tmp_path / "hold-0"
    hold.touch()
    search = begin(write_search())
    wait_for((out / "trials" / "0" / "metrics.jsonl").exists)
    search.send_signal(signal.SIGTERM)
    output, _ = search.communicate(timeout=60)
    assert search.returncode == 130
    assert "Interrupted: the trial stays open. To resume: rlhf search" in output and "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.kill(starts(out, 0)[0]["pid"], 0)


def test_signal_handlers_are_restored(rlhf_command: Rlhf, write_search: Write) -> None:
    before = signal.getsignal(signal.SIGTERM)
    rlhf_command("search", write_search(timeout=1e-9))
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_processes_share_a_study(write_search: Write, tmp_path: Path) -> None:
    config = write_search(trials=6)
    searches = [begin(config, grace=30), begin(config, grace=30)]  # a busy machine delays heartbeats
    output = [search.communicate(timeout=120)[0] for search in searches]
    assert [search.returncode for search in searches] == [0, 0], output
    out = tmp_path / "out"
    assert [trial["number"] for trial in results(out)["trials"]] == list(range(6))
    assert states(out).count("complete") == 6
    assert all(len(starts(out, number)) == 1 for number in range(6))
    assert len({trial["parameters"][RATE] for trial in results(out)["trials"]}) == 6
    for number in range(6):  # each was run and reported by one of them
        assert sum(f"\ntrial {number}: " in f"\n{printed}" for printed in output) == 1


def test_the_storage_secret_is_written_nowhere(
    rlhf_command: Rlhf, write_search: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hunter2"
    folder.mkdir()
    monkeypatch.setenv("STORAGE_SECRET", "hunter2")
    config = write_search(storage=f"sqlite:///{tmp_path}/${{STORAGE_SECRET}}/study.db", trials=1)
    result = rlhf_command("search", config)
    assert result.exit_code == 0 and (folder / "study.db").exists(), result.output
    assert "hunter2" not in result.output
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 5 and not [file for file in files if b"hunter2" in file.read_bytes()]


def test_folders_that_are_not_this_search(rlhf_command: Rlhf, write_search: Write, tmp_path: Path) -> None:
    out, config = tmp_path / "out", write_search(trials=1)
    out.mkdir()
    (out / "notes.txt").write_text("notes")
    result = rlhf_command("search", config)
    assert result.exit_code == 2 and f"{out} " in result.stderr
    assert [file.name for file in out.iterdir()] == ["notes.txt"]
