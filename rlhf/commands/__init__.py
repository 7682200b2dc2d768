"""The commands of `rlhf`, one per file, imported when they are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A command's function as `module:function`, and its line in `rlhf --help`."""

    function: str
    help: str


COMMANDS = {
    "doctor": Command(
        "rlhf.commands.doctor:command", "Check machine and config for problems before a run starts."
    ),
    "inspect": Command(
        "rlhf.commands.inspect:command", "Show the data of a config: counts, lengths, one example in tokens."
    ),
    "annotate": Command(
        "rlhf.commands.annotate:command", "Collect preferences and ratings from people in a browser."
    ),
    "train-reward": Command("rlhf.commands.train_reward:command", "Train a reward model."),
    "train-principle": Command(
        "rlhf.commands.train_principle:command", "Train an adapter that scores by principles in words."
    ),
    "train-justifier": Command(
        "rlhf.commands.train_justifier:command", "Train a model that compares two responses in words."
    ),
    "evaluate-reward": Command(
        "rlhf.commands.evaluate_reward:evaluate_reward",
        "Measure a reward model on pairs of answers.",
    ),
    "score": Command("rlhf.commands.score:score", "Score every conversation of a file with a reward model."),
    "serve-reward": Command("rlhf.commands.serve_reward:command", "Serve a reward model over HTTP."),
    "extrapolate": Command(
        "rlhf.commands.extrapolate:command",
        "Extrapolate from a weak to a strong checkpoint (ExPO).",
    ),
    "paper-table": Command(
        "rlhf.commands.paper_table:command", "Train and compare all rows of the paper's reward table."
    ),
    "align-policy": Command("rlhf.commands.align_policy:command", "Align a policy with a reward model."),
    "train-dpo": Command("rlhf.commands.train_dpo:command", "Align a policy with preferences by DPO."),
    "policy-table": Command(
        "rlhf.commands.policy_table:command", "Train and compare all rows of the paper's policy table."
    ),
    "generate": Command(
        "rlhf.commands.generate:command", "Generate answers to a file of questions, in the judges' formats."
    ),
    "compare": Command("rlhf.commands.compare:command", "Compare two policies by a reward model."),
    "frontier": Command("rlhf.commands.frontier:command", "Plot reward against KL for several runs."),
    "chat": Command("rlhf.commands.chat:command", "Chat with a policy."),
    "export": Command("rlhf.commands.export:command", "Merge adapter and base into plain weights."),
    "push": Command("rlhf.commands.push:command", "Upload a model to the Hugging Face Hub."),
    "search": Command("rlhf.commands.search:command", "Search for good values of config keys."),
    "report": Command("rlhf.commands.report:command", "Write the report of a run: verdict, curves, answers."),
    "plan": Command("rlhf.commands.plan:command", "Estimate the GPUs, time and cost of a config."),
    "configs": Command(
        "rlhf.commands.configs:command", "List or copy the configs that are installed with rlhf."
    ),
    "embedded-model": Command(
        "rlhf.commands.embedded_model:command", "Prepare the embedded model, SmolLM2, in the cache."
    ),
}
"""All commands by name, in the order of first use."""

PLACES = frozenset({"model", "policy", "reward", "held_out", "a", "b", "data", "prompts", "tasks", "store"})
"""String arguments that may be a path: `~` and `$VAR` in them are expanded, as in arguments of type Path."""
