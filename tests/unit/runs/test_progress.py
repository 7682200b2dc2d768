from __future__ import annotations

import io
import itertools

from rich.console import Console

from rlhf.runs import progress as module
from rlhf.runs.progress import Progress, close_live_lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def log(total: int, times: list[float], *, done: list[int] | None = None) -> list[str]:
    """The lines of a log with update n at times[n]."""
    clock, out = Clock(), io.StringIO()
    progress = Progress(total, "update", Console(file=out, width=40), clock=clock)
    for count, now in zip(done or itertools.count(1), times, strict=False):
        clock.now = now
        progress.update(count, **{"reward/mean": 0.25})
    return out.getvalue().splitlines()


def test_a_log_gets_the_first_line_the_last_and_one_every_ten_seconds() -> None:
    shown = log(30, [float(second) for second in range(1, 31)])
    assert [line.split()[1] for line in shown] == ["1/30", "11/30", "21/30", "30/30"]


def test_a_line_has_metrics_and_times_and_is_not_wrapped() -> None:
    shown = log(100, [20.0, 40.0])
    assert shown == [
        "update 1/100  reward/mean 0.25  elapsed 0:20  time left unknown",
        "update 2/100  reward/mean 0.25  elapsed 0:40  time left 32:40",  # 98 steps of 20 s
    ]


def test_the_last_line_has_no_time_left() -> None:
    assert log(2, [3600.0, 7205.0])[-1] == "update 2/2  reward/mean 0.25  elapsed 2:00:05"


def paced(total: int, durations: list[float]) -> tuple[Progress, Clock]:
    """A run with these step durations; the first update only starts the clock."""
    clock = Clock()
    progress = Progress(total, "update", Console(file=io.StringIO()), clock=clock)
    progress.update(0)
    for done, seconds in enumerate(durations, start=1):
        clock.now += seconds
        progress.update(done)
    return progress, clock


def within_a_third(estimate: float | None, truth: float) -> bool:
    return estimate is not None and abs(estimate - truth) <= truth / 3


def test_time_left_follows_a_slow_down_within_three_updates() -> None:
    """Ten steps of 8 s, then 150 s each, as on a machine that becomes busy."""
    fast = [8.0] * 10
    for slow in range(3, 11):
        progress, _ = paced(40, fast + [150.0] * slow)
        assert within_a_third(progress.seconds_left(), 150.0 * (30 - slow))
    progress, _ = paced(40, fast + [150.0] * 5 + [8.0] * 8)  # the machine is free again
    assert within_a_third(progress.seconds_left(), 8.0 * 17)


def test_time_left_grows_during_the_first_slow_step() -> None:
    progress, clock = paced(40, [8.0] * 10)
    assert progress.seconds_left() == 30 * 8.0
    clock.now += 120
    # Eight steps of 8 s fill the last minute: with the current one (64 + 120) / 9 s per step, and 29 more
    # after it.
    assert progress.seconds_left() == (64 + 120) / 9 * 29


def test_one_slow_step_is_forgotten_after_a_minute() -> None:
    progress, _ = paced(100, [10.0, 10.0, 300.0, *[10.0] * 6])
    assert progress.seconds_left() == 91 * 10.0


def test_a_resumed_run_does_not_count_the_steps_of_the_first() -> None:
    shown = log(100, [10.0, 20.0], done=[41, 42])
    assert shown[0].endswith("time left unknown")
    assert shown[1].endswith("time left 9:40")  # 58 steps of 10 s


def test_time_left_of_updates_with_several_units() -> None:
    shown = log(96, [1.0, 17.0], done=[32, 64])
    assert shown[-1].endswith("time left 0:16")  # 32 units of 0.5 s


def test_time_left_decreases_between_updates() -> None:
    clock = Clock()
    progress = Progress(4, "update", Console(file=io.StringIO()), clock=clock)
    for count in (1, 2):
        clock.now += 10
        progress.update(count)
    clock.now += 4
    assert progress.seconds_left() == 2 * 10 - 4
    clock.now += 6
    assert progress.seconds_left() == 10  # the current step should be done, and one is left


def test_a_terminal_has_one_live_line_until_the_last_update() -> None:
    out = io.StringIO()
    progress = Progress(2, "update", Console(file=out, force_terminal=True, width=90))
    progress.update(1, loss=0.5)
    assert module._live_lines == [progress]
    progress.update(2, loss=0.25)
    assert module._live_lines == []
    assert "update 1/2  loss 0.5" in out.getvalue()
    assert "update 2/2  loss 0.25" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_live_line_can_be_closed_after_an_error() -> None:
    out = io.StringIO()
    Progress(9, "update", Console(file=out, force_terminal=True)).update(1)
    close_live_lines()
    assert module._live_lines == []
    assert out.getvalue().endswith("\x1b[?25h")


def test_metrics_are_not_parsed_as_markup() -> None:
    out = io.StringIO()
    Progress(2, "update", Console(file=out, width=60)).update(1, **{"[red]loss": 1.0})
    assert "[red]loss 1" in out.getvalue()
