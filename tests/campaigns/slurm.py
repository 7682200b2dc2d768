"""`configs/launch/slurm.sh` submitted to a real Slurm: to its end, and requeued on the way.

    python tests/campaigns/slurm.py --output runs/slurm     # as root, with Debian's slurm-wlm and munge

One machine is several nodes: a `slurmd` for each, with an address of its own. All daemons run in namespaces
of their own (mounts, network, processes), which end with this program; the machine's Slurm, munge and
/etc/hosts are not touched. The nodes claim 64 CPUs and eight GPUs, as the script asks for, and have none: the
launch file is that of DDP with `use_cpu`.

- end: train-reward on two nodes, two processes, to its end.
- requeued: the same; `scontrol requeue` after three updates. The job must start again by itself, resume, and
  log to the same file.
- serving: align-policy on four nodes; two train, and on two `vllm serve` is a server with vLLM's protocol
  and a tiny model (`tests/fake_vllm.py`).

Metrics and weights of the first two must equal those of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import yaml

from tests.campaigns.machines import EXACT, difference, updates
from tests.campaigns.running import ROOT, VARIABLES, write_configs, write_results

NODES = 4
INSIDE = "RLHF_CAMPAIGN_INSIDE"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare")
SECONDS = 1800
"""For a job, on a busy machine."""
VLLM = """#!/bin/sh
exec {python} {script} --serve "$@"
"""


def write_slurm_conf(folder: Path) -> Path:
    """The configuration of a cluster on this machine."""
    host = subprocess.run(["hostname", "-s"], check=True, capture_output=True, text=True).stdout.strip()
    nodes = [
        f"NodeName={name_of(number)} NodeHostname={host} NodeAddr={address_of(number)} Port={17000 + number} "
        "CPUs=64 RealMemory=1000 Gres=gpu:8 State=UNKNOWN"
        for number in range(NODES)
    ]
    lines = [
        "ClusterName=campaign",
        f"SlurmctldHost={host}({address_of(0)})",
        "SlurmctldPort=16817",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        "CryptoType=crypto/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/pgid",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "MpiDefault=none",
        "ReturnToService=2",
        *nodes,
        "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    for gpu in range(8):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    return folder / "slurm.conf"


def name_of(node: int) -> str:
    """Of a node."""
    return f"node{node}"


def address_of(node: int) -> str:
    """Of a node: each may use the same ports."""
    return f"10.78.0.{node + 11}"


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A running Slurm, in this process's namespaces."""
    # Slurm does not start on a machine that has a loopback device only.
    for words in ("link add nodes type bridge", "link set lo up", "link set nodes up"):
        subprocess.run(["ip", *words.split()], check=True)
    for node in range(NODES):
        subprocess.run(["ip", "address", "add", f"{address_of(node)}/24", "dev", "nodes"], check=True)
    hosts = folder / "hosts"
    names = "".join(f"{address_of(node)} {name_of(node)}\n" for node in range(NODES))
    hosts.write_text(Path("/etc/hosts").read_text() + names)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    for name in ("state", *(f"spool-{name_of(node)}" for node in range(NODES))):
        (folder / name).mkdir()
    os.environ["SLURM_CONF"] = str(write_slurm_conf(folder))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
    ]
    commands = [munge, ["slurmctld", "-D", "-c"]]
    commands += [["slurmd", "-D", "-N", name_of(node)] for node in range(NODES)]
    started = []
    for command in commands:
        with (folder / f"{command[0]}.out").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        time.sleep(1)
    try:
        wait_until(lambda: output_of("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NODES), 120)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def output_of(*command: str) -> str:
    """What a command prints; the empty string if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_until(holds: Any, seconds: float) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} seconds; see the logs")
        time.sleep(0.2)


def submit(folder: Path, nodes: int, words: Sequence[str], **variables: str) -> str:
    """Submit slurm.sh as its users do; returns the number of the job."""
    launch = folder / "ddp.yaml"
    settings = yaml.safe_load((ROOT / "configs" / "launch" / "ddp.yaml").read_text())
    launch.write_text(yaml.safe_dump(settings | {"use_cpu": True}))
    exported = {"GPUS": "1", "LAUNCH": str(launch), "GLOO_SOCKET_IFNAME": "nodes", **variables}
    options = [f"--nodes={nodes}", f"--output={folder}/job-%j.log"]
    options.append("--export=ALL," + ",".join(f"{name}={value}" for name, value in exported.items()))
    submitted = subprocess.run(
        ["sbatch", "--parsable", *options, "configs/launch/slurm.sh", *words],
        cwd=project_in(folder),
        env=os.environ | VARIABLES,
        check=True,
        capture_output=True,
        text=True,
    )
    return submitted.stdout.strip()


def project_in(folder: Path) -> Path:
    """A folder that stands for the project's, for the logs of servers."""
    project = folder / "project"
    project.mkdir(exist_ok=True)
    for name in ("configs", ".venv"):
        if not (project / name).exists():
            (project / name).symlink_to(ROOT / name)
    return project


def state_of(job: str) -> dict[str, str]:
    """What Slurm says about a job."""
    words = output_of("scontrol", "show", "job", job, "-o").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def finished(job: str) -> dict[str, str]:
    """Wait for the end of a job."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_until(lambda: state_of(job).get("JobState") in ends, SECONDS)
    return state_of(job)


def train(folder: Path, name: str, *, requeue: bool) -> dict[str, Any]:
    """A job of two nodes; requeued on the way."""
    run, started = folder / name, time.monotonic()
    words = [str(folder / "train-reward.yaml"), *EXACT, f"output={run}"]
    job = submit(folder, 2, words, SERVING="0", COMMAND="train-reward")
    if requeue:
        wait_until(lambda: len(updates(run)) >= 3, SECONDS)
        subprocess.run(["scontrol", "requeue", job], check=True)
        wait_until(lambda: state_of(job).get("JobState") == "PENDING", SECONDS)
        stopped_after = len(updates(run))
        # Slurm waits two minutes; the administrator may start it at once.
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    ended = finished(job)
    result = {"what": name, "state": ended["JobState"], "restarts": int(ended["Restarts"])}
    result["seconds"] = round(time.monotonic() - started)
    wrong = "" if ended["JobState"] == "COMPLETED" else f"see {folder}/job-{job}.log"
    if requeue:
        result["stopped after"] = stopped_after
    if not wrong:
        facts = json.loads((run / "environment.json").read_text())
        log = (folder / f"job-{job}.log").read_text()
        wrong = difference(run, folder / "unbroken")
        wrong = wrong or "" if facts["processes"] == 2 else "not two processes"
        if requeue:
            wrong = wrong or ("" if len(facts["resumed"]) == 1 else "not resumed")
            wrong = wrong or ("" if log.count("update 1/") == 1 else "the log of the first part is lost")
    return {**result, "wrong": wrong}


def serve_and_align(folder: Path) -> dict[str, Any]:
    """A job of four nodes, two of which serve rollouts."""
    fake = folder / "vllm"
    fake.write_text(VLLM.format(python=sys.executable, script=Path(__file__)))
    fake.chmod(0o755)
    vllm = ROOT / ".venv" / "bin" / "vllm"
    if not vllm.exists():
        return {
            "what": "serving",
            "skipped": "vllm is not installed, whose program this part replaces",
            "wrong": "",
        }
    subprocess.run(["mount", "--bind", fake, vllm.resolve()], check=True)
    words = [str(folder / "align-policy.yaml"), *EXACT, "rollouts.engine=servers", "steps=3"]
    words.append(f"output={folder / 'serving'}")
    started = time.monotonic()
    job = submit(folder, 4, words, SERVING="2", SHARDS="1", BASE=str(folder / "base"))
    ended = finished(job)
    rows = [json.loads(line) for line in (folder / "serving" / "metrics.jsonl").read_text().splitlines()]
    wrong = "" if ended["JobState"] == "COMPLETED" else f"see {folder}/job-{job}.log"
    servers = [row["engine/servers"] for row in rows if "engine/servers" in row]
    wrong = wrong or ("" if servers == [2.0] * 3 else f"servers in use: {servers}")
    seconds = round(time.monotonic() - started)
    return {"what": "serving", "state": ended["JobState"], "seconds": seconds, "wrong": wrong}


def serve(words: Sequence[str]) -> None:
    """Stand in for `vllm serve BASE --port N ...` on a node."""
    import signal

    import fake_vllm

    base, port = Path(words[1]), int(words[words.index("--port") + 1])
    node = int(os.environ["SLURMD_NODENAME"].removeprefix("node"))
    fake_vllm.FakeVLLM(
        str(base),
        answer=fake_vllm.TinyModel(base),
        token=os.environ["VLLM_API_KEY"],
        max_model_len=400,
        address=address_of(node),
        port=port,
    )
    signal.pause()


def missing() -> str:
    """Why the campaign cannot run here, or the empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need root on Linux"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    if not (ROOT / ".venv" / "bin" / "activate").exists():
        return "slurm.sh uses .venv in the project's folder"
    return ""


def campaign(folder: Path, only: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All parts, or those named."""
    with cluster(folder):
        words = ["-m", "rlhf", "train-reward", str(folder / "train-reward.yaml"), *EXACT]
        for name in ("unbroken", "reward"):
            with (folder / f"{name}.log").open("wb") as log:
                subprocess.run(
                    [sys.executable, *words, "--output", str(folder / name)],
                    stdout=log, stderr=log, cwd=ROOT, env=os.environ | VARIABLES, check=True,
                )  # fmt: skip
        if not only or "end" in only:
            yield train(folder, "end", requeue=False)
        if not only or "requeued" in only:
            yield train(folder, "requeued", requeue=True)
        if not only or "serving" in only:
            yield serve_and_align(folder)


def main() -> None:
    """Run the campaign in its own namespaces and write its result."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--only", action="append", default=[], help="end, requeued or serving")
    options = parser.parse_args()
    if reason := missing():
        print(f"Skipped: {reason}.")
        return
    if INSIDE not in os.environ:
        apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        os.environ[INSIDE] = "1"
        # The shell, as the first process, reaps orphans, which Slurm would wait for.
        os.execvp(apart[0], [*apart, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, *sys.argv])
    folder = options.output.absolute()
    folder.mkdir(parents=True)
    write_configs(folder)
    write_results(campaign(folder, options.only), folder / "slurm.json")


if __name__ == "__main__":
    main()
