"""One file a command; each is imported only when its name is typed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command's function is, as `module:function`, and its line in `rlhf --help`."""

    function: str
    help: str


COMMANDS = {
    "doctor": Command(
        "rlhf.commands.doctor:command", "Look for what would make a run fail, before it starts."
    ),
    "inspect": Command(
        "rlhf.commands.inspect:command", "Look at the data of a config, down to one example in tokens."
    ),
    "annotate": Command(
        "rlhf.commands.annotate:command", "Collect preferences and ratings from people in a browser."
    ),
    "train-reward": Command("rlhf.commands.train_reward:command", "Train a reward model."),
    "evaluate-reward": Command(
        "rlhf.commands.evaluate_reward:evaluate_reward",
        "Measure a reward model on pairs of answers.",
    ),
    "score": Command("rlhf.commands.score:score", "Score every conversation of a file with a reward model."),
    "serve-reward": Command("rlhf.commands.serve_reward:command", "Serve a reward model over HTTP."),
    "extrapolate": Command(
        "rlhf.commands.extrapolate:command",
        "Go on in the direction from a weak model to a strong one (ExPO).",
    ),
    "paper-table": Command(
        "rlhf.commands.paper_table:command", "Train every row of the paper's reward table, and compare."
    ),
    "align-policy": Command("rlhf.commands.align_policy:command", "Align a policy with a reward model."),
    "generate": Command(
        "rlhf.commands.generate:command", "Answer a file of questions, in the judges' own formats."
    ),
    "compare": Command("rlhf.commands.compare:command", "Compare two policies by a reward model."),
    "frontier": Command("rlhf.commands.frontier:command", "Draw reward against KL, run beside run."),
    "chat": Command("rlhf.commands.chat:command", "Talk with a policy."),
    "export": Command("rlhf.commands.export:command", "Merge a model into plain weights, for use elsewhere."),
    "search": Command("rlhf.commands.search:command", "Search for good values of config keys."),
    "report": Command("rlhf.commands.report:command", "Write one page on a run: verdict, curves, answers."),
    "plan": Command("rlhf.commands.plan:command", "Say what a config needs of which cards."),
    "configs": Command(
        "rlhf.commands.configs:command", "List the configs that come with rlhf, or copy them."
    ),
    "embedded-model": Command(
        "rlhf.commands.embedded_model:command", "Put the embedded model, SmolLM2, into the cache."
    ),
}
"""Every command by its name, in the order of a first use."""

PLACES = frozenset({"model", "policy", "reward", "held_out", "a", "b", "data", "prompts", "tasks", "store"})
"""Text arguments that may be a path: `~` and `$VAR` in them are expanded, as in every argument of type Path."""
