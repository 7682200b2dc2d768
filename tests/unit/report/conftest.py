"""Run folders as the two commands leave them, filled with plausible, made-up figures."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.core.statistics import wilson_interval

Row = dict[str, Any]

SUMS = "Add {a} and {b}. Answer with the number alone."
LISTS = "Give a list of exactly {n} fruits, one a line, nothing else."
WORDY = "Certainly! I would be glad to help you with that. "


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def policy_metrics(steps: int, seed: int = 1) -> list[Row]:
    """A run that rises and flattens, with noise, a slow first step and the occasional outlier."""
    draw = random.Random(seed)
    rows = []
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-3 * step / steps)
        kl = max(0.0, 0.05 * rise + draw.gauss(0, 0.004))
        length = 41 - 9 * rise + draw.gauss(0, 2.5)
        time = {"rollout": draw.gauss(4.2, 0.3) + 6 * (step == 1), "score": draw.gauss(1.1, 0.08)}
        time |= {"update": draw.gauss(3.0, 0.2), "sync": draw.gauss(0.21, 0.03)}
        rows.append(
            {
                "step": step,
                "reward/mean": -0.9 + 1.5 * rise + draw.gauss(0, 0.22),
                "reward/std": 0.8 + draw.gauss(0, 0.05),
                "gold/mean": min(1, max(0, 0.2 + 0.3 * rise + draw.gauss(0, 0.06))),
                "kl/mean": kl,
                "kl/sum": kl * length,
                "kl/abs_mean": 2.2 * kl,
                "kl/k2_mean": 1.1 * kl,
                "kl/k3_mean": kl * 1.06 + abs(draw.gauss(0, 0.002)),
                "kl/penalty": 0.05 * kl * length,
                "length/mean": length,
                "length/finished_share": min(1, 0.86 + 0.12 * rise + draw.gauss(0, 0.02)),
                "length/reward_correlation": draw.gauss(-0.1, 0.1),
                "loss/policy": draw.gauss(0, 0.4),
                "policy/entropy": 1.6 - 0.5 * rise + draw.gauss(0, 0.05),
                "advantage/std": 0.7 + draw.gauss(0, 0.05),
                "optimizer/lr": 3e-4 * min(1, step / 10),
                "optimizer/grad_norm": abs(draw.gauss(0.8, 0.2)) + 30 * (step == 17),
                "engine/logprob_difference": 0.04 + abs(draw.gauss(0, 0.006)),
                "engine/logprob_difference_max": 0.5 + abs(draw.gauss(0, 0.3)),
                "engine/tokens_per_second": draw.gauss(160, 8),
                "memory/peak_gib": 3.1,
                **{f"time/{name}": value for name, value in time.items()},
                "time/step": sum(time.values()) + 0.4,
            }
        )
    return rows


def answer_pair(index: int, draw: random.Random, gain: float, gold: bool) -> Row:
    """One held-out prompt and its answers; the policy's is right with a chance of 0.3 + gain."""
    a, b, n = draw.randint(2, 60), draw.randint(2, 60), draw.randint(3, 6)
    is_sum = index % 2 == 0
    fruits = ["apple", "pear", "plum", "cherry", "quince", "fig"]
    right = str(a + b) if is_sum else "\n".join(fruits[:n])
    wrong = f"{WORDY}The answer to your question is {a + b + draw.randint(1, 9)}, because we add {a} and {b}."
    prompt = [{"role": "user", "content": SUMS.format(a=a, b=b) if is_sum else LISTS.format(n=n)}]
    if index % 7 == 3:
        earlier = (
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello. What can I do?"},
        )
        prompt = [*earlier, *prompt]

    def answer(good: bool, kl: float) -> Row:
        text = right if good else wrong
        finished = good or draw.random() < 0.8
        reward = round(draw.gauss(0.9 if good else -0.7, 0.4), 3)
        score = float(good) if gold else None
        return {
            "answer": text,
            "reward": reward,
            "gold": score,
            "kl": kl * (40 - 30 * good),
            "length": 40 - 30 * good,
            "finished": finished,
        }

    return {
        "prompt": prompt,
        "before": answer(draw.random() < 0.3, 0.0),
        "after": answer(draw.random() < 0.3 + gain, abs(draw.gauss(0.05, 0.02))),
    }


