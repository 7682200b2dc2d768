"""Evaluation on held-out prompts: reward, gold score, KL and length before and after, with intervals.

Shapes: P prompts, S answers to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from policy.rewards.protocol import Rewards
from policy.rollouts.probe import EngineProbe
from policy.rollouts.protocol import RolloutEngine
from policy.update.forward import pack_groups, reference_logps, token_logps
from policy.update.losses import engine_logps
from policy.update.statistics import gold_scores
from rlhf.core.records import Prompt, Rollout
from rlhf.core.statistics import bootstrap_means
from rlhf.distributed import processes
from rlhf.distributed.sharding import compute_device, lockstep
from rlhf.kernels.packing_check import one_per_row
from rlhf.kernels.tensors import segment_sum
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, autocast, base_of

FIGURES = ("reward", "gold", "kl", "length")
HELD_OUT = "held_out"
"""A further figure, where the config has a held-out reward."""
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a held-out prompt; `kl` is the sum of its log-ratios, a missing reward is None."""

    answer: str
    reward: float | None
    gold: float | None
    kl: float
    length: int
    finished: bool
    held_out: float | None = None


def answer_prompts(
    model: PeftModel | PreTrainedModel,
    reference: PeftModel | PreTrainedModel,
    engine: RolloutEngine,
    rewards: Rewards,
    chat: Chat,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    tokens_per_batch: int,
    held_out: Rewards | None = None,
    probe: EngineProbe | None = None,
) -> list[list[Answer]]:
    """Sample and score `samples` answers to each prompt by the current policy; rewards are not shaped.

    Args:
        reference: the model that has the reference role: the policy's own, or a frozen copy of the base.
        held_out: a reward that the policy is not trained on.
        probe: collects the engine's and the trainer's log-probabilities, for the caller to check.
    """
    engine.sync(model)
    groups = engine.generate([chat.prompt_ids(p.messages) for p in prompts], samples=samples, seed=seed)
    repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    rollouts = [rollout for group in groups for rollout in group]
    golds = gold_scores(repeated, rollouts)
    rewarded = _rewards(rewards, repeated, rollouts)
    held_out_rewards = [None] * len(rollouts) if held_out is None else _rewards(held_out, repeated, rollouts)
    kl = _kl_to_reference(model, reference, groups, tokens_per_batch, chat.pad_id, probe)
    figures = iter(zip(rewarded, golds, held_out_rewards, kl, strict=True))
    return [
        [
            Answer(
                answer=rollout.text,
                reward=reward,
                gold=gold,
                kl=value,
                length=len(rollout.completion_ids),
                finished=rollout.finished,
                held_out=held_out_reward,
            )
            for rollout, (reward, gold, held_out_reward, value) in zip(group, figures, strict=False)
        ]
        for group in groups
    ]


def _rewards(rewards: Rewards, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | None]:
    result = rewards.of(prompts, rollouts)
    if not any(processes.all_gather(any(result.known))):  # a rank's own prompts may have none
        raise result.no_rewards_error()
    return [reward if known else None for reward, known in zip(result.rewards, result.known, strict=True)]


def _kl_to_reference(
    model: PeftModel | PreTrainedModel,
    reference: PeftModel | PreTrainedModel,
    groups: Sequence[Sequence[Rollout]],
    tokens_per_batch: int,
    pad_id: int,
    probe: EngineProbe | None,
) -> list[float]:
    """Sum of log-ratios of each answer, in the order of the groups; without dropout."""
    kl = [0.0] * sum(map(len, groups))
    was_training = model.training
    model.eval()
    with torch.no_grad(), autocast(base_of(model)):
        rows = pack_groups(
            groups,
            tokens_per_batch,
            pad_id,
            compute_device(model),
            one_per_row=one_per_row(base_of(model)),
        )
        for row, is_real in lockstep(rows, model):
            reference_M = reference_logps(reference, reference, row)
            logps_M, _, answer_M = token_logps(model, row.packed, entropy=False)
            if probe is not None and is_real:
                engine_M = engine_logps(row.rollouts, like=logps_M)
                probe.add(engine_M, logps_M, reference_M, answer_M, len(row.answers))
            kl_N = segment_sum(logps_M - reference_M, answer_M, len(row.answers))
            for index, value in zip(row.answers, kl_N.tolist(), strict=True):
                kl[index] = value
    model.train(was_training)
    return kl


def compare(
    prompts: Sequence[Prompt],
    before: Sequence[Sequence[Answer]],
    after: Sequence[Sequence[Answer]],
    seed: int,
) -> dict[str, Any]:
    """eval.json: means before and after, and the paired difference with its 95 % interval.

    Differences are paired by prompt, and the interval is the percentile bootstrap over prompts; None for a
    single prompt.
    """
    has_held_out = any(answer.held_out is not None for group in before for answer in group)
    names = (*FIGURES, HELD_OUT) if has_held_out else FIGURES
    return {
        "before": {name: _mean(before, name) for name in names},
        "after": {name: _mean(after, name) for name in names},
        "difference": {name: _difference(before, after, name, seed) for name in names},
        "missing": {"before": _missing(before), "after": _missing(after)},
        "prompts": len(prompts),
        "samples": len(before[0]),
        "answers": [
            {
                "prompt": [m.as_dict() for m in prompt.messages],
                "source": prompt.source,
                "check": prompt.check,
                "before": _as_dict(first[0], has_held_out=has_held_out),
                "after": _as_dict(second[0], has_held_out=has_held_out),
            }
            for prompt, first, second in zip(prompts, before, after, strict=True)
        ],
    }


def _per_prompt(answers: Sequence[Sequence[Answer]], name: str) -> list[float | None]:
    means: list[float | None] = []
    for group in answers:
        values = [value for answer in group if (value := getattr(answer, name)) is not None]
        means.append(float(np.mean(values)) if values else None)
    return means


def _missing(answers: Sequence[Sequence[Answer]]) -> int:
    return sum(answer.reward is None for group in answers for answer in group)


def _mean(answers: Sequence[Sequence[Answer]], name: str) -> float | None:
    known = [value for value in _per_prompt(answers, name) if value is not None]
    return float(np.mean(known)) if known else None


def _difference(
    before: Sequence[Sequence[Answer]], after: Sequence[Sequence[Answer]], name: str, seed: int
) -> dict[str, Any] | None:
    pairs = zip(_per_prompt(before, name), _per_prompt(after, name), strict=True)
    differences_P = np.array([b - a for a, b in pairs if a is not None and b is not None])
    if not differences_P.size:
        return None
    mean = float(differences_P.mean())
    (interval,) = bootstrap_means([differences_P[:, None]], resamples=RESAMPLES, seed=seed)
    return {"mean": mean, "ci95": interval}


def _as_dict(answer: Answer, *, has_held_out: bool) -> Mapping[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__slots__ if has_held_out or name != HELD_OUT}
