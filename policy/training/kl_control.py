"""Control of a run by its KL: an adaptive coefficient, and a budget that stops the run at its best
weights."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed.sharding import set_parameters

MAX_ERROR = 0.2
WINDOW = 8
"""Updates whose mean reward selects the best weights: the prompts of one update are too few."""
STATE, BEST = "kl.json", "best.safetensors"


def adapt_coefficient(coefficient: float, kl: float, target: float, horizon: float, answers: int) -> float:
    """The next KL coefficient: raised where the KL was above its target, lowered where below.

        e = clip(kl / target - 1, -0.2, 0.2),  next = coefficient x (1 + e x answers / horizon)

    Args:
        kl: of the update, by the estimator and reduction of the target.
        horizon: answers over which a constant error of 1 would double the coefficient.
        answers: of the update.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2, with horizon = answers / K_beta; as the
    `AdaptiveKLController` of lm-human-preferences and of TRL's former PPOTrainer.
    """
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return coefficient * (1 + error * answers / horizon)


class KLControl:
    """The current coefficient, the best weights so far, and whether the run must stop.

    The figures of an update are those of the policy that sampled its answers, and are observed before the
    optimizer step. The best weights have the highest mean reward over the last `WINDOW` updates up to their
    own, all within the budget.

    Args:
        coefficient: initial value.
        target: KL that the coefficient is adapted to; None keeps the coefficient fixed.
        horizon: of the adaptation, in answers.
        budget: the run stops when the mean KL of an answer in nats (k1, summed) exceeds it; None is no limit.

    Attributes:
        stopped: why the run stopped early, or None.
    """

    def __init__(
        self, coefficient: float, *, target: float | None, horizon: float, budget: float | None
    ) -> None:
        self.coefficient, self.target, self.horizon, self.budget = coefficient, target, horizon, budget
        self.stopped: dict[str, Any] | None = None
        self.rewards: deque[float] = deque(maxlen=WINDOW)
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] = {}

    def observe(
        self,
        update: int,
        *,
        charged: float,
        kl: float,
        reward: float,
        answers: int,
        weights: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        """Adapt the coefficient, check the budget and keep the best weights.

        Args:
            charged: KL of the update by the config's estimator and reduction.
            kl: mean KL of an answer, in nats.
            reward: mean reward.
            answers: of the update.
            weights: returns the trained weights of the policy that sampled.
        """
        if self.target is not None:
            self.coefficient = adapt_coefficient(
                self.coefficient, charged, self.target, self.horizon, answers
            )
        if self.budget is None:
            return
        if kl > self.budget:
            self.stopped = {
                "reason": "kl budget",
                "update": update,
                "kl": kl,
                "budget": self.budget,
                "kept": self.best,
            }
            return
        self.rewards.append(reward)
        mean = sum(self.rewards) / len(self.rewards)
        # Means over fewer updates are too noisy to compare: until the window is full the newest weights are
        # kept.
        if update <= WINDOW or mean > self.best["reward"]:
            self.best = {"update": update - 1, "reward": mean, "kl": kl}
            self.best_weights = {name: value.clone() for name, value in weights().items()}

    def restore_best(self, model: nn.Module) -> None:
        """Load the best weights; without an update within the budget the model is unchanged."""
        set_parameters(model, self.best_weights)

    def sentence(self) -> str:
        """Why and where the run stopped, and which weights are kept."""
        assert self.stopped is not None
        kept = self.stopped["kept"]
        what = (
            f"the weights after update {kept['update']} are kept: mean reward {kept['reward']:.3g}, KL "
            f"{kept['kl']:.3g}"
            if kept
            else "no update was within the budget, and the weights are unchanged"
        )
        return (
            f"Stopped at update {self.stopped['update']}: the mean KL of an answer, "
            f"{self.stopped['kl']:.3g} nats, exceeds algorithm.kl.budget = {self.stopped['budget']:g}; "
            f"{what}."
        )

    def save(self, folder: Path) -> None:
        """Write the state that a resumed run needs."""
        state = {"coefficient": self.coefficient, "rewards": list(self.rewards), "best": self.best}
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        if self.best_weights:
            save_file(self.best_weights, folder / BEST)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; older checkpoints without it had a fixed coefficient and no budget."""
        if not (folder / STATE).exists():
            return
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        self.coefficient, self.best = state["coefficient"], state["best"]
        self.rewards = deque(state["rewards"], maxlen=WINDOW)
        if (folder / BEST).exists():
            self.best_weights = load_file(folder / BEST)
