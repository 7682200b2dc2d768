"""`rlhf align-policy` with two stock vLLM servers on this machine, one of them killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlhf.models.embedded import resolve_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]
TOKEN = "a-token-for-this-test"
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_API_KEY": TOKEN,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def free_port() -> int:
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Addresses and processes; each is the head of a process group."""
    folder, running = tmp_path_factory.mktemp("servers"), {}
    for port in (free_port(), free_port()):
        words = ["--host", "127.0.0.1", "--port", str(port), "--model", resolve_base("embedded")]
        words += ["--enable-lora", "--max-lora-rank", "8", "--max-model-len", "256", "--enforce-eager"]
        with (folder / f"{port}.log").open("wb") as log:
            running[f"http://127.0.0.1:{port}"] = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
                env=os.environ | SETTINGS,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    try:
        until = time.monotonic() + 600
        for url, process in running.items():
            while not healthy(url):
                assert process.poll() is None and time.monotonic() < until, url
                time.sleep(1)
        yield running
    finally:
        for process in running.values():
            kill(process)


def healthy(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def kill(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def rows_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in (run / name).read_text().splitlines() if line.endswith("}")]
    return []


def test_a_server_killed_on_the_way_loses_no_sample(
    servers: dict[str, subprocess.Popen[bytes]], embedded_reward: Path, tmp_path: Path
) -> None:
    config, run = tmp_path / "policy.yaml", tmp_path / "run"
    config.write_text(f"""
output: {run}
reward: {embedded_reward}
model: {{base: embedded, max_length: 256}}
adapter: {{rank: 8, alpha: 16}}
data: {{prompts: [{{path: demo, limit: 40}}], max_prompt_tokens: 200}}
rollouts:
  engine: servers
  servers: {json.dumps(list(servers))}
  token_env: TOKEN_OF_THE_TEST
  prompts_per_step: 4
  samples_per_prompt: 4
  max_new_tokens: 16
  logprob_bound: 0.2
  importance_sampling: {{level: token}}
  overlap: 1
algorithm: {{unfinished: keep}}
optimizer: {{learning_rate: 5.0e-3, warmup_steps: 0}}
steps: 4
tokens_per_batch: 1024
evaluation: {{prompts: 2, samples: 1}}
""")
    words = [sys.executable, "-m", "rlhf.cli", "align-policy", str(config)]
    with (tmp_path / "log").open("w+") as log:
        aligning = subprocess.Popen(
            words, env=os.environ | {"TOKEN_OF_THE_TEST": TOKEN}, stdout=log, stderr=subprocess.STDOUT
        )
        while len(rows_of(run)) < 2 and aligning.poll() is None:
            time.sleep(0.2)
        url, victim = list(servers.items())[1]
        kill(victim)
        code = aligning.wait(timeout=900)
        log.seek(0)
        printed = log.read()
    assert code == 0, printed
    assert printed.count(f"Rollout server {url} is lost") == printed.count("is lost") == 1
    rows, samples = rows_of(run), rows_of(run, "samples.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["engine/lag"] for row in rows] == [0, 1, 1, 1]
    assert (rows[0]["engine/servers"], rows[3]["engine/servers"]) == (2, 1)
    assert [sum(sample["step"] == step for sample in samples) for step in (1, 2, 3, 4)] == [16] * 4
    for row in rows:
        assert 0 < row["engine/logprob_difference"] < 0.2  # bfloat16 on both sides, other kernels
    # The policy moves away from the base, and the servers with it.
    assert rows[3]["engine/reference_difference"] > 2 * rows[3]["engine/logprob_difference"]
    for file in ("config.yaml", "environment.json", "report.html"):
        assert TOKEN not in (run / file).read_text()
    assert TOKEN not in printed
