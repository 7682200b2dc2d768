from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import distributed

from rlhf import cli
from rlhf.core.errors import ConfigError, DataError
from rlhf.distributed import processes


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")


def test_a_single_process_is_the_main_one_and_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.per_rank(7, "batch_size") == 7
    assert list(processes.shard("abc")) == ["a", "b", "c"]
    assert processes.all_gather(5) == [5]
    assert processes.from_main(lambda: 3) == 3


@pytest.mark.usefixtures("second_of_three")
def test_what_falls_to_one_of_three() -> None:
    assert not processes.is_main()
    assert processes.per_rank(12, "batch_size") == 4
    assert list(processes.shard([0, 1, 2, 3, 4, 5, 6])) == [1, 4]


@pytest.mark.usefixtures("second_of_three")
def test_what_cannot_be_dealt_out_is_refused_with_the_next_size_that_can() -> None:
    with pytest.raises(ConfigError) as caught:
        processes.per_rank(64, "stages.0.batch_size")
    assert caught.value.found == "stages.0.batch_size is 64, over all processes, and there are 3 of them."
    assert caught.value.fix.startswith("stages.0.batch_size=66")


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6])
def test_rows_are_dealt_out_and_back(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for index in range(3):
        monkeypatch.setenv("RANK", str(index))
        parts.append(processes.shard(range(rows)))
    assert processes.unshard(parts) == list(range(rows))


def test_an_error_in_the_main_process_flies() -> None:
    def fails() -> None:
        raise DataError("a torn row", fix="mend it")

    with pytest.raises(DataError, match="a torn row"):
        processes.on_main(fails)


@pytest.mark.usefixtures("second_of_three")
def test_followers_do_not_print(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    processes.silence_other_ranks()
    print("twice")
    sys.stdout.close()
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("second_of_three")
def test_followers_print_to_a_log_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    processes.silence_other_ranks()
    print("before there is a folder")
    sys.stdout.close()
    processes.log_other_ranks(tmp_path / "logs")
    print("Scoring the held-out pairs.")
    print("a fault", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.close()
    (file,) = (tmp_path / "logs").iterdir()
    assert file.name == "rank-1.log"
    assert file.read_text() == "Scoring the held-out pairs.\na fault\n"
    assert tuple(capsys.readouterr()) == ("", "a fault\n")


def test_the_main_process_prints_to_the_terminal(tmp_path: Path) -> None:
    processes.log_other_ranks(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_the_connection_ends_and_its_threads_get_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pauses: list[float] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.time, "sleep", pauses.append)
    processes.destroy()
    assert not pauses, "these processes never met"
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1)
    processes.destroy()
    assert not distributed.is_initialized()
    assert pauses == [processes.DESTROY_PAUSE]


@pytest.mark.parametrize(("code", "parted"), [(0, 1), (None, 1), (1, 0), (2, 0)])
def test_processes_disconnect_where_a_command_succeeded(
    monkeypatch: pytest.MonkeyPatch, code: int | None, parted: int
) -> None:
    def ends(**_: object) -> None:
        raise SystemExit(code)

    calls: list[int] = []
    monkeypatch.setattr(cli, "app", ends)
    monkeypatch.setattr(cli, "destroy", lambda: calls.append(1))
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == code
    assert len(calls) == parted
