"""Correcting what is left of the mismatch between the engine that sampled and the trainer that learns.

Shapes: M tokens of all answers of a row, N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rlhf.core.errors import EngineError
from rlhf.core.records import Rollout
from rlhf.kernels.tensors import segment_sum

Level = Literal["token", "sequence"]


def importance_weights(
    logps_M: Tensor, engine_M: Tensor, answer_M: Tensor, answers: int, level: Level, cap: float
) -> Tensor:
    """Truncated importance sampling: how much likelier the trainer finds what the engine sampled, at most `cap`.

        token     w_t = min(exp(log pi(a_t) - log mu(a_t)), cap)
        sequence  w_t = min(exp(sum over the answer's tokens of log pi - log mu), cap), the same for all its tokens

    pi is the trainer's policy, mu the engine's. The weights are constants: they multiply the gradient, and have none.
    Tokens are what is cheap in variance and ignores that a token's past came from mu too; sequences are exact but
    for the cap, and their variance grows with length.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025), TIS, per token; TRL's
    GRPOTrainer, `vllm_importance_sampling_mode` token_truncate and sequence_truncate, `vllm_importance_sampling_clip_max`.
    """
    difference_M = logps_M.detach() - engine_M
    if level == "sequence":
        difference_M = segment_sum(difference_M, answer_M, answers)[answer_M]
    return difference_M.exp().clamp(max=cap)


def engine_logps(rollouts: Sequence[Rollout], like: Tensor) -> Tensor | None:
    """What the engine said of its answers' tokens, laid flat beside `like`; None where it says nothing.

    Raises:
        EngineError: it spoke of some of the tokens only.
    """
    told = [logprob for rollout in rollouts for logprob in rollout.logprobs]
    if not told:
        return None
    if any(len(rollout.logprobs) != len(rollout.completion_ids) for rollout in rollouts):
        raise EngineError(
            f"The engine gave {len(told)} log-probabilities for answers of {like.numel()} tokens.",
            allowed="one for each token, or none at all",
        )
    return torch.tensor(told, dtype=like.dtype, device=like.device)
