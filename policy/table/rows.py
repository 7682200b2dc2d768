"""The rows of the policy table and the claims of the paper about them, with the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass

BASE, BEST_OF = "base", "best-of-n"


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One row, with the paper's figures of Llama-3.1-70B-Instruct (arXiv 2410.01257, section 4)."""

    title: str
    arena_hard: float | None = None
    """Win rate against GPT-4-0314, in per cent."""
    characters: float | None = None
    """Mean length of the answers to MT-Bench."""


ROWS: dict[str, PolicyRow] = {
    BASE: PolicyRow("The base", 55.7, 1728.6),
    "dpo-regular": PolicyRow("DPO, regular", 52.8, 1502.2),
    "dpo-margin": PolicyRow("DPO, margin", 52.6, 1496.6),
    "dpo-scaled": PolicyRow("DPO, scaled", 52.9, 1514.8),
    "ppo": PolicyRow("PPO", 58.6, 1842.8),
    "reinforce": PolicyRow("REINFORCE", 85.0, 2199.8),
    BEST_OF: PolicyRow("Best of n"),
}
"""In the paper's order; the last one is not in the paper."""
TRAINED = tuple(name for name in ROWS if name not in (BASE, BEST_OF))


@dataclass(frozen=True, slots=True)
class Claim:
    """The first row has a higher win rate than the second."""

    sentence: str
    better: str
    worse: str

    @property
    def paper(self) -> float | None:
        """The difference on Arena Hard, where each policy has the KL that its training gave it."""
        better, worse = ROWS[self.better].arena_hard, ROWS[self.worse].arena_hard
        return None if better is None or worse is None else round(better - worse, 1)


CLAIMS = (
    Claim("REINFORCE beats PPO", "reinforce", "ppo"),
    Claim("REINFORCE beats scaled DPO", "reinforce", "dpo-scaled"),
    Claim("PPO beats scaled DPO", "ppo", "dpo-scaled"),
    Claim("Scaled DPO beats regular DPO", "dpo-scaled", "dpo-regular"),
    Claim("Regular DPO beats margin DPO", "dpo-regular", "dpo-margin"),
    Claim("REINFORCE beats best of n", "reinforce", BEST_OF),
)
