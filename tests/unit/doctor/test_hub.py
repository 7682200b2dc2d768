"""What the Hub says, from a server on this machine that answers as the Hub does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rlhf.doctor.facts import Trouble
from rlhf.doctor.probes import try_out
from rlhf.doctor.run_facts import hub_answer


class Hub(BaseHTTPRequestHandler):
    """`some/model` has two files of weights, `meta/gated` is gated, anything else is not there."""

    def do_GET(self) -> None:
        if "/meta/gated" in self.path:
            return self.answer(403, {"error": "gated"}, "GatedRepo")
        if "/some/model" not in self.path:
            return self.answer(404, {"error": "not found"}, "RepoNotFound")
        if self.path.endswith("/auth-check"):
            return self.answer(200, {})
        sizes = {"a.safetensors": 5, "b.safetensors": 7, "original/old.pth": 100}
        files = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return self.answer(200, {"id": "some/model", "siblings": files})

    do_HEAD = do_GET

    def answer(self, status: int, content: object, error: str = "") -> None:
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # read by the probe's own process
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_model_that_can_be_had() -> None:
    assert hub_answer(try_out("hub", "some/model")) == 12


@pytest.mark.usefixtures("hub")
def test_a_gated_model() -> None:
    result = hub_answer(try_out("hub", "meta/gated"))
    assert isinstance(result, Trouble)
    assert "gated" in result.found
    assert "hf auth login" in result.fix


@pytest.mark.usefixtures("hub")
def test_a_name_that_is_not_there() -> None:
    result = hub_answer(try_out("hub", "meta/lama"))
    assert isinstance(result, Trouble)
    assert "RepositoryNotFoundError" in result.found
    assert "model.base" in result.fix


def test_a_hub_that_does_not_answer(hub: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = hub_answer(try_out("hub", "some/model", seconds=30))
    assert isinstance(result, Trouble)
    assert result.found.startswith("the Hub did not answer: ")
    assert "HF_HUB_OFFLINE=1" in result.fix
