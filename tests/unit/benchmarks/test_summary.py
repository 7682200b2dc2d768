"""The table says what was measured, and never more."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def module(name: str) -> Any:
    return importlib.import_module(name)


def result(*lines: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "name": "rollouts",
        "quick": False,
        "clock": "wall",
        "base": "embedded",
        "dtype": "bfloat16",
        "data": "real",
        "machine": {"processor": "P", "cores": 2, "threads": 2, "memory_gib": 8.0, "load": 0.1},
        "environment": {
            "started": "2026-01-02T03:04:05",
            "revision": "0123456789",
            "versions": {"torch": "1"},
        },
        "lines": list(lines),
    } | others


def test_a_target_is_met_or_not() -> None:
    line, verdict = module("measuring").line, module("tables").verdict
    assert verdict(line("a", 2.0, least=2.0)) == verdict(line("a", 0.6, most=0.6)) == "met"
    assert verdict(line("a", 1.99, least=2.0)) == verdict(line("a", 0.61, most=0.6)) == "NOT met"
    assert (
        verdict(line("a", float("nan"), least=2.0)) == verdict(line("a", float("nan"), most=2.0)) == "NOT met"
    )
    assert verdict(line("a", 1.0)) == verdict(line("a", None, least=2.0)) == ""


def test_the_table(tmp_path: Path) -> None:
    line, summary = module("measuring").line, module("summary")
    rows = [
        line("speed", 2.345, "x", least=2.0),
        line("loss", 2e-4, most=1e-4),
        line("peak", None, "GiB", note="no"),
    ]
    (tmp_path / "rollouts.json").write_text(json.dumps(result(*rows)))
    text = summary.markdown(summary.results(tmp_path))
    assert "| speed | at least 2x | 2.35x | met |" in text
    assert "| loss | at most 1.0e-04 | 2.0e-04 | NOT met |" in text
    assert "| peak |  | not measured: no |  |" in text
    assert "| **rollouts** (2026-01-02, revision 0123456, load 0.1 at its end) | | | |" in text
    assert "Not a result" not in text
    assert "Not run: products, reward_training, rounding, policy_update, policy_memory, scaling." in text
    assert "Not a result" in summary.markdown([result(quick=True)])
    assert "Not a result" in summary.markdown([result(clock="processor")])

    page = tmp_path / "page.md"
    page.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    for _ in range(2):  # twice is once
        summary.put_into(page, text)
    assert page.read_text() == f"before\n{summary.BEGIN}\n{text}{summary.END}\nafter\n"
    with pytest.raises(SystemExit, match="make bench"):
        summary.results(tmp_path / "empty")


def test_a_side_answers_from_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "doubling.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from measuring import serve
def side(options):
    print("libraries print what they like")
    return lambda request: {{"twice": options["times"] * request["number"]}}
serve(side)
""")
    measuring = module("measuring")
    with measuring.Side(str(script), "any", {"times": 2}, tmp_path / "logs") as side:
        assert [side.ask(number=number)["twice"] for number in (3, 4)] == [6, 8]
        assert side.ask(number=1)["peak"] >= side.ready["resident"] > 10 * 2**20
        pid = side.process.pid
        with pytest.raises(SystemExit, match=r"(?s)code 1.*KeyError: 'number'"):
            side.ask(wrong=1)
    assert not Path(f"/proc/{pid}/exe").exists()
    assert "libraries print what they like" in side.log.read_text()


