"""The passes of one update over one packed row, as the trainers run them, on fake tensors.

Models, adapters, packed rows and losses are those of a run; attention and checkpointing are the vendors'.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from policy.update.forward import token_logps, token_values
from policy.update.losses import clipped_value_loss, kl_of_answers, reinforce
from reward.losses import bradley_terry, regression
from rlhf.kernels import adapter_layers
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.last_layer import read_states
from rlhf.kernels.packed_batch import NextTokens, PackedBatch, Span
from rlhf.models.forwards import (
    apply_head,
    enable_packed_logprobs,
    enable_packed_scores,
    enable_packed_values,
)
from rlhf.models.loading import (
    PeftModel,
    autocast,
    lora_config,
    reference_role,
    upcast_trainable,
    with_adapter,
)
from rlhf.models.names import CRITIC, REFERENCE, REWARD
from rlhf.models.roles import role
from rlhf.plan.memory.empty import empty_base
from rlhf.plan.memory.ledger import Ledger


@dataclass(frozen=True)
class UpdateRow:
    """One packed row of an update, or rows of one sequence, and the model they go through."""

    command: Literal["train-reward", "align-policy"]
    tokens: int
    """Of all rows."""
    sequences: int
    """Responses of pairs, or answers."""
    logprob_tokens: int
    """Tokens whose log-probability is computed; 0 for a reward model."""
    dtype: str
    quantization: str
    checkpointing: bool
    rank: int
    dropout: float
    targets: str | tuple[str, ...]
    outputs: int
    """Attributes of the reward head."""
    rewards: int = 0
    """Reward models that are adapters on the policy's base; of the policy's rank."""
    reference: bool = False
    """Whether the reference is a frozen adapter; else it is the base."""
    rows: int = 1
    """With more than one, each is a sequence by itself."""
    critic: bool = False
    """Whether a critic, an adapter with a head, is trained beside the policy."""


def build(shape: Any, row: UpdateRow) -> tuple[PeftModel, nn.Module]:
    """The model with adapters as `train-reward` or `align-policy` builds it, and the latter's reward head."""
    is_reward = row.command == "train-reward"
    targets = row.targets if isinstance(row.targets, str) else list(row.targets)
    names = [str(number) for number in range(row.outputs)]
    base = empty_base(
        copy.deepcopy(shape),
        attributes=names if is_reward else None,
        dtype=row.dtype,
        quantization=row.quantization,
    )
    adapter = functools.partial(lora_config, alpha=1.0, targets=targets)
    with torch.device("meta"):
        if is_reward:
            enable_packed_scores(base)
            model = with_adapter(base, adapter(rank=row.rank, dropout=row.dropout, head=True))
        else:
            model = with_adapter(base, adapter(rank=row.rank, dropout=row.dropout))
            enable_packed_logprobs(model.get_base_model(), 1.0)
            for name in _roles(row):
                model.add_adapter(name, adapter(rank=row.rank, dropout=0.0))
                adapter_layers.enable(model)
                _train(model, name, name == CRITIC)
            if row.critic:
                enable_packed_values(model.get_base_model(), nn.Linear(shape.hidden_size, 1, bias=False))
        head = nn.Linear(shape.hidden_size, row.outputs, bias=False).requires_grad_(False)
    upcast_trainable(model)
    if row.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    return model, nn.Identity() if is_reward else head


def _roles(row: UpdateRow) -> list[str]:
    """Adapters beside the policy's own."""
    return [
        *(f"{REWARD}_{number}" for number in range(row.rewards)),
        *([REFERENCE] if row.reference else []),
        *([CRITIC] if row.critic else []),
    ]


def _train(model: PeftModel, adapter: str, wanted: bool) -> None:
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            parameter.requires_grad_(wanted)