def policy_evaluation(*, gain: float = 0.3, prompts: int = 64, gold: bool = True, seed: int = 2) -> Row:
    """An eval.json whose figures are the means of its answers, with normal intervals."""
    draw = random.Random(seed)
    answers = [answer_pair(i, draw, gain, gold) for i in range(prompts)]
    result: Row = {
        "before": {},
        "after": {},
        "difference": {},
        "prompts": prompts,
        "samples": 2,
        "answers": answers,
    }
    for name in ("reward", "gold", "kl", "length"):
        if name == "gold" and not gold:
            result["before"][name] = result["after"][name] = result["difference"][name] = None
            continue
        before, after = ([row[side][name] for row in answers] for side in ("before", "after"))
        gaps = [high - low for low, high in zip(before, after, strict=True)]
        mean = sum(gaps) / prompts
        half = 1.96 * (sum((gap - mean) ** 2 for gap in gaps) / (prompts - 1) / prompts) ** 0.5
        result["before"][name], result["after"][name] = sum(before) / prompts, sum(after) / prompts
        result["difference"][name] = {"mean": mean, "ci95": [mean - half, mean + half]}
    return result


def make_policy_run(
    path: Path, *, steps: int = 60, evaluation: Row | None = None, reward: str = "none/final"
) -> Path:
    """A whole run of `align-policy`."""
    path.mkdir(parents=True)
    config = {
        "output": str(path),
        "seed": 0,
        "model": {"base": "embedded", "dtype": "bfloat16", "quantization": "none"},
        "adapter": {"rank": 16, "alpha": 32.0},
        "reward": reward,
        "rollouts": {"engine": "vllm", "prompts_per_step": 8, "samples_per_prompt": 4, "logprob_bound": 0.5},
        "algorithm": {
            "name": "reinforce",
            "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.05},
        },
        "steps": steps,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    environment = {"python": "3.11.2", "packages": {"torch": "2.13.0", "trl": "1.16.0"}, "cpu": {"cores": 2}}
    (path / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    lines(path / "metrics.jsonl", policy_metrics(steps))
    draw = random.Random(3)
    samples = []
    for step in sorted({1, 2, steps}):
        for index in range(8):
            row = answer_pair(index, draw, 0.3, True)
            samples.append({"step": step, "prompt": row["prompt"], **row["after"]})
    lines(path / "samples.jsonl", samples)
    result = policy_evaluation() if evaluation is None else evaluation
    (path / "eval.json").write_text(json.dumps(result), encoding="utf-8")
    return path


def reward_metrics(steps: int, seed: int = 4) -> list[Row]:
    """Two stages, regression and then preferences, with a validation every tenth step."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for step in range(1, steps + 1):
        first = step <= steps // 2
        done = step / steps
        row: Row = {"step": step, "stage": "regression" if first else "preferences"}
        if first:
            row["loss/regression"] = 1.1 + 2.4 * math.exp(-9 * done) + draw.gauss(0, 0.12)
        else:
            row["loss/bt"] = 0.98 - 0.25 * done + draw.gauss(0, 0.07)
            row["reward/margin"] = 1.1 * (done - 0.4) + draw.gauss(0, 0.15)
            row["reward/accuracy"] = min(1, 0.55 + 0.16 * done + draw.gauss(0, 0.05))
        row["loss/total"] = row.get("loss/regression", row.get("loss/bt"))
        row |= {
            "reward/mean": 2.4 + draw.gauss(0, 0.2),
            "reward/std": 0.8,
            "tokens/useful": 8200,
            "tokens/computed": 9100,
        }
        row |= {
            "optimizer/lr": 1e-4 * min(1, step / 10),
            "optimizer/grad_norm": abs(draw.gauss(2, 0.5)),
            "time/step": 9.5,
        }
        rows.append(row)
        if step % 10 == 0:
            accuracy = 0.52 + 0.13 * (1 - math.exp(-4 * done)) + draw.gauss(0, 0.008)
            held_out = {"validation/loss": 1.2 - 0.3 * done, "validation/mse": 1.5 - 0.35 * done}
            rows.append({"step": step, "validation/accuracy": accuracy, **held_out})
    return rows


def reward_evaluation() -> Row:
    """An eval.json of `evaluate-reward`: four subsets in two sections, and what was dropped."""
    counts = {"sums": 240, "lists": 180, "capitals": 160, "multi-turn": 40}
    shares = {"sums": 0.75, "lists": 0.65, "capitals": 0.60, "multi-turn": 0.45}
    total = sum(counts.values())
    right = sum(counts[name] * shares[name] for name in counts)
    sections = {"checked": (240 * 0.75 + 180 * 0.65 + 160 * 0.60) / 580, "chat": 0.45}
    zero = {"count": 1500, "examples": ["train.jsonl:4", "train.jsonl:19", "train.jsonl:22"]}
    dropped = {"annotators disagree (spread above 2)": {"count": 507, "examples": []}, "strength is 0": zero}
    return {
        "subsets": {
            name: {"accuracy": shares[name], "count": counts[name], "length_baseline": 0.5} for name in counts
        },
        "sections": sections,
        "overall": right / total,
        "length_baseline": 0.523,
        "intervals": {
            "sections": {"checked": [0.637, 0.713], "chat": [0.307, 0.602]},
            "overall": [0.601, 0.672],
        },
        "length_correlation": 0.12,
        "calibration": {"ece": 0.0677, "brier": 0.231, "log_loss": 0.653, "bins": reliability_bins()},
        "scores": {
            "chosen": {"median": 0.4},
            "rejected": {"median": -0.1},
            "histogram": {
                "edges": [-2, -1, 0, 1, 2],
                "chosen": [60, 150, 250, 160],
                "rejected": [90, 240, 200, 90],
            },
        },
        "drops": {"read": 9125, "kept": 7118, "dropped": dropped},
    }


def reliability_bins() -> list[Row]:
    """Ten bins of confidence; the last three are empty."""
    counts = (250, 160, 90, 60, 30, 20, 10, 0, 0, 0)
    return [
        {
            "low": 0.5 + i / 20,
            "high": 0.55 + i / 20,
            "count": count,
            "confidence": 0.525 + i / 20 if count else None,
            "accuracy": 0.56 + i / 40 if count else None,
            "ci95": wilson_interval(0.56 + i / 40, count) if count else None,
        }
        for i, count in enumerate(counts)
    ]


def make_reward_run(path: Path, *, steps: int = 80) -> Path:
    """A whole run of `train-reward`."""
    path.mkdir(parents=True)
    stages = [
        {"name": "regression", "regression_weight": 1.0},
        {"name": "preferences", "preference_weight": 1.0},
    ]
    config = {"output": str(path), "model": {"base": "embedded"}, "adapter": {"rank": 16}, "stages": stages}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps({"python": "3.11.2"}), encoding="utf-8")
    lines(path / "metrics.jsonl", reward_metrics(steps))
    (path / "eval.json").write_text(json.dumps(reward_evaluation()), encoding="utf-8")
    (path / "final").mkdir()
    return path


@pytest.fixture
def policy_run(tmp_path: Path) -> Path:
    """A finished policy run, its reward model beside it."""
    judge = make_reward_run(tmp_path / "reward")
    return make_policy_run(tmp_path / "policy", reward=str(judge / "final"))


@pytest.fixture
def reward_run(tmp_path: Path) -> Path:
    """A finished reward run."""
    return make_reward_run(tmp_path / "reward-run")


@pytest.fixture
def make_policy() -> Callable[..., Path]:
    """`make_policy(path, steps=, evaluation=, reward=)`."""
    return make_policy_run


@pytest.fixture
def evaluate() -> Callable[..., Row]:
    """`evaluate(gain=, prompts=, gold=)`: an eval.json."""
    return policy_evaluation
