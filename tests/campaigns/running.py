"""Short runs of both commands as child processes, and how two runs are compared.

A run in one process is a fork of the campaign, which has imported the libraries once: on a busy machine the
imports take longer than such a run. Runs in several processes are started by `accelerate launch`.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from rlhf import cli
from tests.campaigns import faulty

ROOT = Path(__file__).parents[2]
VARIABLES = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

MEASURED = ("time/", "memory/", "engine/tokens_per_second")
PROCESSES = 2
"""Of a case with several."""
FAULTY = ROOT / "tests" / "campaigns" / "faulty.py"


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    command: str
    quantization: str = "none"
    algorithm: str = ""
    processes: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return " ".join(filter(None, [self.command, self.algorithm, self.quantization, f"x{self.processes}"]))


CASES = [
    Case("train-reward"),
    Case("train-reward", "nf4"),
    Case("align-policy", "none", "reinforce"),
    Case("align-policy", "nf4", "reinforce"),
    Case("align-policy", "none", "ppo"),
    Case("train-reward", processes=2),
    Case("align-policy", "none", "reinforce", 2),
]


def write_configs(folder: Path) -> None:
    """A tiny base and the configs of both commands."""
    from tests.conftest import write_tiny_base

    base = write_tiny_base(folder / "base", seed=0)
    model = {"base": str(base), "max_length": 256}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 2}
    stage = {"name": "ratings", "regression_weight": 1, "max_steps": 8, "batch_size": 4}
    reward = {
        "output": "unused",
        "model": model,
        "adapter": {"rank": 4},
        "data": {"ratings": [{"path": "demo", "format": "helpsteer2", "limit": 80}]},
        "stages": [{**stage, "optimizer": optimizer}],
        "save_every": 1,
    }
    rollouts = {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 12}
    policy = {
        "output": "unused",
        "model": model,
        "adapter": {"rank": 4},
        "reward": str(folder / "reward" / "final"),
        "data": {"prompts": [{"path": "demo", "limit": 60}], "max_prompt_tokens": 120},
        "rollouts": {"engine": "transformers", **rollouts},
        "evaluation": {"prompts": 4, "samples": 1},
        "optimizer": optimizer,
        "steps": 6,
        "save_every": 1,
    }
    (folder / "train-reward.yaml").write_text(json.dumps(reward))
    (folder / "align-policy.yaml").write_text(json.dumps(policy))
    # With `--cpu` alone accelerate starts one process, whatever `--num_processes` says.
    launch = yaml.safe_load((ROOT / "configs" / "launch" / "ddp.yaml").read_text())
    launch |= {"use_cpu": True, "num_processes": PROCESSES, "main_process_ip": "127.0.0.1"}
    (folder / "launch.yaml").write_text(yaml.safe_dump(launch))


def prepare(folder: Path) -> None:
    """A new folder with configs, a tiny base and a reward model for align-policy."""
    os.environ.update(VARIABLES)
    folder.mkdir(parents=True)
    import_libraries()
    writing = multiprocessing.get_context("fork").Process(target=write_configs, args=(folder,))
    writing.start()  # in a fork, so that this process starts no threads
    writing.join()
    run_to_end(Case("train-reward"), folder, folder / "reward")


def arguments_of(case: Case, folder: Path, output: Path, *, resume: bool) -> list[str]:
    """The command line after `rlhf`."""
    words = [case.command, str(folder / f"{case.command}.yaml"), f"model.quantization={case.quantization}"]
    words += ["--output", str(output)] + (["--resume"] if resume else [])
    if case.algorithm == "ppo":
        words.append("algorithm={name: ppo, epochs: 2, unfinished: keep}")
    elif case.algorithm:
        words.append("algorithm={name: reinforce, unfinished: keep}")
    return words


class Forked:
    """A command in a fork of this process, in a session of its own; as much of `subprocess.Popen` as is used.

    Args:
        words: the command line after `rlhf`.
        log: gets its output.
        fault: for `faulty.install`.
    """

    def __init__(self, words: Sequence[str], log: Path, fault: Mapping[str, Any] | None) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_command, args=(words, log, fault))
        self._process.start()
        assert self._process.pid is not None  # it is started
        self.pid = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; that of a signal is negative."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("rlhf", timeout or 0)
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def _command(words: Sequence[str], log: Path, fault: Mapping[str, Any] | None) -> None:
    os.setsid()
    with log.open("ab") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = None  # of the campaign; TMPDIR may differ now
    if fault is not None:
        faulty.install(fault)
    sys.argv = ["rlhf", *words]
    try:
        cli.main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing skips


def start_run(
    case: Case,
    folder: Path,
    output: Path,
    log: Path,
    *,
    resume: bool | None = None,
    fault: Mapping[str, Any] | None = None,
) -> Forked | subprocess.Popen[bytes]:
    """Start a run; by default it resumes if `output` holds a part of it."""
    resume = output.exists() and any(output.iterdir()) if resume is None else resume
    words = arguments_of(case, folder, output, resume=resume)
    fault = None if fault is None else {"folder": str(output), **fault}
    if case.processes == 1:
        return Forked(words, log, fault)
    program = ["-m", "rlhf"] if fault is None else [str(FAULTY), json.dumps(fault)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / "launch.yaml")]
    launch += ["--main_process_port", port]
    return start([sys.executable, *launch, *program, *words], log)


def import_libraries() -> None:
    """Import what both commands import, for all forks."""
    from policy import recipe as policy_recipe
    from reward.training import recipe as reward_recipe
    from rlhf.commands import align_policy, train_reward
    from rlhf.plan import machine

    assert all((policy_recipe, reward_recipe, align_policy, train_reward, machine))


def start(command: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A program in a session of its own; its output is appended to `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env=os.environ | VARIABLES | variables,
            start_new_session=True,
            cwd=ROOT,
        )


def run_to_end(case: Case, folder: Path, output: Path, fault: Mapping[str, Any] | None = None) -> None:
    """Run, or resume if `output` holds a run.

    Raises:
        RuntimeError: it fails.
    """
    log = folder / f"{output.name}.log"
    code = start_run(case, folder, output, log, fault=fault).wait()
    if code != 0:
        raise RuntimeError(f"{case.name}: exit code {code}; see {log}")


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL; processes that have ended are skipped."""
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def kill_tree(process: Forked | subprocess.Popen[bytes]) -> None:
    """SIGKILL a process and all of its descendants: torch's launcher gives each worker a session of its own,
    which would survive."""
    children = descendants(process)
    process.kill()
    kill(children)
    process.wait()


