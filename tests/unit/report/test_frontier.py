"""Reward against KL of made-up runs, whose paths are straight lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.core.errors import DataError
from rlhf.report.comparisons.best_of import BestOf, mismatches, read_best_of
from rlhf.report.comparisons.frontier import (
    Track,
    at_equal_kl,
    ends,
    first_reached,
    groups_of,
    levels_of,
    read_runs,
    summarise,
    tracks_of,
)
from rlhf.report.comparisons.frontier_page import lead, markdown, printed, write
from rlhf.report.files import read_run

KL_05 = {"coefficient": 0.05, "estimator": "k1", "reduction": "sum"}


def make_run(
    folder: Path,
    *,
    name: str = "rloo",
    seed: int = 0,
    kl: Sequence[float] = (0.0, 1.0, 2.0, 3.0),
    slope: float = 1.0,
    start: float = 2.0,
    extra: Mapping[str, Any] | None = None,
    evaluated: bool = True,
    stopped: str = "",
    **more: Sequence[float],
) -> Path:
    """A run whose reward is start + slope x KL at every update; fewer than twelve updates are not
    smoothed.
    """
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "output": str(folder),
        "steps": len(kl),
        "reward": "runs/reward/final",
        "algorithm": {"name": name, "kl": KL_05},
        "optimizer": {"learning_rate": 1e-4},
        **(extra or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {
            "step": step,
            "kl/sum": at,
            "reward/mean": start + slope * at,
            **{key: values[step - 1] for key, values in more.items()},
        }
        for step, at in enumerate(kl, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluated:
        gain = slope * kl[-1]
        values = {
            "before": {"reward": start, "kl": 0.0, "length": 20.0, "gold": None},
            "after": {"reward": start + gain, "kl": kl[-1], "length": 30.0, "gold": None},
            "difference": {"reward": {"mean": gain, "ci95": [gain - 0.1, gain + 0.2]}, "gold": None},
        }
        if stopped:
            values["stopped"] = {"sentence": stopped}
        (folder / "eval.json").write_text(json.dumps(values))
    return folder


def read_tracks(folders: Sequence[Path]) -> list[Track]:
    return tracks_of(read_runs(folders))


CURVE = [
    {"n": 1, "kl_bound": 0.0, "reward": {"mean": 2.0, "ci95": [1.9, 2.1]}},
    {"n": 4, "kl_bound": 0.6, "reward": {"mean": 2.9, "ci95": [2.8, 3.0]}},
    {"n": 16, "kl_bound": 1.8, "reward": {"mean": 3.5, "ci95": None}},
]


def test_the_first_visit_counts_and_what_lies_between_is_linear() -> None:
    path = [(0.0, 1.0), (2.0, 3.0), (1.0, 9.0), (4.0, 5.0)]
    assert first_reached(path, 0.0) == 1.0
    assert first_reached(path, 0.5) == 1.5
    assert first_reached(path, 2.0) == 3.0
    assert first_reached(path, 1.0) == 2.0  # not the 9 of the way back
    assert first_reached(path, 2.5) == 9.0 + (5.0 - 9.0) * (2.5 - 1.0) / (4.0 - 1.0)
    assert first_reached(path, 4.1) is None
    assert first_reached([(0.3, 7.0), (0.5, 8.0)], 0.1) is None
    assert first_reached([], 0.0) is None


def test_runs_are_grouped_by_everything_but_the_seed_and_how_far_they_go(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / "a", seed=0),
        make_run(tmp_path / "b", seed=1, kl=(0.0, 1.0)),
        make_run(tmp_path / "c", name="reinforce"),
        make_run(tmp_path / "d", extra={"optimizer": {"learning_rate": 2e-4}}),
        make_run(tmp_path / "e", extra={"algorithm": {"name": "rloo", "kl": {**KL_05, "coefficient": 0.2}}}),
    ]
    rloo, reinforce = "rloo, KL 0.05 x sum k1", "reinforce, KL 0.05 x sum k1"
    assert groups_of([read_run(folder) for folder in folders]) == [
        f"{rloo}, optimizer.learning_rate=0.0001",
        f"{rloo}, optimizer.learning_rate=0.0001",
        reinforce,
        f"{rloo}, optimizer.learning_rate=0.0002",
        "rloo, KL 0.2 x sum k1",
    ]


def test_equal_kl_is_read_off_each_path_with_an_interval_over_seeds(tmp_path: Path) -> None:
    slopes = [1.0, 1.5, 0.5]
    tracks = read_tracks(
        [make_run(tmp_path / f"{seed}", seed=seed, slope=slope) for seed, slope in enumerate(slopes)]
    )
    result = at_equal_kl(tracks, CURVE, "reward", [0.0, 1.5])
    (group, (zero, further)), (_, best) = result.items()
    assert group == "rloo, KL 0.05 x sum k1"
    assert zero["values"] == [2.0, 2.0, 2.0] and zero["ci95"] == [2.0, 2.0]
    assert further["values"] == pytest.approx([2.0 + slope * 1.5 for slope in slopes])
    # Student's t of 2 degrees of freedom: 4.303 s / sqrt(3).
    half = 4.302653 * statistics.stdev(further["values"]) / 3**0.5
    assert further["mean"] == pytest.approx(3.5)
    assert further["ci95"] == pytest.approx([3.5 - half, 3.5 + half])
    assert best[0]["mean"] == 2.0
    assert best[1]["mean"] == pytest.approx(2.9 + (3.5 - 2.9) * (1.5 - 0.6) / (1.8 - 0.6))


def test_runs_of_different_lengths_and_one_that_is_still_going(tmp_path: Path) -> None:
    tracks = read_tracks(
        [
            make_run(tmp_path / "long", seed=0, kl=(0.0, 2.0, 6.0)),
            make_run(
                tmp_path / "short", seed=1, kl=(0.0, 1.0), stopped="Stopped at update 2: beyond the budget."
            ),
            make_run(tmp_path / "going", seed=2, kl=(0.0, 3.0), evaluated=False),
        ]
    )
    assert levels_of(tracks) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    first, three, six, seven = at_equal_kl(tracks, [], "reward", [1.0, 3.0, 6.0, 7.0])[
        "rloo, KL 0.05 x sum k1"
    ]
    assert [len(result["values"]) for result in (first, three, six, seven)] == [3, 2, 1, 0]
    assert six["mean"] == 8.0 and six["ci95"] is None and six["of"] == 3
    assert seven["mean"] is None
    summary = summarise(tracks, [])
    assert any("Stopped at update 2" in note for note in summary["notes"])
    assert any(note.startswith(f"{tmp_path / 'going'} has no evaluation yet") for note in summary["notes"])
    (end,) = summary["ends"].values()
    assert end["runs"] == 2 and end["kl"]["values"] == [6.0, 1.0]


def test_ends_have_gains_and_the_yardstick_at_their_kl(tmp_path: Path) -> None:
    tracks = read_tracks(
        [make_run(tmp_path / "a", kl=(0.0, 1.0), slope=2.0), make_run(tmp_path / "b", seed=1, kl=(0.0, 1.4))]
    )
    (result,) = ends(tracks, CURVE).values()
    assert result["kl"]["mean"] == pytest.approx(1.2)
    assert result["reward"]["values"] == pytest.approx([4.0, 3.4])
    assert result["reward_gain"]["values"] == pytest.approx([2.0, 1.4])
    assert result["best_of_n"] == pytest.approx(2.9 + 0.6 * (1.2 - 0.6) / 1.2)
    assert result["limit"] is None, "a file of an earlier version has no limits"
    assert "gold" not in result  # null in eval.json


def test_the_limit_of_the_reward_is_linear_in_the_square_root_of_the_kl(tmp_path: Path) -> None:
    curve = [{**point, "limit": 2.0 + 1.5 * point["kl_bound"] ** 0.5} for point in CURVE]
    tracks = read_tracks([make_run(tmp_path / "a", kl=(0.0, 1.44))])
    (result,) = ends(tracks, curve).values()
    assert result["limit"] == pytest.approx(2.0 + 1.5 * 1.2)
    summary = summarise(tracks, curve, [0.36, 1.0, 9.0])
    first, one, nine = summary["at_equal_kl"]["reward"]["limit"]
    assert (first["mean"], one["mean"]) == (pytest.approx(2.9), pytest.approx(3.5))
    assert nine["mean"] is None, "beyond the largest n"
    assert "limit there" in markdown(summary) and "the highest mean reward of any policy" in markdown(summary)
    write(tmp_path / "out", summary, root=False)
    legend = "the highest reward of any policy, if rewards are normal"
    assert legend in (tmp_path / "out" / "frontier.svg").read_text()


def test_long_runs_are_smoothed(tmp_path: Path) -> None:
    """Noise that alternates goes; the line under it stays."""
    steps = 60
    kl = [step / 10 for step in range(steps)]
    noise = [(-1.0) ** step for step in range(steps)]
    folder = make_run(
        tmp_path / "a", kl=kl, **{"gold/mean": [0.5 + 0.3 * noise_value for noise_value in noise]}
    )
    (track,) = read_tracks([folder])
    middle = [value for at, value in track.paths["gold"] if 1.0 < at < 5.0]
    assert max(abs(value - 0.5) for value in middle) < 0.03
    assert track.at("reward", 3.0) == pytest.approx(5.0, abs=0.02)


def test_held_out_and_gold_are_shown_where_runs_have_them(tmp_path: Path) -> None:
    with_both = {"reward/held_out": [1.0, 2.0, 3.0, 4.0], "gold/mean": [0.1, 0.2, 0.3, 0.4]}
    tracks = read_tracks([make_run(tmp_path / "a", **with_both), make_run(tmp_path / "b", name="reinforce")])
    tables = summarise(tracks, [])["at_equal_kl"]
    assert list(tables) == ["reward", "held_out", "gold"]
    assert list(tables["gold"]) == ["rloo, KL 0.05 x sum k1"]
    assert at_equal_kl(tracks, [], "held_out", [1.5])["rloo, KL 0.05 x sum k1"][0]["mean"] == pytest.approx(
        2.5
    )


def test_the_files_that_are_written(tmp_path: Path) -> None:
    tracks = read_tracks([make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, slope=2.0)])
    page = write(tmp_path / "out", summarise(tracks, CURVE, [1.0]), root=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "report.html", "frontier.json", "frontier.md", "frontier.svg", "frontier.png",
    }  # fmt: skip
    kept = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert kept["at_equal_kl"]["reward"]["rloo, KL 0.05 x sum k1"][0]["mean"] == 3.5
    text = (tmp_path / "out" / "frontier.md").read_text()
    assert text == markdown(summarise(tracks, CURVE, [1.0]))
    assert "| reward where the KL first was | 1 |" in text and "| rloo, KL 0.05 x sum k1 | 3.500 (" in text
    assert "Reward at equal KL" in page.read_text()
    *_, ends_by_figure = printed(summarise(tracks, CURVE, [1.0]))
    assert [cells[0] for cells in ends_by_figure[:4]] == ["", "runs", "KL", "reward"]
    assert ends_by_figure[0][1] == "rloo, KL 0.05 x sum k1" and ends_by_figure[1][1] == "2"


def test_the_same_seed_twice_is_reported(tmp_path: Path) -> None:
    tracks = read_tracks([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    assert any("the same seed 0: they count as two" in note for note in summarise(tracks, [])["notes"])


@pytest.mark.parametrize("content", ["{}", "no json", '{"best_of": [{"n": 1}]}', '{"best_of": null}'])
def test_a_file_without_a_best_of_curve(tmp_path: Path, content: str) -> None:
    file = tmp_path / "compare.json"
    file.write_text(content)
    with pytest.raises(DataError, match=str(file)):
        read_best_of(file)


def test_a_baseline_of_another_model_or_reward_is_noted(tmp_path: Path) -> None:
    """The runs' reference is the base, then a start; their reward runs/reward/final, then two sources."""
    base, started, summed = (
        read_run(make_run(tmp_path / name, extra={"model": {"base": "embedded"}, **extra}))
        for name, extra in {
            "base": {},
            "started": {"start": "runs/first/final"},
            "summed": {
                "reward": [{"adapter": "runs/reward/final", "weight": 0.5}, {"function": "rewards.py:short"}]
            },
        }.items()
    )
    file = tmp_path / "compare.json"
    content = {"b": "embedded", "reward": str(Path("runs/reward/final").resolve()), "best_of": CURVE}
    file.write_text(json.dumps(content))
    assert mismatches(read_best_of(file), [base]) == []
    (line,) = mismatches(read_best_of(file), [base, started])
    assert "embedded" in line and "runs/first/final" in line
    (line,) = mismatches(read_best_of(file), [base, summed])
    assert "0.5 x runs/reward/final + rewards.py:short" in line
    other = BestOf(file, CURVE, sampled="runs/first/final", reward="runs/other/final")
    assert len(mismatches(other, [base, base])) == 2
    notes = summarise(tracks_of([base]), CURVE, [1.0], mismatches(other, [base]))["notes"]
    assert sum("runs/other/final" in note for note in notes) == 1


