"""What our client relies on in a vLLM server: the fake server of the tests and a real one both do it."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from policy.rollouts.protocol import Sampling
from policy.rollouts.servers.answers import completion_request, read_response
from policy.rollouts.servers.client import Server, ServerError

TOKEN = "a-token-for-this-test"
MAX_RANK, MAX_MODEL_LEN = 8, 64
SECONDS_TO_START = 900
SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, stop_ids=(2,))
PROMPT = [5, 6, 7]


@dataclass
class Served:
    """A running server, its base, and a folder for adapters that it sees."""

    url: str
    base: Path
    folder: Path

    def client(self, token: str | None = TOKEN) -> Server:
        return Server(self.url, token=token, timeout=120)

    def adapter(self, name: str, rank: int = 4) -> Path:
        """A LoRA adapter of the base's first layer, with random weights."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.base)
        config.num_hidden_layers = 1
        lora = LoraConfig(r=rank, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
        model.save_pretrained(str(self.folder / name))
        return self.folder / name


def real_server(base: Path, log: Path) -> Iterator[str]:
    """The address of a stock vLLM server, the head of a process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["--host", "127.0.0.1", "--port", str(port), "--model", str(base), "--enforce-eager"]
    words += ["--enable-lora", "--max-lora-rank", str(MAX_RANK), "--max-model-len", str(MAX_MODEL_LEN)]
    settings = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_API_KEY": TOKEN,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            env=os.environ | settings,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS_TO_START
    try:
        while not healthy(url):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(1)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def healthy(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        pytest.param(
            "real",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
            ],
        ),
    ],
)
def served(
    request: pytest.FixtureRequest,
    fake_vllm: Any,
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    if request.param == "fake":
        fake = fake_vllm.FakeVLLM(str(tiny_base), token=TOKEN, max_model_len=MAX_MODEL_LEN, max_rank=MAX_RANK)
        yield Served(fake.url, tiny_base, folder)
        fake.kill()
        return
    from rlhf.models.embedded import embedded_model

    base = embedded_model()
    for url in real_server(base, folder / "server.log"):
        yield Served(url, base, folder)


def answers(server: Server, adapter: str, *, samples: int = 2, seed: int = 3) -> Any:
    request = completion_request(PROMPT, adapter=adapter, samples=samples, seed=seed, sampling=SAMPLING)
    return read_response(server.complete(request), request, server.url)


def status_of(call: Any) -> int | None:
    with pytest.raises(ServerError) as caught:
        call()
    return caught.value.status


def test_the_base_is_listed_with_its_context(served: Served) -> None:
    (base,) = served.client().models()
    assert base["root"] == str(served.base)
    assert base["max_model_len"] == MAX_MODEL_LEN


def test_a_wrong_token_is_refused(served: Served) -> None:
    assert status_of(served.client(token="another").models) == 401


def test_an_adapter_is_loaded_listed_and_unloaded(served: Served) -> None:
    server, folder = served.client(), served.adapter("listed")
    server.load("listed", folder)
    server.load("listed", folder)  # a second load is answered by 400, which the client accepts
    base, adapter = server.models()
    assert (adapter["id"], adapter["root"], adapter["parent"]) == ("listed", str(folder), base["id"])
    server.unload("listed")
    server.unload("listed")  # an unknown adapter is answered by 404, which the client accepts
    assert [model["id"] for model in server.models()] == [base["id"]]


def test_an_adapter_that_cannot_be_loaded_has_a_status_and_a_cause(served: Served) -> None:
    server = served.client()
    with pytest.raises(ServerError) as missing:
        server.load("missing", served.folder / "missing")
    assert missing.value.status == 404
    assert "No adapter found" in str(missing.value)
    with pytest.raises(ServerError) as large:
        server.load("large", served.adapter("large", rank=2 * MAX_RANK))
    assert large.value.status == 500
    assert f"LoRA rank {2 * MAX_RANK}" in str(large.value)
    assert not server.has_adapter("large")


def test_answers_have_ids_and_logprobs_that_the_seed_decides(served: Served) -> None:
    server = served.client()
    server.load("sampled", served.adapter("sampled"))
    first, second = answers(server, "sampled"), answers(server, "sampled")
    assert [answer.ids for answer in first] == [answer.ids for answer in second]
    assert len(first) == 2
    assert first[0].ids != first[1].ids
    for answer in first:
        assert 0 < len(answer.ids) <= SAMPLING.max_new_tokens
        assert len(answer.logprobs) == len(answer.ids)
        assert all(logprob <= 0 for logprob in answer.logprobs)
    assert [answer.ids for answer in answers(server, "sampled", seed=4)] != [answer.ids for answer in first]


def test_requests_that_cannot_be_answered(served: Served) -> None:
    server = served.client()
    assert status_of(lambda: answers(server, "unknown")) == 404
    server.load("long", served.adapter("long"))
    request = completion_request([5] * MAX_MODEL_LEN, adapter="long", samples=1, seed=0, sampling=SAMPLING)
    assert status_of(lambda: server.complete(request)) == 400
