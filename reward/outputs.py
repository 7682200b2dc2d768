"""Select the output of a sequence classifier that is the reward."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.core.errors import ModelError, did_you_mean

GOOD = ("chosen", "positive", "good", "better", "safe", "harmless", "yes", "true", "correct", "preferred")
BAD = (
    "rejected",
    "negative",
    "bad",
    "worse",
    "unsafe",
    "harmful",
    "no",
    "false",
    "incorrect",
    "toxic",
    "neutral",
)
CLASSES = GOOD + BAD
"""Names of outputs that are classes, of which one is the reward; attributes have other names."""


def reward_output(path: str, names: Sequence[str], label: str | None, *, problem_type: str | None) -> int:
    """The index of the output that is the reward.

    Raises:
        ModelError: no output has this label; or there is no label, and the outputs are classes.
    """
    if label is not None and label not in names:
        raise ModelError(
            f"{path} has no output {label!r}.{did_you_mean(label, names)}",
            allowed=", ".join(names),
            fix=f"--label {names[0]}, or `label: {names[0]}` beside `classifier` in a config",
        )
    classes = [name for name in names if name.lower() in CLASSES or name.startswith("LABEL_")]
    if label is None and len(names) > 1 and classes and problem_type != "regression":
        raise ModelError(
            f"{path} is a classifier with {len(names)} classes ({', '.join(names)}), and any of them may be "
            "the reward.",
            allowed=", ".join(names),
            fix=f"--label NAME, or `label: NAME` beside `classifier` in a config; probably {_likely(names)}",
        )
    return 0 if label is None else names.index(label)


def _likely(names: Sequence[str]) -> str:
    return next((name for name in names if name.lower() in GOOD), names[-1])
