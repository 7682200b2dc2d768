"""Reward, KL and length of a policy run over its updates, as one SVG.

python benchmarks/draw_policy_run.py runs/local-prompts docs/real-policy.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot

PANELS = {
    "reward/mean": "reward of the samples",
    "kl/sum": "KL to the base, nats an answer",
    "length/mean": "length, tokens",
}
WINDOW = 10  # updates in the running mean


def main(run: Path, picture: Path) -> None:
    """Draw one panel per metric: each update as a dot, and the running mean of ten updates."""
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        updates = [json.loads(line) for line in lines]
    updates = [update for update in updates if "reward/mean" in update]
    steps = [update["step"] for update in updates]
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(9.6, 2.6), layout="constrained")
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        values = np.array([update[name] for update in updates])
        running = np.convolve(values, np.ones(WINDOW) / WINDOW, mode="valid")
        axes.scatter(steps, values, s=7, color="#b7c4d8")
        axes.plot(steps[WINDOW - 1 :], running, color="#1f4e96")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("update", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
