"""What the KL does to a run besides being charged: a coefficient that follows a target, a budget that ends it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.distributed.sharding import set_parameters

MOST_ERROR = 0.2
WINDOW = 8
"""Updates over whose mean reward the best weights are chosen: one update's prompts are too few to tell."""
STATE, BEST = "kl.json", "best.safetensors"


def adapt_coefficient(coefficient: float, kl: float, target: float, horizon: float, answers: int) -> float:
    """The next coefficient: up where the KL was above its target, down where it was below.

        e = clip(kl / target - 1, -0.2, 0.2),  next = coefficient x (1 + e x answers / horizon)

    Args:
        kl: of the update, in the estimator and reduction that the target is meant in.
        horizon: answers over which an error of 1 would double the coefficient.
        answers: of the update.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2, with horizon = answers / K_beta; as the `AdaptiveKLController`
    of lm-human-preferences and of TRL's former PPOTrainer.
    """
    error = min(max(kl / target - 1, -MOST_ERROR), MOST_ERROR)
    return coefficient * (1 + error * answers / horizon)


class KLControl:
    """The coefficient now, the best weights so far, and whether the run is over.

    Figures of an update are of the policy that sampled its answers, so they are observed before the update is made: weights
    are the best by the mean reward of the last updates up to their own, all of them within the budget.

    Args:
        coefficient: at the start.
        target: what the KL is steered to; None leaves the coefficient as it is.
        horizon: of the steering, in answers.
        budget: mean KL of an answer, in nats (k1, summed), beyond which the run ends; None is no end.

    Attributes:
        stopped: why the run ended early, or None.
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
        """Take in one update's figures: the KL in the config's terms, the KL of an answer in nats, the mean reward."""
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
        # Until the window is full the newest weights stand, since few rewards would be compared with few.
        if update <= WINDOW or mean > self.best["reward"]:
            self.best = {"update": update - 1, "reward": mean, "kl": kl}
            self.best_weights = {name: value.clone() for name, value in weights().items()}

    def put_best_back(self, model: nn.Module) -> None:
        """Give the model its best weights again; where no update was within the budget, it stays as it is."""
        set_parameters(model, self.best_weights)

    def sentence(self) -> str:
        """What is said of a run that ended early."""
        assert self.stopped is not None
        kept = self.stopped["kept"]
        what = (
            f"the weights after update {kept['update']} are kept: mean reward {kept['reward']:.3g}, KL {kept['kl']:.3g}"
            if kept
            else "no update was within it, and the weights stay as they are"
        )
        return (
            f"Stopped at update {self.stopped['update']}: the mean KL of an answer, {self.stopped['kl']:.3g} nats, is beyond "
            f"algorithm.kl.budget = {self.stopped['budget']:g}; {what}."
        )

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs."""
        state = {"coefficient": self.coefficient, "rewards": list(self.rewards), "best": self.best}
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        if self.best_weights:
            save_file(self.best_weights, folder / BEST)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote; a checkpoint from before there was any has a fixed coefficient and no budget."""
        if not (folder / STATE).exists():
            return
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        self.coefficient, self.best = state["coefficient"], state["best"]
        self.rewards = deque(state["rewards"], maxlen=WINDOW)
        if (folder / BEST).exists():
            self.best_weights = load_file(folder / BEST)
