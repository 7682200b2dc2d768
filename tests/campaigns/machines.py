"""Several machines on one: network namespaces, `accelerate launch --num_machines`, a host that is lost.

    python tests/campaigns/machines.py --output runs/machines        # as root, on Linux, with iproute2

Three hosts are network namespaces, connected by a bridge in a fourth. They share the disk.

- ddp, fsdp2: train-reward on two hosts, gloo over the network, with the launch files of `configs/launch/`;
  metrics and weights equal those of one process up to the order of sums.
- servers: align-policy on two hosts, sampled by a rollout server on the third; equal to the same two
  processes on one host.
- cut: the link of one host goes down during training; killed: all processes of one host get SIGKILL. The
  other host must end with a message within `BOUND` seconds.
- resumed: the run that was cut, resumed on one host, stopped there, and resumed on three; equal to the
  unbroken run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
import yaml

from rlhf.distributed.heartbeat import LOST_AFTER
from rlhf.runs.signals import end_cleanly_on_sigterm
from tests.campaigns.hosts import Hosts, hosts, missing
from tests.campaigns.running import MEASURED, ROOT, kill, write_configs, write_results

PORT = 29500
BOUND = LOST_AFTER + 180
"""Seconds from the loss of a host to the end of the others: heartbeats, and a busy machine."""
PACKED = ("tokens/computed",)
CLOSE, CLOSE_WEIGHTS = 2e-5, 5e-5
"""Tolerances of `tests/distributed`: float32 sums in another order."""
EXACT = ["model.dtype=float32", "adapter.dropout=0", "tokens_per_batch=256"]
WORDS = {
    "train-reward": [*EXACT, "stages.0.batch_size=6"],
    "align-policy": [*EXACT, "rollouts.engine=servers", "steps=3"],
}
UPDATES = 12
"""Of the runs that lose a host."""


class Campaign:
    """The runs of one folder.

    Args:
        network: the hosts.
        folder: shared by all of them.
    """

    def __init__(self, network: Hosts, folder: Path) -> None:
        self.network, self.folder = network, folder

    def words(self, command: str, output: Path, *more: str) -> list[str]:
        """The command line after `rlhf`."""
        config = self.folder / f"{command}.yaml"
        resume = ["--resume"] if output.exists() and any(output.iterdir()) else []
        return [command, str(config), *WORDS[command], *more, "--output", str(output), *resume]

    def launch(self, machines: int, strategy: str, words: Sequence[str]) -> list[subprocess.Popen[bytes]]:
        """`accelerate launch` on the first hosts, one process on each."""
        settings = yaml.safe_load((ROOT / "configs" / "launch" / f"{strategy}.yaml").read_text())
        file = self.folder / f"{strategy}.yaml"
        file.write_text(yaml.safe_dump(settings | {"use_cpu": True}))
        started = []
        for number in range(machines):
            options = ["--config_file", str(file), "--num_machines", str(machines)]
            options += ["--num_processes", str(machines), "--machine_rank", str(number)]
            options += ["--main_process_ip", self.network.address(0), "--main_process_port", str(PORT)]
            command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "rlhf", *words]
            started.append(self.network.start(number, command, self.log(words, number)))
        return started

    def alone(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        """One process on the first host."""
        return self.network.start(0, [sys.executable, "-m", "rlhf", *words], self.log(words, 0))

    def log(self, words: Sequence[str], number: int) -> Path:
        """The output of a run on a host."""
        run = Path(words[words.index("--output") + 1])
        return self.folder / f"{run.name}-host-{number}.log"

    def end(self, processes: Sequence[subprocess.Popen[bytes]], words: Sequence[str]) -> None:
        """Wait for a run.

        Raises:
            RuntimeError: it failed.
        """
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"{words[0]}: exit codes {codes}; see {self.log(words, 0)}")

    def equal_to_one_process(self, strategy: str, unbroken: Path) -> str:
        """Train on two hosts and compare; returns the difference."""
        words = self.words("train-reward", self.folder / strategy)
        self.end(self.launch(2, strategy, words), words)
        return difference(self.folder / strategy, unbroken)

    def with_rollout_server(self) -> str:
        """Align on two hosts with a server on the third, and beside the same two processes on one host."""
        ready = self.folder / "server.url"
        serve = [sys.executable, __file__, "--serve", self.network.address(2), "--output", str(self.folder)]
        self.network.start(2, serve, self.folder / "server.log")
        while not ready.exists():
            time.sleep(0.5)
        servers = f"rollouts.servers=[{ready.read_text()}]"
        words = self.words("align-policy", self.folder / "servers", servers)
        self.end(self.launch(2, "ddp", words), words)
        words = self.words("align-policy", self.folder / "servers-one-host", servers)
        options = [
            "--config_file",
            str(self.folder / "ddp.yaml"),
            "--num_machines",
            "1",
            "--num_processes",
            "2",
        ]
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(PORT)]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "rlhf", *words]
        self.end([self.network.start(0, command, self.log(words, 0))], words)
        return difference(self.folder / "servers", self.folder / "servers-one-host", exact=True)

    def lose_a_host(self, name: str, strategy: str = "ddp") -> dict[str, Any]:
        """Train on two hosts and lose the second one after a few updates."""
        run = self.folder / name
        words = self.words("train-reward", run, f"stages.0.max_steps={UPDATES}")
        started = self.launch(2, strategy, words)
        wait_for_updates(run, 3, started)
        lost = time.monotonic()
        if name.startswith("cut"):
            self.network.cut(1)
        else:
            kill(self.network.processes(1))
        codes = []
        try:
            codes = [process.wait(max(1.0, lost + BOUND - time.monotonic())) for process in started]
            wrong = "" if all(codes) else f"exit codes {codes}"
        except subprocess.TimeoutExpired:
            wrong = f"still there after {BOUND:g} seconds"
        seconds = round(time.monotonic() - lost)
        for number in (0, 1):
            kill(self.network.processes(number))
        self.network.connect(1)
        text = self.log(words, 0).read_text(errors="replace")
        wrong = wrong or ("no message" if "--resume" not in text else "")
        return {"what": name, "strategy": strategy, "exit": codes, "seconds": seconds, "wrong": wrong}

    def resume(self, name: str, unbroken: Path) -> str:
        """Resume the run `name` on one host, stop it after one update, and resume on three hosts."""
        run = self.folder / name
        before = len(updates(run))
        words = self.words("train-reward", run, f"stages.0.max_steps={UPDATES}")
        process = self.alone(words)
        wait_for_updates(run, min(before + 1, UPDATES - 2), [process])
        for child in [process, *psutil.Process(process.pid).children(recursive=True)]:
            child.send_signal(signal.SIGTERM)
        if (code := process.wait()) != 143:
            raise RuntimeError(f"exit code {code} after SIGTERM; see {self.log(words, 0)}")
        stopped = len(updates(run))
        words = self.words("train-reward", run, f"stages.0.max_steps={UPDATES}")
        self.end(self.launch(3, "ddp", words), words)
        processes = json.loads((run / "environment.json").read_text())["resumed"][-1]["processes"]
        assert processes == 3, processes
        return difference(run, unbroken) or ("not stopped" if stopped >= UPDATES else "")


def updates(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl that are updates."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [row for row in map(json.loads, lines) if "loss/total" in row]


def wait_for_updates(run: Path, count: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until a run has logged so many updates.

    Raises:
        RuntimeError: it ended before.
    """
    while len(updates(run)) < count:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError(f"{run.name} ended after {len(updates(run))} updates")
        time.sleep(0.05)


