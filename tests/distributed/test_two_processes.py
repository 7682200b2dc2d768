"""Two processes compute what one does: losses, figures, answers and weights, also when a killed run goes on in another number."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Together = tuple[Path, list[dict[str, Mapping[str, Any]]]]
MEASURED = ("time/", "memory/", "engine/tokens_per_second")  # what a clock or a gauge says
LAID = ("tokens/computed",)  # what trees share depends on which of them stand in a row together
ZERO3 = pytest.param("zero3", marks=pytest.mark.slow)
EVERY = pytest.mark.parametrize("together", ["ddp", "fsdp2", ZERO3], indirect=True)
SHARDED = pytest.mark.parametrize("together", ["fsdp2", ZERO3], indirect=True)
WHOLE = pytest.mark.parametrize("together", ["ddp", "fsdp2"], indirect=True)
CLOSE = 2e-5
"""Sums of float32 in another order: relative to a figure, or to 1 where it is smaller; some ten of them follow one another."""
CLOSE_WEIGHTS = 5e-5
"""The same of a weight: where a gradient is next to nothing, AdamW's first steps follow its rounding. 2.2e-5 on one processor, below 2e-5 on others."""
CLOSE_IN_EPOCHS = 1e-3
"""The same of PPO, which makes several steps of 1e-2 an update: where a gradient is next to nothing, AdamW's first ones follow its rounding."""


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def figures(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED + LAID)}
        for row in rows(run / "metrics.jsonl")
    ]


