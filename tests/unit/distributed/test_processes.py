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


def test_a_single_process_is_the_main_one_and_has_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.per_rank(7, "batch_size") == 7
    assert list(processes.shard("abc")) == ["a", "b", "c"]
    assert processes.all_gather(5) == [5]
    assert processes.from_main(lambda: 3) == 3


@pytest.mark.usefixtures("second_of_three")
def test_shard_of_one_of_three_processes() -> None:
    assert not processes.is_main()
    assert processes.per_rank(12, "batch_size") == 4
    assert list(processes.shard([0, 1, 2, 3, 4, 5, 6])) == [1, 4]


@pytest.mark.usefixtures("second_of_three")
def test_a_batch_size_that_is_not_a_multiple_is_refused_with_the_next_multiple() -> None:
    with pytest.raises(ConfigError) as caught:
        processes.per_rank(64, "stages.0.batch_size")
    assert "stages.0.batch_size" in caught.value.found and "64" in caught.value.found
    assert "3" in caught.value.allowed
    assert caught.value.fix.startswith("stages.0.batch_size=66")


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 6])
def test_unshard_is_the_inverse_of_shard(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    shards = []
    for index in range(3):
        monkeypatch.setenv("RANK", str(index))
        shards.append(processes.shard(range(rows)))
    assert processes.unshard(shards) == list(range(rows))


def test_an_error_in_the_main_process_is_raised() -> None:
    def fails() -> None:
        raise DataError("a corrupt row", fix="correct it")

    with pytest.raises(DataError, match="a corrupt row"):
        processes.on_main(fails)


@pytest.mark.usefixtures("second_of_three")
def test_other_ranks_do_not_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    processes.silence_other_ranks()
    print("twice")
    sys.stdout.close()
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("second_of_three")
def test_other_ranks_print_to_their_own_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # restored afterwards
    processes.silence_other_ranks()
    print("before there is a folder")
    sys.stdout.close()
    processes.log_other_ranks(tmp_path / "logs")
    print("Scoring the held-out pairs.")
    print("a warning", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.close()
    (file,) = (tmp_path / "logs").iterdir()
    assert file.name == "rank-1.log"
    assert file.read_text() == "Scoring the held-out pairs.\na warning\n"
    assert tuple(capsys.readouterr()) == ("", "a warning\n")


def test_the_main_process_prints_to_the_terminal(tmp_path: Path) -> None:
    processes.log_other_ranks(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_destroy_ends_the_group_and_waits_for_its_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pauses: list[float] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.time, "sleep", pauses.append)
    processes.destroy()
    assert not pauses, "there was no process group"
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    processes.destroy()
    assert not distributed.is_initialized()
    assert pauses == [processes.DESTROY_PAUSE]


@pytest.mark.parametrize(("code", "destroyed"), [(0, 1), (None, 1), (1, 0), (2, 0)])
def test_the_group_is_destroyed_after_a_command_that_succeeded(
    monkeypatch: pytest.MonkeyPatch, code: int | None, destroyed: int
) -> None:
    def exits(**_: object) -> None:
        raise SystemExit(code)

    calls: list[int] = []
    monkeypatch.setattr(cli, "app", exits)
    monkeypatch.setattr(cli, "destroy", lambda: calls.append(1))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert len(calls) == destroyed


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:1738: Connection reset "
    "by peer. This is typically caused by a remote worker hanging or bugs in the application."
)
NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited or there was a network error\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)


@pytest.mark.parametrize("text", [GLOO, NCCL])
def test_a_collective_that_failed_because_another_process_ended(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert processes.lost_process(RuntimeError(text)) is None, "there is only one process"
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = processes.lost_process(RuntimeError(text))
    assert error is not None and error.exit_code == 1
    assert "--resume" in error.fix and "rank-N.log" in error.found
    assert processes.lost_process(RuntimeError("CUDA out of memory")) is None


def test_the_command_line_shows_it_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(GLOO)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(cli, "load_command", fail)
    with pytest.raises(SystemExit) as caught:
        cli.app(["plan", "x"], prog_name="rlhf")
    assert caught.value.code == 1
    shown = capsys.readouterr().err
    assert "Connection reset by peer" in shown and "Traceback" not in shown


def test_one_process_waits_for_nobody() -> None:
    assert processes.wait_for_all() == 0.0
