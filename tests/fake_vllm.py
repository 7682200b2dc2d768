"""A fake vLLM server with the paths, fields, status codes and messages of vLLM 0.31.

`tests/unit/policy/rollouts/test_server_contract.py` holds it and a real server to the same contract.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Sampled = list[tuple[list[int], list[float]]]
Answer = Callable[[Path | None, Mapping[str, Any]], Sampled]
"""(adapter's folder, request) to `n` answers as (ids, log-probabilities)."""
DROP = "drop"
"""In place of a response: the connection is closed without one."""


def error(status: int, message: str) -> tuple[int, dict[str, Any]]:
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def by_hash(adapter: Path | None, request: Mapping[str, Any]) -> Sampled:
    """Answers that depend on the adapter's weights, the prompt and the seed of each answer."""
    return of_weights(
        "" if adapter is None else (adapter / "adapter_model.safetensors").read_bytes().hex(), request
    )


def of_weights(weights: str, request: Mapping[str, Any]) -> Sampled:
    """As `by_hash`, with the adapter's weights in hexadecimal."""
    answers: Sampled = []
    for number in range(request["n"]):
        content = f"{weights} {request['prompt']} {request['seed'] + number}"
        drawn = hashlib.sha256(content.encode()).digest()
        length = 1 + drawn[0] % request["max_tokens"]
        ids = [100 + byte for byte in drawn[1 : length + 1]]
        if length < request["max_tokens"]:
            ids[-1] = request["stop_token_ids"][0]
        answers.append((ids, [-byte / 64 for byte in drawn[1 : length + 1]]))
    return answers


class FakeVLLM:
    """One server on a free port, which it keeps when it is started again.

    Args:
        base: path of the model.
        disturb: overrides the response to a completion: a status and a body, DROP, or None for no override.
    """

    def __init__(
        self,
        base: str,
        *,
        answer: Answer = by_hash,
        token: str | None = None,
        max_model_len: int = 256,
        max_rank: int = 8,
        updating: bool = True,
        raw_logprobs: bool = False,
        disturb: Callable[[Mapping[str, Any]], Any] = lambda request: None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.base, self.answer, self.token, self.max_model_len = base, answer, token, max_model_len
        self.max_rank, self.updating, self.raw_logprobs = max_rank, updating, raw_logprobs
        self.disturb, self.address = disturb, address
        self.adapters: dict[str, Path] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def completions(self) -> list[dict[str, Any]]:
        return [body for path, body in self.asked if path == "/v1/completions"]

    def start(self) -> None:
        """Start without adapters."""
        self.adapters, self.connections, self.threads = {}, set[socket.socket](), set[threading.Thread]()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake.connections.add(self.connection)
                fake.threads.add(threading.current_thread())

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                fake.handle(self, None)

            def do_POST(self) -> None:
                fake.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        class Listener(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 128, True

            def handle_error(self, *_: Any) -> None:
                pass  # a closed connection

        self.http = Listener((self.address, self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """As by SIGKILL: close the port and all connections."""
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def rest(self) -> None:
        """Wait, after `kill`, until no thread computes an answer, which would crash the process at exit."""
        for thread in list(self.threads):
            thread.join(timeout=20)

    def handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        path = handler.path
        self.asked.append((path, body))
        if path == "/health":  # without a token, as vLLM
            answer: Any = 200, ""
        elif self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            answer = 401, {"error": "Unauthorized"}
        elif path == "/v1/models":
            answer = 200, {"object": "list", "data": self._models()}
        elif path == "/v1/completions":
            answer = self._complete(body)
        elif path == "/v1/load_lora_adapter" and self.updating:
            answer = self._load(body["lora_name"], Path(body["lora_path"]))
        elif path == "/v1/unload_lora_adapter" and self.updating:
            answer = self._unload(body["lora_name"])
        else:
            answer = 404, {"detail": "Not Found"}
        if answer == DROP:
            handler.close_connection = True
            return
        status, content = answer
        text = (content if isinstance(content, str) else json.dumps(content)).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _models(self) -> list[dict[str, Any]]:
        base = {"id": self.base, "root": self.base, "parent": None, "max_model_len": self.max_model_len}
        loaded = [
            {"id": name, "root": str(folder), "parent": self.base, "max_model_len": None}
            for name, folder in self.adapters.items()
        ]
        return [base, *loaded]

    def _load(self, name: str, folder: Path) -> Any:
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").exists():
            return error(404, f"Loading lora {name} failed: No adapter found for <path>")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        self.adapters[name] = folder
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> Any:
        if self.adapters.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, body: Mapping[str, Any]) -> Any:
        disturbed = self.disturb(body)
        if disturbed is not None:
            return disturbed
        if body["model"] == self.base and body["max_tokens"] == 1:
            likeliest = -1.0 if self.raw_logprobs else -1.0 / body["temperature"]
            logprobs = {"token_logprobs": [likeliest], "top_logprobs": [{"a": likeliest}]}
            return 200, {"model": self.base, "choices": [{"index": 0, "logprobs": logprobs}]}
        if body["model"] not in self.adapters:
            return error(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return error(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        sampled = self.answer(self.adapters[body["model"]], body)
        return 200, completion(body, sampled)


def completion(body: Mapping[str, Any], sampled: Sampled) -> dict[str, Any]:
    """A completion with the fields that the client reads."""
    choices = []
    for index, (ids, logprobs) in enumerate(sampled):
        stopped = ids[-1:] and ids[-1] in body["stop_token_ids"]
        choices.append(
            {
                "index": index,
                "text": "",
                "logprobs": {"token_logprobs": logprobs, "tokens": ["" for _ in ids]},
                "finish_reason": "stop" if stopped else "length",
                "stop_reason": ids[-1] if stopped else None,
                "token_ids": ids if body.get("return_token_ids") else None,
                "prompt_token_ids": body["prompt"],
            }
        )
    return {"object": "text_completion", "model": body["model"], "choices": choices}


class TinyModel:
    """Answers of a real model with real adapters, in this process, after `delay` seconds."""

    def __init__(self, base: Path, delay: float = 0.0) -> None:
        self.base, self.delay, self.lock = base, delay, threading.Lock()
        self.loaded: dict[str, Any] = {}

    def __call__(self, adapter: Path | None, request: Mapping[str, Any]) -> Sampled:
        import torch

        time.sleep(self.delay)
        with self.lock, torch.inference_mode():
            model, answers = self._model(adapter), []
            for number in range(request["n"]):
                generator = torch.Generator().manual_seed(request["seed"] + number)
                ids, logprobs = list(request["prompt"]), []
                for _ in range(request["max_tokens"]):
                    logits_V = model(torch.tensor([ids])).logits[0, -1].float() / request["temperature"]
                    logps_V = logits_V.log_softmax(0)
                    token = int(torch.multinomial(logps_V.exp(), 1, generator=generator))
                    ids.append(token)
                    logprobs.append(float(logps_V[token]))
                    if token in request["stop_token_ids"]:
                        break
                answers.append((ids[len(request["prompt"]) :], logprobs))
        return answers

    def _model(self, adapter: Path | None) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        key = str(adapter)
        if key not in self.loaded:
            base = AutoModelForCausalLM.from_pretrained(self.base)
            model = base if adapter is None else PeftModel.from_pretrained(base, str(adapter))
            self.loaded = {**self.loaded, key: model.eval()}
        return self.loaded[key]
