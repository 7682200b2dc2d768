"""Commands in one process and in two, with the launch files of `configs/launch/`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.startup import QUIET

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "worker.py"
PPO = (
    "algorithm={name: ppo, kl: {estimator: k1, reduction: sum, coefficient: 0.05}, "
    "critic: {learning_rate: 1.0e-3, warmup_steps: 1}}"
)
TIMEOUT = float(os.environ.get("RLHF_TEST_LAUNCH_TIMEOUT", "600"))
"""Seconds before a launch counts as hanging; a busy machine needs more."""

Outcome = Mapping[str, Any]
Jobs = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def here() -> Callable[[Mapping[str, Any]], Outcome]:
    """Run a command in this process."""
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)

    def run(job: Mapping[str, Any]) -> Outcome:
        outcome: Outcome = worker.run(job)
        assert not outcome.get("error"), outcome["error"]
        return outcome

    return run


def launch(words: Sequence[str], *, strategy: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with a file of `configs/launch/`, on two CPU processes of one thread each."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((ROOT / "configs" / "launch" / f"{strategy}.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config |= {"num_processes": 2, "main_process_ip": "127.0.0.1", "main_process_port": port}
    config["use_cpu"] = strategy != "zero3"  # with use_cpu accelerate ignores DeepSpeed
    file = folder / f"{strategy}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *words]
    variables = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | QUIET | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # on SIGTERM the launcher stops its workers; SIGKILL would leave them running
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.fixture(scope="session")
def launcher() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The function `launch`."""
    return launch


def launched(jobs: Jobs, *, strategy: str, folder: Path) -> list[dict[str, Outcome]]:
    """Run the jobs one after another in two processes; return the outcomes of each process by job."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    result = launch([str(WORKER), str(file), str(folder / "outcomes")], strategy=strategy, folder=folder)
    assert result.returncode == 0, result.stderr[-6000:]
    by_rank = [json.loads((folder / f"outcomes-{index}.json").read_text()) for index in range(2)]
    errors = [
        outcome["error"] for outcomes in by_rank for outcome in outcomes.values() if outcome.get("error")
    ]
    assert not errors, errors[0]
    return by_rank


@pytest.fixture(scope="session")
def words(reward_config: Path, policy_config: Path) -> Callable[..., list[str]]:
    """Arguments of a command: few updates, no dropout, and more answers than processes."""
    commands = {
        "reward": ["train-reward", str(reward_config), "adapter.dropout=0", "tokens_per_batch=256",
                   "stages.0.max_steps=3", "stages.1.max_steps=3"],
        "policy": ["align-policy", str(policy_config), "rollouts.prompts_per_step=4", "tokens_per_batch=256"],
        "ppo": ["align-policy", str(policy_config), PPO, "rollouts.prompts_per_step=4",
                "tokens_per_batch=256", "steps=3"],
        "qlora": ["train-reward", str(reward_config), "adapter.dropout=0", "tokens_per_batch=256",
                  "stages.0.max_steps=2", "stages.1.max_steps=1", "model.quantization=nf4",
                  "model.dtype=bfloat16"],
        "whole": ["align-policy", str(policy_config), "adapter=null", "optimizer.learning_rate=1.0e-3",
                  "steps=2", "rollouts.prompts_per_step=4", "tokens_per_batch=256"],
    }  # fmt: skip

    def arguments(kind: str, run: Path, *more: str) -> list[str]:
        return [*commands[kind], *more, "--output", str(run)]

    return arguments


@pytest.fixture(scope="session")
def alone(
    here: Callable[[Mapping[str, Any]], Outcome],
    words: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Runs in one process: complete ones, and killed ones."""
    folder = tmp_path_factory.mktemp("alone")
    for kind in ("reward", "policy", "ppo", "qlora", "whole"):
        assert here({"words": words(kind, folder / kind)})["exit"] == 0
    for kind, step in KILLED_AT.items():
        assert here({"words": words(kind, folder / f"killed-{kind}"), "kill_at": step})["exit"] == "killed"
    return folder


KILLED_AT = {"reward": 6, "policy": 3}
"""Checkpoints are written after updates 2, 3 (the end of the first stage) and 5 of a reward run, and 2 of a
policy run, so that runs resume in the middle of a stage, with moments."""


REST = {
    "ddp": ("ppo", "whole", *(f"resumed-{kind}" for kind in KILLED_AT)),
    "fsdp2": ("resumed-reward", "killed-policy", "sampled"),
}
"""Jobs for the slow tests alone: for DDP those whose code it shares with one process or with FSDP2, for FSDP2
the other half of the resumed runs."""


@pytest.fixture(scope="session")
def together(
    request: pytest.FixtureRequest,
    alone: Path,
    words: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Outcome]]]:
    """The same runs in two processes, the killed ones resumed, and others killed.

    Parametrised by strategy; `ddp` and `fsdp2` stand for the first of their jobs, and `ddp-rest` and
    `fsdp2-rest` for the others.
    """
    folder = tmp_path_factory.mktemp(request.param)
    strategy, _, rest = request.param.partition("-")
    jobs: dict[str, dict[str, Any]] = {}
    for kind in ("reward", "policy", "ppo", "whole", *(["qlora"] if strategy != "ddp" else [])):
        jobs[kind] = {"words": words(kind, folder / kind)}
    for kind, step in KILLED_AT.items():
        shutil.copytree(alone / f"killed-{kind}", folder / f"resumed-{kind}")
        jobs[f"resumed-{kind}"] = {"words": [*words(kind, folder / f"resumed-{kind}"), "--resume"]}
        if strategy != "ddp":  # DDP uses the same code as one process, and each job takes a minute
            jobs[f"killed-{kind}"] = {"words": words(kind, folder / f"killed-{kind}"), "kill_at": step}
            jobs["sampled"] = {"words": words("policy", folder / "sampled", "steps=1"), "samples": True}
    jobs["signalled"] = {"words": words("policy", folder / "signalled"), "signal_at": [1, 1]}
    jobs["refused"] = {"words": words("reward", folder / "refused", "stages.1.batch_size=3")}
    (folder / "occupied").mkdir()
    (folder / "occupied" / "notes.txt").write_text("")
    jobs["occupied"] = {"words": words("reward", folder / "occupied")}
    if strategy in REST:
        jobs = {name: job for name, job in jobs.items() if (name in REST[strategy]) == bool(rest)}
    return folder, launched(jobs, strategy=strategy, folder=folder)
