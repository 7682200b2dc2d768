"""Every error a person can meet, as one tree.

    RlhfError                  anything this project raises on purpose
    ├── UserError              the input is at fault: exit code 2, one message, no stack trace
    │   ├── ConfigError        a config file, or `key=value` on the command line
    │   ├── DataError          a row, a file or a data set
    │   ├── ModelError         a model, tokenizer, adapter or head that does not fit
    │   └── OutputError        an output folder that cannot be used
    └── RunError               a run that was right to start and failed: exit code 1
        ├── StoppedError       a signal ended it, after an update: exit code 128 + the signal's number
        ├── EngineError        the rollout engine returned nothing, or disagrees with the trainer
        ├── RewardError        an answer's reward could not be computed
        └── DivergenceError    a loss, reward or KL that is not a number, or is out of bounds

A message has three parts: what was *found*, what is *allowed*, and the *fix* to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlhfError(Exception):
    """Base of every error raised on purpose.

    Args:
        found: what was met, with its place (file, line, key).
        allowed: what would have been right.
        fix: what the reader can type or change now.
    """

    exit_code = 1

    def __init__(self, found: str, *, allowed: str = "", fix: str = "") -> None:
        self.found, self.allowed, self.fix = found, allowed, fix
        parts = [found]
        if allowed:
            parts.append(f"Allowed: {allowed}")
        if fix:
            parts.append(f"Do this: {fix}")
        super().__init__("\n".join(parts))


class UserError(RlhfError):
    """The input is at fault."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """What IPython and Jupyter show in place of a stack trace: the message."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A config key, value or override that cannot be used."""


class DataError(UserError):
    """A row, file or data set that cannot be used."""


class RefusalError(DataError):
    """A conversation cannot become tokens: the template refuses it (Gemma's a system prompt), or a text in it is not Unicode.

    Attributes:
        reason: why, for a report of many; goes on after "is".
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"A conversation is {reason}",
            allowed="Unicode text, in messages that the base's chat template takes",
            fix="change or leave out such conversations, or use a base whose template takes them",
        )


class ModelError(UserError):
    """A model, tokenizer, adapter or head that does not fit."""


class OutputError(UserError):
    """An output folder that cannot be used."""


class RunError(RlhfError):
    """A run that was right to start and failed."""


class StoppedError(RunError):
    """A signal stopped a run; its last update is in a checkpoint."""

    def __init__(self, found: str, *, fix: str, exit_code: int) -> None:
        super().__init__(found, fix=fix)
        self.exit_code = exit_code


class EngineError(RunError):
    """The rollout engine failed, or its log-probabilities disagree with the trainer's."""


class RewardError(RunError):
    """An answer's reward could not be computed."""


class DivergenceError(RunError):
    """A quantity that must stay finite or within bounds did not."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence ` Did you mean 'x'?` for the closest known word, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
