"""SIGKILL at random moments: every killed run, resumed, must equal the unbroken one.

    python tests/campaigns/kills.py --kills 50 --output runs/kills

A case is a command (train-reward, or align-policy with reinforce or ppo), the number format of the base
(bfloat16 or NF4) and one or two processes. Each case first runs unbroken, then again and again: killed after
a random time, resumed, killed again, until it ends. Two runs are equal if every figure in metrics.jsonl but
times and memory, the trained weights and the figures of eval.json are equal. Models are tiny and random, so
that a run takes seconds. The result is a JSON file and a Markdown table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MEASURED = ("time/", "memory/", "engine/tokens_per_second")
LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "rlhf"]


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    command: str
    quantization: str
    algorithm: str = ""
    processes: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return " ".join(filter(None, [self.command, self.algorithm, self.quantization, f"x{self.processes}"]))


CASES = [
    Case("train-reward", "none"),
    Case("train-reward", "nf4"),
    Case("align-policy", "none", "reinforce"),
    Case("align-policy", "nf4", "reinforce"),
    Case("align-policy", "none", "ppo"),
    Case("train-reward", "none", processes=2),
    Case("align-policy", "none", "reinforce", 2),
]


def write_configs(folder: Path) -> None:
    """A tiny base and the configs of both commands."""
    from tests.conftest import write_tiny_base

    base = write_tiny_base(folder / "base", seed=0)
    model = {"base": str(base), "max_length": 256}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 2}
    reward = {
        "output": "unused",
        "model": model,
        "adapter": {"rank": 4},
        "data": {"ratings": [{"path": "demo", "format": "helpsteer2", "limit": 80}]},
        "stages": [
            {
                "name": "ratings",
                "regression_weight": 1,
                "max_steps": 8,
                "batch_size": 4,
                "optimizer": optimizer,
            }
        ],
        "save_every": 1,
    }
    policy = {
        "output": "unused",
        "model": model,
        "adapter": {"rank": 4},
        "reward": str(folder / "reward" / "final"),
        "data": {"prompts": [{"path": "demo", "limit": 60}], "max_prompt_tokens": 120},
        "rollouts": {
            "engine": "transformers",
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "max_new_tokens": 12,
        },
        "evaluation": {"prompts": 4, "samples": 1},
        "optimizer": optimizer,
        "steps": 6,
        "save_every": 1,
    }
    (folder / "train-reward.yaml").write_text(json.dumps(reward))
    (folder / "align-policy.yaml").write_text(json.dumps(policy))


def command_of(case: Case, folder: Path, output: Path, *, resume: bool) -> list[str]:
    """The command line of a run."""
    words = [case.command, str(folder / f"{case.command}.yaml"), f"model.quantization={case.quantization}"]
    words += ["--output", str(output)] + (["--resume"] if resume else [])
    if case.algorithm == "ppo":
        words.append("algorithm={name: ppo, epochs: 2, unfinished: keep}")
    elif case.algorithm:
        words.append("algorithm={name: reinforce, unfinished: keep}")
    return [sys.executable, *(LAUNCH if case.processes > 1 else ["-m", "rlhf"]), *words]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A run in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True, cwd=ROOT
        )


def state_of(run: Path) -> dict[str, Any]:
    """What must be equal: figures by update, a hash of the weights, the evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]
    weights = hashlib.sha256((run / "final" / "adapter_model.safetensors").read_bytes()).hexdigest()
    evaluation = json.loads((run / "eval.json").read_text())
    return {"metrics": figures, "weights": weights, "eval": evaluation}


def difference(run: Path, unbroken: dict[str, Any]) -> str:
    """The first part that is not equal, or the empty string."""
    if not (run / "metrics.jsonl").exists():
        return "no metrics.jsonl"
    state = state_of(run)
    return next((part for part in state if state[part] != unbroken[part]), "")


def killed_run(case: Case, folder: Path, seconds: float, draw: random.Random, log: Path) -> tuple[Path, int]:
    """A run that is killed at random moments and resumed until it ends; returns its folder and how often it
    was killed."""
    run, kills = folder / "killed", 0
    shutil.rmtree(run, ignore_errors=True)
    while True:
        process = start(command_of(case, folder, run, resume=run.exists() and any(run.iterdir())), log)
        # After a few kills it is left alone: each resumption repeats the start, and must come to its end some
        # time.
        patience = draw.uniform(0.25, 1.05) * seconds if kills < 3 else None
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        if code != 0:
            raise RuntimeError(f"{case.name}: exit code {code} after {kills} kills; see {log}")
        return run, kills


def campaign(case: Case, folder: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill and compare until there were enough kills."""
    log = folder / f"{case.name.replace(' ', '-')}.log"
    unbroken = folder / "unbroken" / case.name.replace(" ", "-")
    started = time.monotonic()
    process = start(command_of(case, folder, unbroken, resume=False), log)
    if process.wait() != 0:
        raise RuntimeError(f"{case.name}: the unbroken run failed; see {log}")
    seconds, wanted = time.monotonic() - started, state_of(unbroken)
    result = {"case": case.name, "kills": 0, "runs": 0, "equal": 0, "different": [], "seconds": seconds}
    while result["kills"] < kills:
        run, killed = killed_run(case, folder, seconds, draw, log)
        fault = difference(run, wanted)
        result["runs"] += 1
        result["kills"] += killed
        result["equal"] += not fault
        result["different"] += [fault] if fault else []
        half_written = [str(file.relative_to(run)) for file in run.rglob("*.unfinished*")]
        result["different"] += half_written
        print(
            f"{case.name}: {result['kills']} kills, {result['equal']} of {result['runs']} runs equal",
            flush=True,
        )
    return result


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    options = parser.parse_args()
    folder = options.output.absolute()
    folder.mkdir(parents=True)
    write_configs(folder)
    reward = start(command_of(CASES[0], folder, folder / "reward", resume=False), folder / "reward.log")
    if reward.wait() != 0:
        raise SystemExit(f"The reward model was not trained; see {folder / 'reward.log'}")
    cases = [case for case in CASES if not options.case or any(part in case.name for part in options.case)]
    draw, share = random.Random(options.seed), -(-options.kills // len(cases))
    results = [campaign(case, folder, share, draw) for case in cases]
    (folder / "kills.json").write_text(json.dumps(results, indent=1))
    print("\n| case | kills | resumed runs | equal to the unbroken run |\n| --- | ---: | ---: | ---: |")
    for result in results:
        print(f"| {result['case']} | {result['kills']} | {result['runs']} | {result['equal']} |")
    if any(result["different"] for result in results):
        raise SystemExit("NOT equal: " + json.dumps([r for r in results if r["different"]], indent=1))


if __name__ == "__main__":
    main()