def difference(run: Path, other: Path, *, exact: bool = False) -> str:
    """What differs by more than the tolerance; empty if nothing does."""
    from safetensors.torch import load_file

    rows = [
        [
            {
                name: value
                for name, value in json.loads(line).items()
                if not name.startswith(MEASURED + PACKED)
            }
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (run, other)
    ]
    if [sorted(row) for row in rows[0]] != [sorted(row) for row in rows[1]]:
        return "other metrics"
    close, close_weights = (0.0, 0.0) if exact else (CLOSE, CLOSE_WEIGHTS)
    for row, expected in zip(*rows, strict=True):
        for name, value in expected.items():
            if isinstance(value, float) and abs(row[name] - value) > close * max(1.0, abs(value)):
                return f"update {row['step']}: {name} is {row[name]}, and {value} in {other.name}"
    left, right = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (run, other))
    largest = max(float((left[name] - right[name]).abs().max()) for name in right)
    return f"weights differ by {largest}" if largest > close_weights else ""


def serve(address: str, folder: Path) -> None:
    """A rollout server with the tiny base, until it is killed."""
    import fake_vllm

    base = folder / "base"
    server = fake_vllm.FakeVLLM(
        str(base), answer=fake_vllm.TinyModel(base), max_model_len=400, address=address
    )
    (folder / "server.unfinished").write_text(server.url)
    (folder / "server.unfinished").rename(folder / "server.url")
    signal.pause()


def campaign(folder: Path, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All parts, or those named."""
    with hosts(3) as network:
        runs = Campaign(network, folder)
        words = runs.words("train-reward", folder / "reward")
        runs.end([runs.alone(words)], words)
        for strategy in ("ddp", "fsdp2"):
            if not only or strategy in only:
                wrong = runs.equal_to_one_process(strategy, folder / "reward")
                yield {"what": strategy, "hosts": 2, "wrong": wrong}
        if not only or "servers" in only:
            yield {"what": "servers", "hosts": 3, "wrong": runs.with_rollout_server()}
        if not only or "cut" in only:
            yield runs.lose_a_host("cut")
            words = runs.words("train-reward", folder / "unbroken", f"stages.0.max_steps={UPDATES}")
            runs.end([runs.alone(words)], words)
            yield {
                "what": "resumed on one host, then on three",
                "wrong": runs.resume("cut", folder / "unbroken"),
            }
        if not only or "killed" in only:
            yield runs.lose_a_host("killed", "fsdp2")


def main() -> None:
    """Run the campaign and write its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--only", action="append", default=[], help="ddp, fsdp2, servers, cut or killed")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.output.absolute()
    if options.serve:
        serve(options.serve, folder)
    if reason := missing():
        print(f"Skipped: {reason}.")
        return
    end_cleanly_on_sigterm()  # and remove the namespaces
    folder.mkdir(parents=True)
    write_configs(folder)
    write_results(campaign(folder, options.only), folder / "machines.json")


if __name__ == "__main__":
    main()
