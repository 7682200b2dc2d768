"""From rewards to what each answer is worth. Shapes: P prompts, G answers to each."""

from __future__ import annotations

from torch import Tensor


def leave_one_out(rewards_PG: Tensor, counted_PG: Tensor) -> Tensor:
    """REINFORCE's leave-one-out advantage: an answer's reward minus the mean of its siblings'.

        A_pi = R_pi - sum over counted j != i of R_pj / (counted_p - 1)

    Answers that do not count (unfinished ones, where the rule drops them) take no part in a baseline and have
    advantage 0, and so has an answer without counted siblings.

    Args:
        rewards_PG: penalised rewards; anything, even NaN, where not counted.
        counted_PG: which answers count.

    Source: Ahmadian et al. (arXiv 2402.14740), equation 7; over finished answers as NeMo-Aligner's `reinforce.py` does.
    """
    if rewards_PG.shape != counted_PG.shape:
        raise ValueError(f"shapes must be equal, got {tuple(rewards_PG.shape)} and {tuple(counted_PG.shape)}")
    counted_rewards_PG = rewards_PG.masked_fill(~counted_PG, 0.0)
    siblings_PG = counted_PG.sum(dim=1, keepdim=True) - counted_PG.long()
    baseline_PG = (counted_rewards_PG.sum(dim=1, keepdim=True) - counted_rewards_PG) / siblings_PG.clamp(
        min=1
    )
    worth = counted_PG & (siblings_PG > 0)
    return (counted_rewards_PG - baseline_PG).masked_fill(~worth, 0.0)
