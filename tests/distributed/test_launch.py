"""`accelerate launch`: the files in `configs/launch/`, and how an error ends a launch."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from rlhf.commands import COMMANDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "launch"
ACCELERATE = sorted(FOLDER.glob("*.yaml"), key=lambda file: file.name)
ACCELERATE.remove(FOLDER / "sky.yaml")


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.stem)
def test_accelerate_reads_its_files(file: Path) -> None:
    load_config_from_file(str(file))  # refuses unknown keys
    args = launch_command_parser().parse_args(["--config_file", str(file), "-m", "rlhf.cli"])
    args, _, _ = _validate_launch_command(args)
    assert args.mixed_precision == "no"
    assert args.use_fsdp == file.stem.startswith("fsdp2")
    assert args.use_deepspeed == (file.stem == "zero3")
    if args.use_fsdp:
        assert args.fsdp_version == 2
    if args.use_deepspeed:
        assert args.zero_stage == 3
        assert args.zero3_init_flag is False


def test_there_is_a_file_for_each_strategy() -> None:
    assert {file.stem for file in ACCELERATE} == {"ddp", "fsdp2", "fsdp2-qlora", "zero3"}


@pytest.mark.parametrize(
    "file", ["ddp.yaml", "fsdp2.yaml", "fsdp2-qlora.yaml", "zero3.yaml", "slurm.sh", "sky.yaml"]
)
def test_named_commands_and_files_exist(file: str) -> None:
    text = (FOLDER / file).read_text()
    for command in re.findall(r"rlhf\.cli ([a-z]\S*)|COMMAND[:=-]+\s*([a-z-]+)", text):
        assert (command[0] or command[1]) in COMMANDS
    named = re.findall(r"configs/\S+?\.(?:yaml|sh)", text)
    assert named
    for path in named:
        assert (ROOT / path).exists() or path.endswith("/mine.yaml"), path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_scripts_are_bash() -> None:
    sky = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    for script in ((FOLDER / "slurm.sh").read_text(), sky["setup"], sky["run"]):
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")


FAKE_COMMANDS = {
    # A step of Slurm sees all GPUs of the job on its node, whatever the caller's environment.
    "srun": 'export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "printf 'a\\nb\\nc\\nd\\n'",
    "vllm": 'echo "$CUDA_VISIBLE_DEVICES port ${4}" >> servers.txt',
    "curl": "exit 0",
    "accelerate": "exit 0",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_each_server_of_a_node_gets_its_own_gpus(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, script in FAKE_COMMANDS.items():
        file = tmp_path / "commands" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "a,b,c,d", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "1"}
    result = subprocess.run(
        ["bash", FOLDER / "slurm.sh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path / 'commands'}:{os.environ['PATH']}", "RLHF_ROLLOUT_TOKEN": "t", **job},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    servers = sorted((tmp_path / "servers.txt").read_text().splitlines())
    assert servers == ["0,1,2,3 port 8000"] * 2 + ["4,5,6,7 port 8001"] * 2


def test_the_scripts_use_options_of_accelerate_launch() -> None:
    """Every option of `accelerate launch` in the scripts exists."""
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    for file in ("slurm.sh", "sky.yaml"):
        text = (FOLDER / file).read_text()
        command = text[text.rindex("accelerate launch") : text.rindex("-m rlhf.cli")]
        options = re.findall(r"--\w+", command)
        assert {"--num_machines", "--num_processes", "--machine_rank", "--main_process_ip"} <= set(options)
        assert set(options) <= known


def test_an_error_is_printed_once_and_stops_all_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}",
         "-m", "rlhf.cli", "train-reward", str(tmp_path / "missing.yaml")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("missing.yaml: ") == 1, result.stderr
