"""A stand-in of the Hub's API on this machine: repositories, preupload, LFS uploads and commits. Xet uploads
are not part of it."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

TOKEN = "hf_of_a_test_0123456789"


@dataclass
class StandIn:
    """The state of the server.

    Attributes:
        repos: files of every repository, by name.
        private: visibility of every repository.
        fail: status and message of the answer to a commit; None accepts it.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    fail: tuple[int, str] | None = None


def application(hub: StandIn) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def check_token(request: Request, following: Any) -> Any:
        hub.tokens.add(request.headers.get("authorization"))
        is_blob = request.url.path.startswith("/blob/")
        if not is_blob and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        return await following(request)

    @app.post("/api/repos/create")
    async def create(request: Request) -> Any:
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        if name.startswith("others/"):
            return JSONResponse({"error": "You don't have the rights to create a model here"}, 403)
        hub.repos[name], hub.private[name] = {}, body.get("visibility") == "private"
        return {"url": f"{hub.url}/{name}"}

    @app.get("/api/models/{owner}/{name}")
    async def info(owner: str, name: str) -> Any:
        repo = f"{owner}/{name}"
        if repo not in hub.repos:
            return JSONResponse({"error": "not found"}, 404, headers={"X-Error-Code": "RepoNotFound"})
        return {"id": repo, "private": hub.private[repo], "siblings": []}

    @app.post("/api/validate-yaml")
    async def validate() -> Any:
        return {"errors": [], "warnings": []}

    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request) -> Any:
        files = (await request.json())["files"]
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": mode[file["path"].endswith((".safetensors", ".parquet"))],
                    "shouldIgnore": False,
                }
                for file in files
            ]
        }

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request) -> Any:
        objects = (await request.json())["objects"]
        return {
            "transfer": "basic",
            "objects": [
                {**blob, "actions": {"upload": {"href": f"{hub.url}/blob/{blob['oid']}"}}} for blob in objects
            ],
        }

    @app.put("/blob/{oid}")
    async def put(oid: str, request: Request) -> Any:
        hub.blobs[oid] = await request.body()
        return {}

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(owner: str, name: str, request: Request) -> Any:
        if hub.fail is not None:
            return JSONResponse({"error": hub.fail[1]}, hub.fail[0])
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                hub.commits.append(value["summary"])
            elif entry["key"] == "file":
                hub.repos[f"{owner}/{name}"][value["path"]] = base64.b64decode(value["content"])
            else:
                hub.repos[f"{owner}/{name}"][value["path"]] = hub.blobs[value["oid"]]
        oid = f"{len(hub.commits):040x}"
        return {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{owner}/{name}/commit/{oid}"}

    return app


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, to which `rlhf push` uploads, with a token in HF_TOKEN."""
    state = StandIn()
    server = uvicorn.Server(uvicorn.Config(application(state), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    from huggingface_hub import HfApi

    monkeypatch.setattr("rlhf.publish.upload.HfApi", lambda: HfApi(endpoint=state.url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # large files over LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield state
    server.should_exit = True
    thread.join(10)