def descendants(process: Forked | subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Children and their children."""
    try:
        return list(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def state_of(run: Path) -> dict[str, Any]:
    """What must be equal: figures by update, a hash of the weights, the evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]
    weights = hashlib.sha256((run / "final" / "adapter_model.safetensors").read_bytes()).hexdigest()
    evaluation = json.loads((run / "eval.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    return {
        "metrics": figures,
        "weights": weights,
        "eval": evaluation,
        "report": has_report(run),
        "processes": environment["processes"],
    }


def has_report(run: Path) -> bool:
    """Whether the report is complete."""
    report = run / "report.html"
    return report.exists() and report.read_text(encoding="utf-8").rstrip().endswith("</html>")


def difference(run: Path, unbroken: Mapping[str, Any]) -> str:
    """The first part that is not equal, or a file that is half written; else the empty string."""
    if not (run / "metrics.jsonl").exists():
        return "no metrics.jsonl"
    state = state_of(run)
    if state["metrics"] != unbroken["metrics"]:
        return f"metrics: {first_difference(state['metrics'], unbroken['metrics'])}"
    unequal = next((part for part in state if state[part] != unbroken[part]), "")
    return unequal or next(iter(half_written(run)), "")


def first_difference(rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> str:
    """Update, name and values of the first figure that differs."""
    for row, other in zip(rows, expected, strict=False):
        for name in row.keys() | other.keys():
            if row.get(name) != other.get(name):
                return f"update {row['step']}: {name} is {row.get(name)}, and was {other.get(name)}"
    return f"{len(rows)} rows in place of {len(expected)}"


def write_results(results: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Print each result as it comes, write all as JSON, and fail if one is wrong."""
    kept = []
    for result in results:
        kept.append(result)
        print(json.dumps(result), flush=True)
    file.write_text(json.dumps(kept, indent=1))
    if wrong := [result for result in kept if result.get("wrong")]:
        raise SystemExit("FAILED: " + json.dumps(wrong, indent=1))


def half_written(run: Path) -> list[str]:
    """Files and folders with a temporary name."""
    return [
        str(file.relative_to(run))
        for file in run.rglob("*")
        if file.name.endswith((".half-written", ".unfinished"))
    ]
