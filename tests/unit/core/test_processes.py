from __future__ import annotations

import sys

import pytest

from rlhf.core import processes
from rlhf.core.errors import ConfigError, DataError


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")


def test_a_single_process_is_the_main_one_and_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.index(), processes.count(), processes.is_main()) == (0, 1, True)
    assert processes.share(7, "batch_size") == 7
    assert list(processes.mine("abc")) == ["a", "b", "c"]
    assert processes.gathered(5) == [5]
    assert processes.from_main(lambda: 3) == 3


@pytest.mark.usefixtures("second_of_three")
def test_what_falls_to_one_of_three() -> None:
    assert not processes.is_main()
    assert processes.share(12, "batch_size") == 4
    assert list(processes.mine([0, 1, 2, 3, 4, 5, 6])) == [1, 4]


@pytest.mark.usefixtures("second_of_three")
def test_what_cannot_be_dealt_out_is_refused_with_the_next_size_that_can() -> None:
    with pytest.raises(ConfigError) as caught:
        processes.share(64, "stages.0.batch_size")
    assert caught.value.found == "stages.0.batch_size is 64, over all processes, and there are 3 of them."
    assert caught.value.fix.startswith("stages.0.batch_size=66")


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6])
def test_rows_are_dealt_out_and_back(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for index in range(3):
        monkeypatch.setenv("RANK", str(index))
        parts.append(processes.mine(range(rows)))
    assert processes.dealt_back(parts) == list(range(rows))


def test_an_error_in_the_main_process_flies() -> None:
    def fails() -> None:
        raise DataError("a torn row", fix="mend it")

    with pytest.raises(DataError, match="a torn row"):
        processes.on_main(fails)


@pytest.mark.usefixtures("second_of_three")
def test_followers_do_not_print(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    processes.hush_followers()
    print("twice")
    sys.stdout.close()
    assert capsys.readouterr().out == ""
