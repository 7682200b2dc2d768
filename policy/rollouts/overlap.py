"""Rollouts one update ahead: during an update the servers sample the answers of the next one.

    update k:   collect the answers of k;  send the policy;  request the answers of k + 1;  train

The answers of k + 1 come from the policy before update k, which is one update old; importance sampling
corrects this. The first update of a run uses answers of the current policy.
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
from policy.rollouts.servers.engine import Requested, ServerEngine
from policy.update.forward import MicroBatch
from policy.update.losses import engine_logps
from policy.update.sampling import RolloutBatch
from policy.update.step import Update
from rlhf.core.records import Rollout
from rlhf.distributed import processes
from rlhf.distributed.sharding import set_parameters
from rlhf.models.loading import PeftModel
from rlhf.models.names import POLICY
from rlhf.runs.checkpoints import trainable_state

LAG = (
    "Answers are sampled one update ahead, by a policy that is one update old; "
    "importance sampling corrects this."
)
GROUPS, SAMPLER = "ahead.json", "ahead.safetensors"
Weights = Mapping[str, Tensor]
Forward = Callable[[MicroBatch], tuple[Tensor, Tensor, Tensor]]
"""(logps_M, entropy_M, answer_M) of a micro-batch by the current model."""
Group = Mapping[str, Any]
"""Token ids of a prompt, and of its answers with their log-probabilities, as JSON."""


@dataclass
class Pending:
    """Answers of the next update: requested, or collected for a checkpoint.

    Attributes:
        requested: the open request; None once it is collected.
        collected: answers of all ranks.
        sampler: weights of the policy that samples them; None for the current policy.
    """

    requested: Requested | None
    collected: list[Group]
    sampler: Weights | None


class OverlappedRollouts:
    """Requests each update's answers during the update before.

    Args:
        engine: the servers.
        samples: answers to a prompt.

    Attributes:
        sampler: weights of the policy that sampled the current answers; None for the current policy.
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
    ) -> RolloutBatch:
        """Collect the answers to this update's prompts, send the policy, and request the next update's
        answers.

        Args:
            following: prompts and seed of the next update; None at the last.
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
            groups = self._local(self.pending.collected, prompts)
        received = time.perf_counter()
        self.pending = None
        if following is not None:
            self.engine.sync(model)
            request = self.engine.request(following[0], samples=self.samples, seed=following[1])
            self.pending = Pending(request, [], _policy_weights(model))
        figures |= {
            "time/sync": synced - started + time.perf_counter() - received,
            "time/rollout": received - synced,  # without the part that training hides
        }
        return RolloutBatch(groups, figures | self.engine.figures())

    def compare(self, model: PeftModel, micro_batch: MicroBatch, update: Update, forward: Forward) -> None:
        """Compare the engine with the policy that sampled, restored for one micro-batch.

        `update` compares it with the current one.
        """
        if self.sampler is None:
            return
        with self.as_sampled(model):
            logps_M, _, answer_M = forward(micro_batch)
        reference_M = update.measured[0][0].reference_M
        update.probe.sampler = EngineProbe(update.probe.level, update.probe.cap)
        engine_M = engine_logps(micro_batch.rollouts, like=logps_M)
        update.probe.sampler.add(engine_M, logps_M, reference_M, answer_M, len(micro_batch.answers))

    @contextmanager
    def as_sampled(self, model: PeftModel) -> Iterator[None]:
        """Within the block the model has the weights of the policy that sampled the current answers."""
        current = _policy_weights(model)
        set_parameters(model, self.sampler or {})
        try:
            yield
        finally:
            set_parameters(model, current)

    def collect(self) -> None:
        """Wait for the pending answers, so that a checkpoint can hold them; all ranks together."""
        if self.pending is not None and self.pending.requested is not None:
            groups = [_plain(group) for group in self.engine.collect(self.pending.requested)]
            collected = [group for rank_groups in processes.all_gather(groups) for group in rank_groups]
            self.pending = Pending(None, collected, self.pending.sampler)

    def save(self, folder: Path) -> None:
        """Write the collected answers: a resumed run continues with them."""
        if self.pending is not None:
            (folder / GROUPS).write_text(json.dumps(self.pending.collected), encoding="utf-8")
            assert self.pending.sampler is not None  # None only before the first update of a run
            save_file(dict(self.pending.sampler), folder / SAMPLER)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; after a run's last update nothing was pending."""
        if (folder / GROUPS).exists():
            collected = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
            self.pending = Pending(None, collected, load_file(folder / SAMPLER))

    def _local(self, collected: Sequence[Group], prompts: Sequence[Sequence[int]]) -> list[list[Rollout]]:
        """The answers to this rank's prompts, out of those of all ranks."""
        by_rank = processes.all_gather([list(prompt) for prompt in prompts])
        local = assign_groups(collected, by_rank)[processes.rank()]
        return [
            [
                as_rollout(group["prompt"], ids, logprobs, self.engine.sampling.stop_ids, self.engine.chat)
                for ids, logprobs in group["answers"]
            ]
            for group in local
        ]


def assign_groups(groups: Sequence[Group], prompts: Sequence[Sequence[Sequence[int]]]) -> list[list[Group]]:
    """The groups of each rank's prompts; each group is used once, also where several have the same prompt."""
    remaining = list(groups)

    def take(prompt: Sequence[int]) -> Group:
        index = next(index for index, group in enumerate(remaining) if group["prompt"] == list(prompt))
        return remaining.pop(index)

    return [[take(prompt) for prompt in rank_prompts] for rank_prompts in prompts]


def _plain(group: Sequence[Rollout]) -> Group:
    return {
        "prompt": list(group[0].prompt_ids),
        "answers": [[list(rollout.completion_ids), list(rollout.logprobs)] for rollout in group],
    }


def _policy_weights(model: PeftModel) -> Weights:
    """Copies of the adapter's weights, unsharded."""
    return {name: value.clone() for name, value in trainable_state(model).items() if f".{POLICY}." in name}