def test_rounds_take_turns() -> None:
    order: list[str] = []

    def way(name: str) -> Any:
        def go() -> float:
            order.append(name)
            return float(len(order))

        return go

    figures = module("measuring").in_turns({"a": way("a"), "b": way("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert module("measuring").ratio(figures["b"], figures["a"]) == 1.2  # the median of 2, 0.75 and 1.2


def test_the_cost_of_a_tree_by_counting() -> None:
    cost = module("cost")
    from rlhf.kernels.packing import Tree, pack

    tree = Tree((1, 2), ((3, 4, 5), (6,)))
    seen = [1, 2, 3, 4, 5, 3]  # keys each of its six tokens may look at
    assert cost.looks(tree) == sum(seen)
    shape = cost.Shape(base=100, adapter=10, attention=7, words=50, width=3)
    assert cost.forward(shape, [tree]) == 6 * 2 * 110 + sum(seen) * 4 * 7
    assert cost.forward(shape, [tree], adapter=False) == 6 * 2 * 100 + sum(seen) * 4 * 7
    # Backward: gradients of inputs through both, of the adapter's weights, and twice the forward pass of
    # attention.
    backward = 6 * (2 * 100 + 4 * 10) + sum(seen) * 8 * 7
    assert cost.training(shape, [tree]) == cost.forward(shape, [tree]) + backward
    # After the last attention are 9 of the weights and 2 of the adapter's, and of its six tokens two are
    # read.
    last = cost.Shape(**{**vars(shape), "base_after": 9, "adapter_after": 2})
    spared = 4 * (2 * 9 + 2 * 2) + 4 * (2 * 9 + 4 * 2)
    assert cost.training(last, [tree], read=2) == cost.training(shape, [tree]) - spared
    without = cost.forward(last, [tree], adapter=False, read=2)
    assert without == cost.forward(shape, [tree], adapter=False) - 4 * 2 * 9
    # A score is read at each of two branches, log-probabilities at their four tokens: 2 V D for one, four
    # times.
    passes = cost.forward(last, [tree], read=2) + cost.forward(last, [tree], adapter=False, read=4)
    heads = 4 * 2 * 50 * 3 * 4
    assert cost.policy_update(last, [tree], 4) == passes + cost.training(last, [tree], read=4) + heads
    unshared = [Tree((), ((1, 2, 3, 4, 5),)), Tree((), ((1, 2, 6),))]
    assert cost.training(shape, unshared) > cost.training(shape, [tree])
    (alone,) = pack([tree], 16, pad_id=0)
    assert cost.training(shape, [alone]) == cost.training(shape, [tree])
    (row,) = pack([tree, Tree((1, 2), ((9,),))], 16, pad_id=0)  # the second begins with the same two tokens
    assert (cost.tokens(row), cost.looks(row)) == (6 + 1, sum(seen) + 3)


def test_the_exponent_is_that_of_the_upper_end() -> None:
    slope = module("scaling").slope
    assert slope([(1, 100), (2, 100), (4, 400), (8, 1600)]) == pytest.approx(2)


def test_the_exponent_is_taken_within_each_round() -> None:
    scaling = module("scaling")
    # The machine is twice as slow in the second round; in the third only while the larger size runs.
    points = [
        {"x": 2, "seconds": [1.0, 2.0, 1.0], "bytes": 10, "cost": 3},
        {"x": 4, "seconds": [2.0, 4.0, 4.0], "bytes": 40, "cost": 6},
    ]
    assert scaling.growth(points, "seconds") == pytest.approx([1, 1, 2])
    assert scaling.growth(points, "bytes") == pytest.approx([2])
    (first,) = scaling.lines_of("Reward", {"length": points})
    assert first["measured"] == pytest.approx(0)
    assert first["note"] == "time 1.00, by rounds 1.00 to 2.00; memory 2.00, model's operations 1.00"


def test_a_curve_is_read_towards_more_to_compute() -> None:
    lines_of = module("scaling").lines_of
    # Of the halves that a larger share saves, time saves none; towards the smaller share it does not grow,
    # where operations double.
    points = [
        {"x": 2, "seconds": [1.0], "bytes": 20, "cost": 6},
        {"x": 4, "seconds": [1.0], "bytes": 10, "cost": 3},
    ]
    (first,) = lines_of("Policy", {"share": points})
    assert first["what"].startswith("Policy step against share that is prompt, falling:")
    assert first["measured"] == pytest.approx(-1)
    assert first["note"].endswith("memory 1.00, model's operations 1.00")


def test_updates_are_of_like_length() -> None:
    updates_of = module("samples").updates_of
    pairs = [([0] * length, [0] * (length % 7 + 1)) for length in range(1, 65)]
    updates = updates_of(pairs, 8, 4)
    assert [len(update) for update in updates] == [8] * 4
    assert len({place for update in updates for place in update}) == 32
    means = [sum(len(pairs[place][0]) for place in update) / 8 for update in updates]
    assert means == sorted(means, reverse=True) and means[0] > 1.5 * means[-1]
