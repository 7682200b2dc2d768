"""Rollouts by stock vLLM servers: one or many, here or elsewhere, started by whoever runs them.

After an update the adapter is written once, to a folder that the servers see too, and all of them load it at once. Its name is a hash
of its content: one name never means two adapters, not to a server's prefix cache and not after a resume.
Prompts go one by one to the server with the least to do; each has its own seed, so it does not matter which.

Of a run of several processes, the main one writes and loads, and each sends its own prompts.
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
from policy.rollouts.server_answers import Answer, completion_request
from policy.rollouts.server_fleet import Fleet
from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.distributed import processes
from rlhf.models.chat import Chat
from rlhf.models.loading import POLICY, PeftModel
from rlhf.runs.checkpoints import trainable_state

AT_ONCE = 256
"""Prompts under way for each server; it queues what is more than it can take."""


@dataclass
class Requested:
    """Prompts that the servers are answering."""

    prompts: list[list[int]]
    waiting: list[tuple[int, Mapping[str, Any]]]
    """Places and requests that nobody has taken up yet."""
    answered: SimpleQueue[tuple[int, list[Answer] | Exception]] = field(default_factory=SimpleQueue)
    threads: list[threading.Thread] = field(default_factory=list)
    failed: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """From the request to the latest answer."""


class ServerEngine:
    """vLLM servers as one engine.

    Args:
        fleet: the servers.
        chat: decodes answers.
        folder: seen by the servers too, under the same path; its content is this engine's.
        seed: each draw has its own on top.
    """

    def __init__(self, fleet: Fleet, chat: Chat, *, folder: Path, seed: int) -> None:
        self.fleet, self.chat, self.folder, self.seed = fleet, chat, folder.resolve(), seed
        self.sampling = fleet.wanted.sampling
        self.adapter: str | None = None
        self._under_way: Requested | None = None
        processes.on_main(fleet.check)
        if processes.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)  # what a killed run left
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def sync(self, model: PeftModel) -> None:
        """Have every server load the policy's adapter as it is now."""
        self._finish_requests()
        # The adapter before is taken away, and other processes may still sample from it: all meet here first.
        processes.all_gather(None)
        weights = trainable_state(model)
        name = processes.from_main(lambda: self._hand_over(model, weights))
        if not processes.is_main():
            self.fleet.look(name)
        self.fleet.require_one()
        self.adapter = name

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """Every prompt draws from a seed of its own, on whichever server has the least to do."""
        return self.collect(self.request(prompts, samples=samples, seed=seed))

    def request(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> Requested:
        """Send the prompts off, and return at once."""
        if self.adapter is None:
            raise EngineError("generate was called before sync.")
        name, sampling = self.adapter, self.sampling
        requests: list[Mapping[str, Any]] = [
            completion_request(
                ids,
                adapter=name,
                samples=samples,
                seed=seed_of(self.seed, seed, place),
                sampling=sampling,
            )
            for place, ids in enumerate(prompts)
        ]
        requested = Requested([list(ids) for ids in prompts], list(enumerate(requests))[::-1])
        # Daemons: a run that fails does not wait for them.
        requested.threads = [
            threading.Thread(target=self._work, args=(requested,), daemon=True)
            for _ in range(min(len(requests), AT_ONCE * len(self.fleet.servers)))
        ]
        for thread in requested.threads:
            thread.start()
        self._under_way = requested
        return requested

    def collect(self, requested: Requested) -> list[list[Rollout]]:
        """Wait for all answers.

        Raises:
            EngineError: all servers are lost, or an answer cannot be used.
        """
        groups: dict[int, list[Answer]] = {}
        while len(groups) < len(requested.prompts):
            place, answers = requested.answered.get()
            if isinstance(answers, Exception):
                raise answers
            groups[place] = answers
        return [
            [
                as_rollout(ids, answer.ids, answer.logprobs, self.sampling.stop_ids, self.chat)
                for answer in groups[place]
            ]
            for place, ids in enumerate(requested.prompts)
        ]

    def figures(self) -> dict[str, float]:
        """Servers in use, and prompts that were asked again since this was last called."""
        retried, self.fleet.retried = self.fleet.retried, 0
        return {"engine/servers": float(len(self.fleet.alive)), "engine/retried_prompts": float(retried)}

    def _hand_over(self, model: PeftModel, weights: Mapping[str, Tensor]) -> str:
        """Write the adapter under a name made of its content, and have all servers load it; returns the name."""
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
        self.fleet.hand_over(name, self.folder / name, first=self.adapter is None)
        if self.adapter not in (None, name):
            shutil.rmtree(self.folder / str(self.adapter), ignore_errors=True)
        return name

    def _work(self, requested: Requested) -> None:
        while not requested.failed.is_set():
            try:
                place, request = requested.waiting.pop()
            except IndexError:
                return
            try:
                answers = self.fleet.answer(request)
                requested.seconds = time.perf_counter() - requested.started
                requested.answered.put((place, answers))
            except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the answers
                requested.failed.set()
                requested.answered.put((place, error))

    def _finish_requests(self) -> None:
        """No adapter is changed under answers on their way, whether or not anybody still wants them."""
        if self._under_way is not None:
            for thread in self._under_way.threads:
                thread.join()
            self._under_way = None
