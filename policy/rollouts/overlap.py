"""Rollouts one update ahead: while an update is made, the servers sample the answers of the next.

    update k:   take the answers of k;  hand over the policy;  request the answers of k + 1;  train

The answers of k + 1 come from the policy as it was before update k: one update old, which importance sampling corrects. The
first update of a run has answers of its own policy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import as_rollout
from policy.rollouts.server_engine import Requested, ServerEngine
from policy.update.experience import Answers
from policy.update.importance import engine_logps
from policy.update.rows import Row
from policy.update.step import Update
from rlhf.core.records import Rollout
from rlhf.distributed import processes
from rlhf.distributed.sharding import set_parameters
from rlhf.models.loading import POLICY, PeftModel
from rlhf.runs.checkpoints import trainable_state

LAG = "Answers are sampled one update ahead: by a policy that is one update old, which importance sampling corrects."
GROUPS, SAMPLER = "ahead.json", "ahead.safetensors"
Weights = Mapping[str, Tensor]
Forward = Callable[[Row], tuple[Tensor, Tensor, Tensor]]
"""Log-probabilities, entropies and answers of a row's tokens, by the model as it is."""
Group = Mapping[str, Any]
"""A prompt's ids, and its answers as pairs of ids and log-probabilities: plain, to be written and sent."""


@dataclass
class Pending:
    """Answers under way, or held since a checkpoint.

    Attributes:
        requested: what the servers are answering; None once it is held.
        held: answers of all processes.
        sampler: the policy that samples them; None where it is the present one.
    """

    requested: Requested | None
    held: list[Group]
    sampler: Weights | None


class OverlappedRollouts:
    """Keeps the answers of the next update coming.

    Args:
        engine: the servers.
        samples: answers to a prompt.

    Attributes:
        sampler: weights of the policy that sampled the answers last taken; None where it is the present one.
    """

    def __init__(self, engine: ServerEngine, samples: int) -> None:
        self.engine, self.samples = engine, samples
        self.pending: Pending | None = None
        self.sampler: Weights | None = None

    def sample(
        self,
        model: PeftModel,
        prompts: Sequence[Sequence[int]],
        seed: int,
        following: tuple[Sequence[Sequence[int]], int] | None,
    ) -> Answers:
        """The answers to this update's prompts; then hand over the policy and request those of the next update.

        Args:
            following: the next update's prompts and seed; None after the last.
        """
        started = time.perf_counter()
        if self.pending is None:
            self.engine.sync(model)
            self.pending = Pending(self.engine.request(prompts, samples=self.samples, seed=seed), [], None)
        synced = time.perf_counter()
        figures, self.sampler = {"engine/lag": float(self.pending.sampler is not None)}, self.pending.sampler
        if (requested := self.pending.requested) is not None:
            groups = self.engine.collect(requested)
            tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group)
            figures["engine/tokens_per_second"] = tokens / requested.seconds
        else:
            groups = self._own(self.pending.held, prompts)
        taken = time.perf_counter()
        self.pending = None
        if following is not None:
            self.engine.sync(model)
            request = self.engine.request(following[0], samples=self.samples, seed=following[1])
            self.pending = Pending(request, [], _policy_weights(model))
        figures |= {
            "time/sync": synced - started + time.perf_counter() - taken,
            "time/rollout": taken - synced,  # what training did not hide
        }
        return Answers(groups, figures | self.engine.figures())

    def compare(self, model: PeftModel, row: Row, update: Update, forward: Forward) -> None:
        """Hold the engine against the policy that sampled, put back for one row; `update` holds it against the present one."""
        if self.sampler is None:
            return
        with self.as_sampled(model):
            logps_M, _, answer_M = forward(row)
        reference_M = update.settled[0][0].reference_M
        update.probe.sampler = EngineProbe(update.probe.level, update.probe.cap)
        engine_M = engine_logps(row.rollouts, like=logps_M)
        update.probe.sampler.add(engine_M, logps_M, reference_M, answer_M, len(row.answers))

    @contextmanager
    def as_sampled(self, model: PeftModel) -> Iterator[None]:
        """The policy that sampled the answers last taken, in place of the present one."""
        present = _policy_weights(model)
        set_parameters(model, self.sampler or {})
        try:
            yield
        finally:
            set_parameters(model, present)

    def hold(self) -> None:
        """Wait for what is under way, so that a checkpoint can have it; all processes together."""
        if self.pending is not None and self.pending.requested is not None:
            groups = [_plain(group) for group in self.engine.collect(self.pending.requested)]
            held = [group for own in processes.all_gather(groups) for group in own]
            self.pending = Pending(None, held, self.pending.sampler)

    def save(self, folder: Path) -> None:
        """Write what is held: a resumed run goes on with the same answers."""
        if self.pending is not None:
            (folder / GROUPS).write_text(json.dumps(self.pending.held), encoding="utf-8")
            assert self.pending.sampler is not None  # only the first answers of a run have none
            save_file(dict(self.pending.sampler), folder / SAMPLER)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; after a run's last update there was nothing under way."""
        if (folder / GROUPS).exists():
            held = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
            self.pending = Pending(None, held, load_file(folder / SAMPLER))

    def _own(self, held: Sequence[Group], prompts: Sequence[Sequence[int]]) -> list[list[Rollout]]:
        """Of the answers of all processes, those to one's own prompts."""
        own = dealt(held, processes.all_gather([list(prompt) for prompt in prompts]))[processes.rank()]
        return [
            [
                as_rollout(group["prompt"], ids, logprobs, self.engine.sampling.stop_ids, self.engine.chat)
                for ids, logprobs in group["answers"]
            ]
            for group in own
        ]


def dealt(held: Sequence[Group], prompts: Sequence[Sequence[Sequence[int]]]) -> list[list[Group]]:
    """The answers to each process's prompts; each group of answers goes to one, however often its prompt was asked."""
    left = list(held)

    def take(prompt: Sequence[int]) -> Group:
        place = next(place for place, group in enumerate(left) if group["prompt"] == list(prompt))
        return left.pop(place)

    return [[take(prompt) for prompt in own] for own in prompts]


def _plain(group: Sequence[Rollout]) -> Group:
    return {
        "prompt": list(group[0].prompt_ids),
        "answers": [[list(rollout.completion_ids), list(rollout.logprobs)] for rollout in group],
    }


def _policy_weights(model: PeftModel) -> Weights:
    """Copies, in one piece."""
    return {name: value.clone() for name, value in trainable_state(model).items() if f".{POLICY}." in name}