def packed_row(row: UpdateRow, *, on_gpu: bool) -> PackedBatch:
    """A row of fake tensors. On a CPU, attention works on branches, here of equal length without a trunk."""

    def places() -> Tensor:
        return torch.empty(row.rows, row.tokens // row.rows, dtype=torch.long)

    return PackedBatch(
        ids_RT=places(),
        positions_RT=places(),
        tree_RT=places(),
        branch_RT=places(),
        last_tokens_N=_last_tokens(row),
        next_tokens=NextTokens(*(torch.empty(row.logprob_tokens, dtype=torch.long) for _ in range(4))),
        trees=(0,),
        useful_tokens=0,
        computed_tokens=row.tokens,
        spans=() if on_gpu or row.rows > 1 else (_branches(row),),
        one_per_row=row.rows > 1,
    )


def _branches(row: UpdateRow) -> tuple[Span, ...]:
    edges = [row.tokens * number // row.sequences for number in range(row.sequences + 1)]
    return tuple(Span(start, stop) for start, stop in itertools.pairwise(edges))


def _last_tokens(row: UpdateRow) -> tuple[Tensor, Tensor]:
    return torch.empty(row.sequences, dtype=torch.long), torch.empty(row.sequences, dtype=torch.long)


def _reward_passes(
    model: PeftModel, _: nn.Module, batch: PackedBatch, row: UpdateRow, ledger: Ledger
) -> None:
    """As `HybridRewardTrainer._row_loss`: scores, both losses, backward; and the same without gradient."""

    def scores() -> Tensor:
        with autocast(model.get_base_model()):
            return model(**packed_inputs(batch), score_at=_last_tokens(row))  # type: ignore[no-any-return]

    with ledger.during("scoring"), torch.no_grad():
        scores()
    with ledger.during("update"):
        scores_NA = scores()
        half = row.sequences // 2
        chosen_B, rejected_B = scores_NA[:half, 0], scores_NA[half : 2 * half, 0]
        ratings_NA = torch.empty_like(scores_NA)
        loss = regression(scores_NA, ratings_NA, ratings_NA > 0, 1.0)
        loss = loss + bradley_terry(chosen_B, rejected_B, torch.empty(half), "scaled", 1.0)
        with _backwards(ledger):
            loss.backward()  # type: ignore[no-untyped-call]


def _policy_passes(
    model: PeftModel, head: nn.Module, batch: PackedBatch, row: UpdateRow, ledger: Ledger
) -> None:
    """As `PolicyTrainer.training_step`: scores, log-probabilities, then policy and critic, both passes."""
    base = model.get_base_model()
    if row.rewards:
        with ledger.during("scoring"), torch.no_grad(), role(model, f"{REWARD}_0"):
            with autocast(base):
                hidden_ND = read_states(base.base_model, _last_tokens(row), **packed_inputs(batch))
            apply_head(head, hidden_ND)
            del hidden_ND
    with ledger.during("measuring"), torch.no_grad():
        with role(model, reference_role(model)), autocast(base):
            reference_M, _, _ = token_logps(model, batch, entropy=False)
        if row.critic:  # all rows are measured before the first loss
            with autocast(base):
                token_logps(model, batch)
            with role(model, CRITIC), autocast(base):
                token_values(model, batch)
    with ledger.during("update"):
        with autocast(base):
            logps_M, _, answer_M = token_logps(model, batch)
        penalty_N = kl_of_answers(logps_M.detach() - reference_M, answer_M, row.sequences, "k1", "sum")
        loss = reinforce(logps_M, answer_M, penalty_N, "sequence_sum", row.sequences)
        with _backwards(ledger):
            loss.backward()  # type: ignore[no-untyped-call]
    if row.critic:
        with ledger.during("critic"), role(model, CRITIC):
            with autocast(base):
                values_M = token_values(model, batch)
            loss = clipped_value_loss(
                values_M,
                reference_M,
                reference_M,
                answer_M >= 0,
                answer_M,
                row.sequences,
                "token_mean",
                0.2,
                row.logprob_tokens,
            )[0]
            with _backwards(ledger):
                loss.backward()  # type: ignore[no-untyped-call]


PASSES: Mapping[str, Callable[[PeftModel, nn.Module, PackedBatch, UpdateRow, Ledger], None]] = {
    "train-reward": _reward_passes,
    "align-policy": _policy_passes,
}


@contextmanager
def _backwards(ledger: Ledger) -> Iterator[None]:
    """Count the backward pass under moments of its own."""
    name = ledger.moment[0].partition(":")[0]
    with ledger.during(f"{name}:backwards"):
        yield