def assert_same_run(
    run: Path, other: Path, close: float = CLOSE, file: str = "adapter_model.safetensors"
) -> None:
    ours, theirs = figures(run), figures(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert one.pop("stage", None) == two.pop("stage", None)
        assert one == pytest.approx(two, rel=close, abs=close)
    left, right = (load_file(folder / "final" / file) for folder in (run, other))
    assert left.keys() == right.keys()
    furthest = max((left[name] - right[name]).abs().max().item() for name in left)
    assert furthest < max(close, CLOSE_WEIGHTS)


@EVERY
@pytest.mark.parametrize("kind", ["reward", "policy", "ppo"])
def test_two_processes_give_the_numbers_of_one(together: Together, alone: Path, kind: str) -> None:
    folder, outcomes = together
    assert [own[kind]["exit"] for own in outcomes] == [0, 0]
    assert json.loads((folder / kind / "environment.json").read_text())["processes"] == 2
    assert_same_run(folder / kind, alone / kind, CLOSE_IN_EPOCHS if kind == "ppo" else CLOSE)
    (log,) = (folder / kind / "logs").iterdir()
    assert log.name == "rank-1.log" and "rows read" in log.read_text()


@EVERY
def test_a_signal_to_one_process_ends_both_after_the_same_update(
    together: Together, alone: Path, here: Callable[[Mapping[str, Any]], Mapping[str, Any]], words: Any
) -> None:
    folder, outcomes = together
    run = folder / "signalled"
    assert [own["signalled"]["exit"] for own in outcomes] == [143, 143]
    assert [row["step"] for row in figures(run)] == [1, 2]
    assert (run / "checkpoints" / "step-2").exists() and not (run / "final").exists()
    assert not list(run.rglob("*.half-written"))
    assert here({"words": [*words("policy", run), "--resume"]})["exit"] == 0
    assert_same_run(run, alone / "policy")


@WHOLE
def test_all_weights_are_trained_as_in_one_process(together: Together, alone: Path) -> None:
    folder, outcomes = together
    assert [own["whole"]["exit"] for own in outcomes] == [0, 0]
    sharded = folder.name.startswith("fsdp2")  # the policy and the frozen copy, whenever they are asked
    assert [set(own["whole"]["sharded"]) for own in outcomes] == [{sharded}] * 2
    assert_same_run(folder / "whole", alone / "whole", file="model.safetensors")


@pytest.mark.parametrize("together", [ZERO3], indirect=True)
def test_deepspeed_is_refused_where_all_weights_are_trained(together: Together) -> None:
    for own in together[1]:
        assert own["whole"]["exit"] == 2
        assert "all weights are trained, and the launcher asks for DeepSpeed" in own["whole"]["output"]


@SHARDED
def test_a_4_bit_base_is_dealt_out_too(together: Together, alone: Path) -> None:
    folder, outcomes = together
    assert [own["qlora"]["exit"] for own in outcomes] == [0, 0]
    # The run's own model and the scorer's; both with packed 4-bit weights, of which no process holds all.
    assert [own["qlora"]["sharded"] for own in outcomes] == [[True, True]] * 2
    # bfloat16 rounds sums that are made in another order; losses are float32 again.
    assert_same_run(folder / "qlora", alone / "qlora", close=5e-3)


@EVERY
def test_weights_are_dealt_out_where_that_is_asked_for(together: Together) -> None:
    folder, outcomes = together
    expected = not folder.name.startswith("ddp")
    for own in outcomes:
        assert own["reward"]["sharded"]
        assert own["policy"]["sharded"]
        assert set(own["reward"]["sharded"] + own["policy"]["sharded"]) == {expected}


@EVERY
def test_the_held_out_figures_are_those_of_one_process(together: Together, alone: Path) -> None:
    folder, _ = together
    pairs = [json.loads((run / "reward" / "eval.json").read_text()) for run in (folder, alone)]
    assert pairs[0]["subsets"] == pairs[1]["subsets"]
    answers = [json.loads((run / "policy" / "eval.json").read_text()) for run in (folder, alone)]
    for when in ("before", "after"):
        assert answers[0][when] == pytest.approx(answers[1][when], rel=CLOSE, abs=CLOSE)
    asked = [[one["prompt"] for one in told["answers"]] for told in answers]
    assert asked[0] == asked[1]


@EVERY
def test_samples_hold_the_answers_of_all_processes_in_their_order(together: Together, alone: Path) -> None:
    folder, _ = together
    ours, theirs = (rows(run / "policy" / "samples.jsonl") for run in (folder, alone))
    assert len(ours) == 3 * 4 * 3  # updates, prompts, answers
    for one, two in zip(ours, theirs, strict=True):
        assert (one["step"], one["prompt"], one["answer"]) == (two["step"], two["prompt"], two["answer"])
        assert [one["reward"], one["kl"]] == pytest.approx([two["reward"], two["kl"]], rel=CLOSE, abs=CLOSE)


@EVERY
@pytest.mark.parametrize("kind", ["reward", "policy"])
def test_a_run_killed_in_one_process_goes_on_in_two(together: Together, alone: Path, kind: str) -> None:
    folder, outcomes = together
    assert [own[f"resumed-{kind}"]["exit"] for own in outcomes] == [0, 0]
    assert_same_run(folder / f"resumed-{kind}", alone / kind)


@SHARDED
@pytest.mark.parametrize("kind", ["reward", "policy"])
def test_a_run_killed_in_two_processes_goes_on_in_one(
    together: Together,
    alone: Path,
    here: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    words: Callable[..., list[str]],
    kind: str,
) -> None:
    folder, outcomes = together
    assert [own[f"killed-{kind}"]["exit"] for own in outcomes] == ["killed", "killed"]
    assert here({"words": [*words(kind, folder / f"killed-{kind}"), "--resume"]})["exit"] == 0
    assert_same_run(folder / f"killed-{kind}", alone / kind)


@SHARDED
def test_answers_are_sampled_by_the_model_as_it_is_dealt_out(together: Together) -> None:
    folder, outcomes = together
    assert [own["sampled"]["exit"] for own in outcomes] == [0, 0]
    assert len(rows(folder / "sampled" / "samples.jsonl")) == 4 * 3


@EVERY
def test_a_batch_that_cannot_be_dealt_out_is_refused(together: Together) -> None:
    folder, outcomes = together
    for own in outcomes:
        assert own["refused"]["exit"] == 2
        assert (
            "stages.1.batch_size is 3, over all processes, and there are 2 of them"
            in own["refused"]["output"]
        )
        assert "stages.1.batch_size=4" in own["refused"]["output"]
    assert not list((folder / "refused").glob("*"))


@EVERY
def test_what_the_main_process_is_refused_all_are(together: Together) -> None:
    _, outcomes = together
    for own in outcomes:
        assert own["occupied"]["exit"] == 2
        assert "cannot be resumed" in own["occupied"]["output"] or "not empty" in own["occupied"]["output"]