def test_folders_that_are_no_runs_of_a_policy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path / "none")):
        read_tracks([tmp_path / "none"])
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("stages: []\n")
    with pytest.raises(DataError, match=str(tmp_path / "r")):
        read_tracks([tmp_path / "r"])
    folder = make_run(tmp_path / "a", kl=(0.0,))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/policy": 2.0}\n')
    with pytest.raises(DataError, match="kl/sum .*reward/mean.* loss/policy"):
        read_tracks([folder])


def test_levels_go_as_far_as_two_groups_do(tmp_path: Path) -> None:
    far = make_run(tmp_path / "far", name="reinforce", kl=(0.0, 40.0))
    near = [make_run(tmp_path / f"{seed}", seed=seed, kl=(0.0, 2.0 + seed)) for seed in range(3)]
    assert levels_of(read_tracks([far, *near])) == [0.5 * step for step in range(1, 9)]


def test_the_lead_names_the_best_at_the_last_common_kl(tmp_path: Path) -> None:
    tracks = read_tracks(
        [
            make_run(tmp_path / "a", name="reinforce", slope=0.5, kl=(0.0, 4.0)),
            make_run(tmp_path / "b", slope=1.0, kl=(0.0, 2.5)),
        ]
    )
    lines = lead(summarise(tracks, [], [1.0, 2.0, 3.0]))
    assert lines[0] == "Runs: 2, of 2 configs."
    assert lines[1] == (
        "Reward at a KL of 2 nats, from the highest: rloo, KL 0.05 x sum k1: 4.00; reinforce, KL 0.05 "
        "x sum k1: 3.00."
    )
    assert "nothing can be compared" in lead(summarise(tracks, [], [3.0]))[1]
