"""Steps after training: all of them run, and failures are raised once at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.core.errors import ModelError, RunError
from rlhf.runs.after import AfterTraining


def broken() -> int:
    raise ValueError("no space for the picture")


def test_every_step_runs_and_failures_are_raised_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def refused() -> int:
        raise ModelError("pad is eos", fix="another pad")

    with pytest.raises(RunError) as caught, AfterTraining() as after:  # noqa: PT012 - raised by __exit__
        assert after.run("evaluation", refused) is None
        assert after.on_main("picture", broken) is None
        after.run("card", lambda: ran.append("card"))
        after.fail("self-check", "scores move")
    assert ran == ["card"] and caught.value.exit_code == 1
    assert [failure.step for failure in after.failures] == ["evaluation", "picture", "self-check"]
    assert "pad is eos" in caught.value.found and "no space for the picture" in caught.value.found
    assert "--resume" in caught.value.fix
    trace = capsys.readouterr().err  # a bug has a traceback, a user error has none
    assert "ValueError" in trace and "ModelError" not in trace


def test_a_step_is_skipped_if_an_earlier_one_failed_to_write_what_it_needs(tmp_path: Path) -> None:
    after, missing = AfterTraining(), tmp_path / "eval.json"
    assert after.run("card", lambda: 1, needs=missing) == 1  # no step has failed: the work says what is wrong
    after.fail("eval.json", "the disk is full")
    assert after.run("summary", broken, needs=missing) is None
    assert after.on_main("summary", broken, needs=missing) is None
    assert [failure.step for failure in after.failures] == ["eval.json"]
    missing.touch()
    assert after.on_main("summary", lambda: 2, needs=missing) == 2


def test_without_failures_nothing_is_raised_and_other_errors_pass() -> None:
    with AfterTraining() as after:
        assert after.run("step", lambda: 1) == 1
    with pytest.raises(KeyboardInterrupt), AfterTraining() as after:  # noqa: PT012
        after.fail("step", "reason")
        raise KeyboardInterrupt


def test_after_a_failed_collective_step_further_ones_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    after = AfterTraining()
    after.run("scores", broken)
    assert after.run("other scores", lambda: 1) is None  # other processes may still wait in the first one
    assert after.on_main("card", lambda: 2) == 2
    monkeypatch.setenv("RANK", "1")
    assert after.on_main("card", lambda: 2) is None
