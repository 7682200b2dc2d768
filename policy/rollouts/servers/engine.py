"""Rollouts by stock vLLM servers, one or many, that the user starts.

After an update the adapter is written once to a folder that the servers see, and all servers load it at the
same time. Its name is a hash of its content, so that a name never means two adapters, in a server's prefix
cache or after a resume. Each prompt goes to the server with the fewest prompts in flight and has its own
seed, so that the server does not matter.

In a run of several processes the main one writes and loads adapters, and each sends its own prompts.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from policy.rollouts.protocol import as_rollout, seed_of
from policy.rollouts.servers.answers import SampledIds, completion_request
from policy.rollouts.servers.fleet import Fleet
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.distributed import processes
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel
from rlhf.models.names import POLICY
from rlhf.runs.checkpoints import trainable_state

MAX_IN_FLIGHT = 256
"""Prompts in flight per server; the server queues what it cannot run."""


@dataclass
class Requested:
    """Prompts that the servers are answering."""

    prompts: list[list[int]]
    waiting: list[tuple[int, Mapping[str, Any]]]
    """Index and body of the requests that are not sent yet."""
    answered: SimpleQueue[tuple[int, list[SampledIds] | Exception]] = field(default_factory=SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)
    failed: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """From the request to the last answer."""


class ServerEngine:
    """vLLM servers as one engine.

    Args:
        fleet: the servers.
        chat: decodes answers.
        folder: for adapters, seen by the servers under the same path; the engine deletes its content.
        seed: of the run; each prompt's seed is derived from it.
    """

    def __init__(self, fleet: Fleet, chat: Chat, *, folder: Path, seed: int) -> None:
        self.fleet, self.chat, self.folder, self.seed = fleet, chat, folder.resolve(), seed
        self.sampling = fleet.wanted.sampling
        self.adapter: str | None = None
        self._open: Requested | None = None
        processes.on_main(fleet.check)
        if processes.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)  # left by a killed run
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def sync(self, model: PeftModel) -> None:
        """Load the policy's current adapter on every server."""
        self._finish_requests()
        # The previous adapter is unloaded, and other ranks may still sample from it: wait for all of them.
        processes.all_gather(None)
        weights = trainable_state(model)
        name = processes.from_main(lambda: self._send_adapter(model, weights))
        if not processes.is_main():
            self.fleet.find_adapter(name)
        self.fleet.require_server()
        self.adapter = name

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """Sample all prompts, each with its own seed."""
        return self.collect(self.request(prompts, samples=samples, seed=seed))

    def request(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> Requested:
        """Send the prompts and return without waiting for the answers."""
        if self.adapter is None:
            raise EngineError("generate was called before sync.")
        name, sampling = self.adapter, self.sampling
        requests: list[Mapping[str, Any]] = [
            completion_request(
                ids,
                adapter=name,
                samples=samples,
                seed=seed_of(self.seed, seed, index),
                sampling=sampling,
            )
            for index, ids in enumerate(prompts)
        ]
        requested = Requested([list(ids) for ids in prompts], list(enumerate(requests))[::-1])
        # Daemon threads: a failed run does not wait for them.
        requested.threads = [
            threading.Thread(target=self._work, args=(requested,), daemon=True)
            for _ in range(min(len(requests), MAX_IN_FLIGHT * len(self.fleet.servers)))
        ]
        for thread in requested.threads:
            thread.start()
        self._open = requested
        return requested

    def collect(self, requested: Requested) -> list[list[Rollout]]:
        """Wait for all answers.

        Raises:
            EngineError: all servers are lost, or a response is invalid.
        """
        groups: dict[int, list[SampledIds]] = {}
        while len(groups) < len(requested.prompts):
            index, answers = requested.answered.get()
            if isinstance(answers, Exception):
                raise answers
            groups[index] = answers
        return [
            [
                as_rollout(ids, answer.ids, answer.logprobs, self.sampling.stop_ids, self.chat)
                for answer in groups[index]
            ]
            for index, ids in enumerate(requested.prompts)
        ]

    def figures(self) -> dict[str, float]:
        """Servers in use, and prompts that were retried since the last call."""
        retried, self.fleet.retried = self.fleet.retried, 0
        return {"engine/servers": float(len(self.fleet.alive)), "engine/retried_prompts": float(retried)}

    def _send_adapter(self, model: PeftModel, weights: Mapping[str, Tensor]) -> str:
        """Write the adapter under a hash of its content and load it on all servers; returns the name."""
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(
            str(unfinished), selected_adapters=[POLICY], save_embedding_layers=False, state_dict=weights
        )
        digest = hashlib.sha256()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            digest.update((unfinished / file).read_bytes())
        name = f"policy-{digest.hexdigest()[:16]}"
        if name == self.adapter:
            shutil.rmtree(unfinished)
        else:
            unfinished.replace(self.folder / name)
        self.fleet.load_adapter(name, self.folder / name, first=self.adapter is None)
        if self.adapter not in (None, name):
            shutil.rmtree(self.folder / str(self.adapter), ignore_errors=True)
        return name

    def _work(self, requested: Requested) -> None:
        while not requested.failed.is_set():
            try:
                index, request = requested.waiting.pop()
            except IndexError:
                return
            try:
                answers = self.fleet.answer(request)
                requested.seconds = time.perf_counter() - requested.started
                requested.answered.put((index, answers))
            except Exception as error:  # noqa: BLE001 - raised again by `collect`
                requested.failed.set()
                requested.answered.put((index, error))

    def _finish_requests(self) -> None:
        """Wait for the open requests: an adapter must not change while answers are sampled from it."""
        if self._open is not None:
            for thread in self._open.threads:
                thread.join()
            self._open = None
