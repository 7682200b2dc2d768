"""One file a command; each is imported only when its name is typed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command's function is, as `module:function`, and its line in `rlhf --help`."""

    function: str
    help: str


COMMANDS = {
    "train-reward": Command("rlhf.commands.train_reward:command", "Train a reward model."),
    "evaluate-reward": Command(
        "rlhf.commands.evaluate_reward:evaluate_reward",
        "Measure a reward model on pairs of answers.",
    ),
    "score": Command("rlhf.commands.score:score", "Score every conversation of a file with a reward model."),
    "align-policy": Command("rlhf.commands.align_policy:command", "Align a policy with a reward model."),
    "report": Command("rlhf.commands.report:command", "Write one page on a run: verdict, curves, answers."),
    "embedded-model": Command(
        "rlhf.commands.embedded_model:command", "Put the embedded model, SmolLM2, into the cache."
    ),
}
"""Every command by its name, in the order of a first use."""
