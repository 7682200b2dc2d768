"""Two processes compute the same as one, also after a resume in another number of processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Together = tuple[Path, list[dict[str, Mapping[str, Any]]]]
Here = Callable[[Mapping[str, Any]], Mapping[str, Any]]
MEASURED = ("time/", "memory/", "engine/tokens_per_second")  # measured
PACKED = ("tokens/computed",)  # shared prefixes depend on which trees are packed in a row
ZERO3 = pytest.param("zero3", marks=pytest.mark.slow)
DDP_REST = pytest.param("ddp-rest", marks=pytest.mark.slow)
FSDP2_REST = pytest.param("fsdp2-rest", marks=pytest.mark.slow)
EVERY = pytest.mark.parametrize("together", ["ddp", "fsdp2", ZERO3], indirect=True)
SHARDED = pytest.mark.parametrize("together", ["fsdp2", ZERO3], indirect=True)
REST = pytest.mark.parametrize("together", [DDP_REST, "fsdp2", ZERO3], indirect=True)
WHOLE = pytest.mark.parametrize("together", [DDP_REST, "fsdp2"], indirect=True)
CLOSE = 2e-5
"""Tolerance, relative or absolute, for about ten float32 sums in another order."""
CLOSE_WEIGHTS = 5e-5
"""Tolerance of a weight: for gradients near zero AdamW's first steps depend on rounding. 2.2e-5 on one
processor, below 2e-5 on others."""
CLOSE_IN_EPOCHS = 1e-3
"""Tolerance of PPO, which takes several steps of 1e-2 per update."""


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def figures(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED + PACKED)}
        for row in rows(run / "metrics.jsonl")
    ]


def assert_same_run(
    run: Path, other: Path, close: float = CLOSE, file: str = "adapter_model.safetensors"
) -> None:
    ours, theirs = figures(run), figures(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row.pop("stage", None) == expected.pop("stage", None)
        assert row == pytest.approx(expected, rel=close, abs=close)
    left, right = (load_file(folder / "final" / file) for folder in (run, other))
    assert left.keys() == right.keys()
    largest = max((left[name] - right[name]).abs().max().item() for name in left)
    assert largest < max(close, CLOSE_WEIGHTS)


@EVERY
@pytest.mark.parametrize("kind", ["reward", "policy"])
def test_two_processes_compute_the_same_as_one(together: Together, alone: Path, kind: str) -> None:
    assert_two_equal_one(together, alone, kind, CLOSE)


@REST
def test_two_processes_compute_the_same_as_one_with_a_critic(together: Together, alone: Path) -> None:
    assert_two_equal_one(together, alone, "ppo", CLOSE_IN_EPOCHS)


def assert_two_equal_one(together: Together, alone: Path, kind: str, close: float) -> None:
    folder, outcomes = together
    assert [outcome[kind]["exit"] for outcome in outcomes] == [0, 0]
    assert json.loads((folder / kind / "environment.json").read_text())["processes"] == 2
    assert_same_run(folder / kind, alone / kind, close)
    (log,) = (folder / kind / "logs").iterdir()
    assert log.name == "rank-1.log" and "rows read" in log.read_text()


@EVERY
def test_a_signal_to_one_process_stops_both_after_the_same_update(
    together: Together, alone: Path, here: Here, words: Any
) -> None:
    folder, outcomes = together
    run = folder / "signalled"
    assert [outcome["signalled"]["exit"] for outcome in outcomes] == [143, 143]
    assert [row["step"] for row in figures(run)] == [1, 2]
    assert (run / "checkpoints" / "step-2").exists() and not (run / "final").exists()
    assert not list(run.rglob("*.half-written"))
    assert here({"words": [*words("policy", run), "--resume"]})["exit"] == 0
    assert_same_run(run, alone / "policy")


@WHOLE
def test_all_weights_are_trained_as_in_one_process(together: Together, alone: Path) -> None:
    folder, outcomes = together
    assert [outcome["whole"]["exit"] for outcome in outcomes] == [0, 0]
    sharded = folder.name.startswith("fsdp2")  # the policy and the frozen copy, in every pass
    assert [set(outcome["whole"]["sharded"]) for outcome in outcomes] == [{sharded}] * 2
    assert_same_run(folder / "whole", alone / "whole", file="model.safetensors")


@pytest.mark.parametrize("together", [ZERO3], indirect=True)
def test_deepspeed_is_refused_where_all_weights_are_trained(together: Together) -> None:
    for outcome in together[1]:
        assert outcome["whole"]["exit"] == 2
        assert "all weights are trained, and the launcher asks for DeepSpeed" in outcome["whole"]["output"]


@SHARDED
def test_a_4_bit_base_is_sharded(together: Together, alone: Path) -> None:
    folder, outcomes = together
    assert [outcome["qlora"]["exit"] for outcome in outcomes] == [0, 0]
    # The model of the run and of the scorer, both with sharded 4-bit weights.
    assert [outcome["qlora"]["sharded"] for outcome in outcomes] == [[True, True]] * 2
    # bfloat16 sums in another order round differently; losses are float32.
    assert_same_run(folder / "qlora", alone / "qlora", close=5e-3)


@EVERY
def test_weights_are_sharded_if_the_launcher_requests_it(together: Together) -> None:
    folder, outcomes = together
    expected = not folder.name.startswith("ddp")
    for outcome in outcomes:
        assert outcome["reward"]["sharded"]
        assert outcome["policy"]["sharded"]
        assert set(outcome["reward"]["sharded"] + outcome["policy"]["sharded"]) == {expected}


@EVERY
def test_held_out_metrics_equal_those_of_one_process(together: Together, alone: Path) -> None:
    folder, _ = together
    pairs = [json.loads((run / "reward" / "eval.json").read_text()) for run in (folder, alone)]
    assert pairs[0]["subsets"] == pairs[1]["subsets"]
    answers = [json.loads((run / "policy" / "eval.json").read_text()) for run in (folder, alone)]
    for when in ("before", "after"):
        assert answers[0][when] == pytest.approx(answers[1][when], rel=CLOSE, abs=CLOSE)
    prompts = [[answer["prompt"] for answer in evaluation["answers"]] for evaluation in answers]
    assert prompts[0] == prompts[1]


@EVERY
def test_samples_contain_the_answers_of_all_processes_in_order(together: Together, alone: Path) -> None:
    folder, _ = together
    ours, theirs = (rows(run / "policy" / "samples.jsonl") for run in (folder, alone))
    assert len(ours) == 3 * 4 * 3  # updates, prompts, answers
    for row, expected in zip(ours, theirs, strict=True):
        for name in ("step", "prompt", "answer"):
            assert row[name] == expected[name]
        for name in ("reward", "kl"):
            assert row[name] == pytest.approx(expected[name], rel=CLOSE, abs=CLOSE)


@pytest.mark.parametrize("together", [DDP_REST, FSDP2_REST, ZERO3], indirect=True)
def test_a_reward_run_killed_in_one_process_resumes_in_two(together: Together, alone: Path) -> None:
    assert_resumed_in_two(together, alone, "reward")


@REST
def test_a_policy_run_killed_in_one_process_resumes_in_two(together: Together, alone: Path) -> None:
    assert_resumed_in_two(together, alone, "policy")


def assert_resumed_in_two(together: Together, alone: Path, kind: str) -> None:
    folder, outcomes = together
    assert [outcome[f"resumed-{kind}"]["exit"] for outcome in outcomes] == [0, 0]
    assert_same_run(folder / f"resumed-{kind}", alone / kind)


@SHARDED
def test_a_reward_run_killed_in_two_processes_resumes_in_one(
    together: Together, alone: Path, here: Here, words: Callable[..., list[str]]
) -> None:
    assert_resumed_in_one(together, alone, here, words, "reward")


@pytest.mark.parametrize("together", [FSDP2_REST, ZERO3], indirect=True)
def test_a_policy_run_killed_in_two_processes_resumes_in_one(
    together: Together, alone: Path, here: Here, words: Callable[..., list[str]]
) -> None:
    assert_resumed_in_one(together, alone, here, words, "policy")


def assert_resumed_in_one(
    together: Together, alone: Path, here: Here, words: Callable[..., list[str]], kind: str
) -> None:
    folder, outcomes = together
    assert [outcome[f"killed-{kind}"]["exit"] for outcome in outcomes] == ["killed", "killed"]
    assert here({"words": [*words(kind, folder / f"killed-{kind}"), "--resume"]})["exit"] == 0
    assert_same_run(folder / f"killed-{kind}", alone / kind)


@pytest.mark.parametrize("together", [FSDP2_REST, ZERO3], indirect=True)
def test_answers_are_sampled_from_the_sharded_model(together: Together) -> None:
    folder, outcomes = together
    assert [outcome["sampled"]["exit"] for outcome in outcomes] == [0, 0]
    assert len(rows(folder / "sampled" / "samples.jsonl")) == 4 * 3


@EVERY
def test_a_batch_that_cannot_be_split_is_refused(together: Together) -> None:
    folder, outcomes = together
    for outcome in outcomes:
        assert outcome["refused"]["exit"] == 2
        assert "stages.1.batch_size is 3" in outcome["refused"]["output"]
        assert "stages.1.batch_size=4" in outcome["refused"]["output"]
    assert not list((folder / "refused").glob("*"))


@EVERY
def test_an_error_of_the_main_process_is_raised_in_all(together: Together) -> None:
    _, outcomes = together
    for outcome in outcomes:
        assert outcome["occupied"]["exit"] == 2
        assert (
            "not a run folder" in outcome["occupied"]["output"]
            or "not empty" in outcome["occupied"]["output"]
        )
