"""Every benchmark runs to its end on the tiny model; its sides answer in this process, where no other
libraries are loaded again."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


class InThisProcess:
    """Stands in for `measuring.Side`."""

    def __init__(self, module: ModuleType, name: str, settings: Mapping[str, Any]) -> None:
        self.handle = module.SIDES[name](json.loads(json.dumps(settings)))
        self.memory: Callable[[], dict[str, int]] = sys.modules["measuring"].memory
        self.ready = self.memory()

    def ask(self, **request: Any) -> dict[str, Any]:
        answer = self.handle(json.loads(json.dumps(request)))
        return json.loads(json.dumps({**answer, **self.memory()}))  # type: ignore[no-any-return]

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a benchmark as typed, with small sizes; returns what it wrote."""
    monkeypatch.chdir(tmp_path)

    def go(name: str, *words: str, **small: Any) -> dict[str, Any]:
        module = importlib.import_module(name)
        measuring = sys.modules["measuring"]
        monkeypatch.setattr(measuring, "SHARED_DATA", tmp_path / "none")
        if hasattr(module, "Side"):
            monkeypatch.setattr(
                module, "Side", lambda _, side, settings, __: InThisProcess(module, side, settings)
            )
        growing = itertools.count(1)  # so little memory may be taken that nothing shows
        monkeypatch.setattr(measuring, "memory", lambda: {"resident": 0, "peak": next(growing)})
        monkeypatch.setattr(module, "QUICK", {**module.QUICK, **small})
        monkeypatch.setattr(
            sys, "argv", [name, "--quick", "--base", str(tiny_base), "--output", str(tmp_path), *words]
        )
        module.main()
        return json.loads((tmp_path / f"{name}.json").read_text())  # type: ignore[no-any-return]

    return go


def measured(result: Mapping[str, Any], words: str) -> float:
    (actual,) = [line["measured"] for line in result["lines"] if words in line["what"]]
    return float(actual)


