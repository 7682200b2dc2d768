"""Where memory or time runs out, what was measured is kept."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_a_side_survives_a_setting_too_large_for_the_gpu(tmp_path: Path) -> None:
    script = tmp_path / "greedy.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import torch
from measuring import serve
def train(request):
    if request["size"] > 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    return {{"seconds": 1.0 / request["size"]}}
serve(lambda options: train)
""")
    measuring = module("measuring")
    with measuring.Side(str(script), "any", {}, tmp_path / "logs") as side:
        best, answers = measuring.fastest(lambda size: side.ask(size=size), [2, 4, 8])
        assert best == 4
        assert set(answers) == {2, 4}
        assert side.ask(size=8)["seconds"] == math.inf
        fits_below = {"largest": lambda size: side.ask(size=2 * size)}
        assert measuring.fastest(lambda size: side.ask(size=size), [1, 2, 4], **fits_below)[0] == 2
        with pytest.raises(SystemExit):
            measuring.fastest(lambda size: side.ask(size=size), [8, 16])


def test_no_round_starts_after_the_time_limit_except_the_first() -> None:
    sides = {"a": lambda: 1.0, "b": lambda: 2.0}
    assert module("measuring").in_turns(sides, 3, until=-math.inf) == {"a": [1.0], "b": [2.0]}
    assert module("measuring").in_turns(sides, 3)["a"] == [1.0] * 3


def test_what_is_measured_is_written_before_the_next_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reward = module("reward_training")
    file = tmp_path / "result.json"

    def rounds(*_: Any) -> Any:
        return [module("measuring").line("rate", 2.0)], {"shape": {"base": 1}, "micro": 2}

    def stops(*_: Any) -> Any:
        assert [line["what"] for line in json.loads(file.read_text())["lines"]] == ["rate"]
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "rounds_of", rounds)
    monkeypatch.setattr(reward, "exact_losses", stops)
    words = ["reward_training", "--quick", "--output", str(tmp_path), "--result", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        reward.main()
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])  # nothing more is started
    reward.main()
    assert [line["measured"] for line in json.loads(file.read_text())["lines"]] == [2.0, None, None]


def test_a_part_of_the_check_that_fails_is_named_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = module("gpu_check")

    def parity(_: Path, __: str, dtype: str, quantization: str) -> Iterator[dict[str, Any]]:
        yield check.line(f"first of {dtype}, {quantization}", 1.0)
        if quantization == "nf4":
            raise RuntimeError("no kernel")

    monkeypatch.setattr(check, "parity", parity)
    monkeypatch.setattr(check, "update", lambda *_: [])
    monkeypatch.setattr(check, "make_base", lambda *_: tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--kind", "tiny", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        check.main()
    result = json.loads((tmp_path / "check-tiny.json").read_text())
    assert result["details"]["failed"] == ["parity in bfloat16, nf4"]
    assert [line["measured"] for line in result["lines"]] == [1.0, 1.0, None, 1.0]
    assert "bfloat16, nf4" in str(caught.value)


def test_no_part_of_the_comparison_starts_after_the_time_limit_except_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = module("gpu_bench")
    started: list[str] = []

    def run(words: list[str], *, env: dict[str, str], **_: Any) -> argparse.Namespace:
        assert env["PYTORCH_ALLOC_CONF"]  # of a run
        started.append(next(word for word in words if word.endswith(".json")))
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "make_base", lambda kind, *_: tmp_path / kind)
    (tmp_path / "data" / "preference").mkdir(parents=True)
    folders = ["--work", str(tmp_path), "--output", str(tmp_path)]
    for minutes in ("9", "0"):
        monkeypatch.setattr(
            sys, "argv", ["gpu_bench", "--kind", "smol", "8b", "--minutes", minutes, *folders]
        )
        bench.main()
    parts = [f"{name}-{kind}.json" for name in bench.PARTS for kind in ("smol", "8b")]
    assert [Path(file).name for file in started] == [*parts, parts[0]]
    assert "policy_update 8b" in capsys.readouterr().out


def test_a_row_for_the_status_table_has_gpu_date_figures_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = module("gpu_bench")
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu_bench.py", "--kind", "8b"])
    line = module("measuring").line
    result = {
        "base": "runs/gpu/8b",
        "machine": {"gpu": "NVIDIA H200", "processor": "any"},
        "environment": {"started": "2026-12-01T10:00:00"},
        "lines": [line("Peak memory beside TRL", 0.5, "x"), line("Ours", 3.0), line("X beside TRL", None)],
    }
    assert bench.status_row([result]) == (
        "| NVIDIA H200 | 2026-12-01: 8b: Peak memory beside TRL 0.5x "
        "(`python benchmarks/gpu_bench.py --kind 8b`) |"
    )
    assert bench.status_row([]) == ""


def test_the_second_group_size_is_left_out_where_time_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = module("policy_update")
    figures = {
        "seconds": {"ours": [1.0], "trl": [2.0]},
        "best": {"ours": 1024, "trl": 4},
        "same_work": {"reward": 0.0, "grad_norm": 0.0},
        "lines": [],
    }
    monkeypatch.setattr(policy, "compare_updates", lambda *_: figures)
    words = ["policy_update", "--quick", "--minutes", "0", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    policy.main()
    lines = json.loads((tmp_path / "policy_update.json").read_text())["lines"]
    speeds = [line["measured"] for line in lines if "beside TRL" in line["what"]]
    assert speeds == [2.0, None, None]  # G = 4, G = 8, the whole step


def test_the_plan_stands_beside_what_was_measured(tiny_base: Path) -> None:
    """Twice as many tokens take twice as long; memory does not depend on them."""
    sides = module("reward_sides")
    options = {"base": str(tiny_base), "dtype": "float32", "longest": 256, "tokens_per_batch": 1024}
    config = sides.our_config(options)

    def lines(computed: int) -> dict[str, dict[str, Any]]:
        measured = {"gflops": 10.0, "seconds": 3.0, "peaks": {"ours": 2**30, "trl": 2**31}}
        made = module("beside_plan").plan_lines(config, computed=computed, **measured)
        return {line["what"]: line for line in made}

    once, twice = lines(1024), lines(2048)
    assert once["Peak memory beside TRL"]["measured"] == 0.5
    assert once["Ours: time of these updates"]["measured"] == 3.0
    time, memory = "Plan: time of these updates", "Plan: peak memory of ours"
    assert twice[time]["measured"] == pytest.approx(2 * once[time]["measured"])
    assert twice[memory] == once[memory]
    weights = sum(file.stat().st_size for file in tiny_base.glob("*.safetensors")) / 2**30
    assert once[memory]["measured"] > weights


def test_both_gpu_programs_take_the_arguments_of_make_bench_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = []
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda *_: taken.append("refused"))
    for name in ("gpu_check", "gpu_bench"):
        program = module(name)
        monkeypatch.setattr(program, "make_base", lambda kind, *_: taken.append(kind) or sys.exit(0))
        monkeypatch.setattr(sys, "argv", [name, "--kind", "8b", "--tokenizer", "folder"])
        with pytest.raises(SystemExit):
            program.main()
    assert taken == ["8b", "8b"], capsys.readouterr().err


def test_a_gpus_clock_waits_and_its_memory_is_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring, calls = module("measuring"), list[str]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("waited"))
    for name, size in (("memory_allocated", 1), ("max_memory_allocated", 2), ("max_memory_reserved", 3)):
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size)
    assert measuring.wall_clock() > 0
    assert calls == ["waited"]
    assert measuring.memory() == {"resident": 1, "peak": 2, "reserved": 3}
