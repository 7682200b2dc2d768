"""Several runs on one page, and watching them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.commands import report as command
from rlhf.core.errors import DataError
from rlhf.report.comparisons.several import differences, names_of, write_several
from rlhf.report.files import read_run
from rlhf.report.page import flat
from rlhf.runs.folder import LOCK, in_use


def test_names_are_as_short_as_they_can_be() -> None:
    assert names_of([Path("/r/a"), Path("/r/b")]) == ["a", "b"]
    assert names_of([Path("/r/a/policy"), Path("/r/b/policy")]) == ["a/policy", "b/policy"]
    assert names_of([Path("/r/a"), Path("/r/a")]) == ["a (1)", "a (2)"]


def test_only_differing_keys_are_listed(tmp_path: Path) -> None:
    for name, text in (
        ("a", "seed: 1\nadapter: {rank: 4}\n"),
        ("b", "seed: 1\nadapter: {rank: 8}\nsteps: 3\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"output: {name}\n{text}")
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    assert differences(runs) == [("adapter.rank", ["4", "8"]), ("steps", ["–", "3"])]


def test_too_many_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        write_several([tmp_path] * 6)
    assert "rlhf frontier" in refused.value.fix


def test_a_run_is_watched_until_its_process_ends(
    tmp_path: Path, rlhf_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    (tmp_path / "config.yaml").write_text("reward: none\nsteps: 10\n")
    page = tmp_path / "report.html"
    assert "nothing to watch" in rlhf_command("report", "--watch", tmp_path).output
    assert 'data-live=""' in page.read_text()
    lock = (tmp_path / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert in_use(tmp_path)
    seen = []

    def sleep(_: float) -> None:
        seen.append('data-live="10"' in page.read_text())
        if len(seen) == 2:
            lock.close()

    monkeypatch.setattr(command.time, "sleep", sleep)
    done = rlhf_command("report", "--watch", tmp_path)
    assert done.exit_code == 0, done.output
    assert seen == [True, True] and 'data-live=""' in page.read_text()


def test_values_are_spelled_as_in_a_config() -> None:
    rows = flat({"a": {"clip": None, "compat": True}, "b": [], "c": [1, None, "x"]})
    assert rows == [("a.clip", "null"), ("a.compat", "true"), ("b", "[]"), ("c", "1, null, x")]