@pytest.mark.slow
def test_reward_training(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lines of a GPU, and its sizes but for the small ones here."""
    module = importlib.import_module("reward_training")
    monkeypatch.setattr(module, "on_gpu", lambda: True)
    monkeypatch.setattr(module, "GPU_SIZES", module.SIZES)
    monkeypatch.setattr(module, "GPU_BUDGETS", (512,))
    result = run("reward_training", limit=40, update=2)
    assert measured(result, "Plan: peak memory of ours") > 0
    assert measured(result, "Plan: time of these updates") > 0
    assert measured(result, "Mean loss of a round's updates") < 1e-2  # the tiny model's scores are large
    assert measured(result, "Loss of an update, difference") < 1e-5
    first = [losses[0] for losses in result["details"]["losses"].values()]
    assert all(
        abs(loss - 0.693) > 1e-3 for loss in first
    )  # the weights are not those at which every loss is log 2
    assert result["details"]["useful_tokens"] > 100


@pytest.mark.slow
def test_rounding(run: Callable[..., dict[str, Any]]) -> None:
    result = run("rounding", "--dtype", "float32", pairs=4)
    assert measured(result, "Mean loss of 4 pairs") < 1e-5
    assert measured(result, "root mean square") < 1e-5 < measured(result, "standard deviation")


@pytest.mark.slow
def test_policy_update(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lines of a GPU, and its sizes but for the small ones here."""
    module = importlib.import_module("policy_update")
    monkeypatch.setattr(module, "on_gpu", lambda: True)
    monkeypatch.setattr(module, "GPU_SIZES", module.SIZES)
    monkeypatch.setattr(module, "GPU_BUDGETS", (1024,))
    result = run(
        "policy_update",
        "--engine",
        "transformers",
        answers=4,
        whole_answers=4,
        group_sizes=[2],
        longest_prompt=150,
    )
    assert measured(result, "mean reward apart") < 0.1
    assert measured(result, "gradient norm apart") < 10
    useful = [line for line in result["lines"] if line["unit"] == "useful tokens/s"]
    assert [line["what"] for line in useful] == ["Ours", "TRL"]
    assert all(line["measured"] > 0 for line in useful)
    assert measured(result, "Plan: peak memory of ours") > 0
    stages = result["details"]["step"]["stages"]
    assert set(stages) == {"generate", "forward", "backward", "sync", "other"}
    assert all(seconds > 0 for seconds in stages.values())


@pytest.mark.slow
def test_policy_memory(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("policy_memory")
    monkeypatch.setattr(module, "align_policy", lambda *_: 2**30)
    monkeypatch.setattr(module, "QUANTIZATIONS", ("none",))
    result = run("policy_memory", longest_prompt=150)
    weights = result["details"]["roles"][result["dtype"]]["ppo"]["weights"]
    assert weights["reward"] == weights["critic"] == weights["default"] > 0
    assert measured(result, "what reference and reward add") < 1000  # of a model that weighs nothing


def test_scaling_measures_under_the_autocast_of_a_run(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    # Where bfloat16 is only emulated, too.
    monkeypatch.setattr("rlhf.training.arguments.effective_dtype", lambda dtype: dtype)
    trainer = importlib.import_module("scaling").idle_reward_trainer(str(tiny_base), "bfloat16", 8)
    norm, seen = trainer.model.get_base_model().model.norm, list[bool]()
    norm.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer.model(input_ids=torch.tensor([[1, 2, 3]]))
    assert seen == [True]


@pytest.mark.slow
def test_scaling(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = run("scaling", length=[32, 64], rank=[8, 16], rounds=2)
    points = result["details"]["points"]
    assert set(points["policy"]) == {"length", "share", "group", "batch", "rank"}
    assert set(points["reward"]) == {"length", "share", "batch", "rank"}
    shared, more = (item["cost"] for item in points["policy"]["share"])
    assert more < shared  # what is in the prompt is computed once
    curves = [curve for kind in points.values() for curve in kind.values()]
    assert all(
        len(point["seconds"]) == 2 and min(point["seconds"]) > 0 for curve in curves for point in curve
    )
    small, large = points["reward"]["rank"]
    assert large["cost"] > small["cost"] and large["seconds"] != small["seconds"]
    assert "model's operations" in (tmp_path / "scaling.svg").read_text()


@pytest.mark.slow
def test_rollouts(tmp_path: Path) -> None:
    """vLLM wants processes of its own."""
    command = [sys.executable, BENCHMARKS / "rollouts.py", "--quick", "--output", tmp_path]
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    result = json.loads((tmp_path / "rollouts.json").read_text())
    assert all(rate > 0 for rates in result["details"]["tokens_per_second"].values() for rate in rates)


@pytest.mark.slow
def test_layers(run: Callable[..., dict[str, Any]]) -> None:
    result = run("layers", limit=8)
    rates = result["details"]["rates"]
    assert len(rates) == 5
    assert all(rate > 0 for result in rates.values() for rate in result)
    assert measured(result, "Speed of an update, PEFT's and transformers'") == 1


def test_layers_are_bound_or_left_to_the_classes(tiny_base: Path) -> None:
    from rlhf.models.loading import load_causal, lora_config, with_adapter

    layers = importlib.import_module("layers")
    model = with_adapter(
        load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none"),
        lora_config(rank=2, alpha=2, dropout=0.0, targets="all-linear"),
    )
    counts = []
    for way in layers.WAYS.values():
        layers.put_in_place(*way, model=model)
        counts.append(sum("forward" in vars(module) for module in model.modules()))
    # two layers of 7 adapted linear layers, 2 norms, a rotation and a gate; a last norm; a last layer
    assert counts == [0, 14, 14 + 5 + 2, 14 + 5 + 2 + 1, 14 + 5 + 2 + 1 + 2]
