"""The tree of all errors that this project raises on purpose.

    RlhfError                  anything this project raises on purpose
    ├── UserError              the input is at fault: exit code 2, one message, no stack trace
    │   ├── ConfigError        a config file, or `key=value` on the command line
    │   ├── DataError          a row, a file or a data set
    │   │   └── RefusalError   a conversation that cannot be tokenized
    │   ├── ModelError         a model, tokenizer, adapter or head that does not fit
    │   └── OutputError        an output folder that cannot be used
    └── RunError               valid input, but the run failed: exit code 1
        ├── StoppedError       stopped by a signal, after an update: exit code 128 + the signal's number
        ├── GpuMemoryError     the GPU's memory is full (`rlhf.runs.gpu_memory`)
        ├── EngineError        the rollout engine returned nothing, or disagrees with the trainer
        ├── RewardError        an answer's reward could not be computed
        └── DivergenceError    a loss, reward or KL that is not finite, or is out of bounds

A message has three parts: what was *found*, what is *allowed*, and the *fix* to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXCERPT = 160
"""Characters of a value in a message."""


class RlhfError(Exception):
    """Base class of all errors raised on purpose.

    Args:
        found: the value or state that is wrong, with its place (file, line, key).
        allowed: what would be valid.
        fix: what the user can type or change.
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
        """Show the message alone in IPython and Jupyter, without a stack trace."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A config key, value or override that cannot be used."""


class DataError(UserError):
    """A row, file or data set that cannot be used."""


class RefusalError(DataError):
    """A conversation that cannot be tokenized: the chat template refuses it, or its text is not Unicode.

    Attributes:
        reason: the cause, phrased to follow "is"; drop reports count conversations by it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"A conversation is {reason}",
            allowed="Unicode text, in messages that the base's chat template accepts",
            fix="remove such conversations, or use a base whose chat template accepts them",
        )


class ModelError(UserError):
    """A model, tokenizer, adapter or head that does not fit."""


class OutputError(UserError):
    """An output folder that cannot be used."""


class RunError(RlhfError):
    """A run that failed although its input was valid."""


class StoppedError(RunError):
    """A run stopped by a signal; its last update is in a checkpoint."""

    def __init__(self, found: str, *, fix: str, exit_code: int) -> None:
        super().__init__(found, fix=fix)
        self.exit_code = exit_code


class EngineError(RunError):
    """The rollout engine failed, or its log-probabilities disagree with the trainer's."""


class RewardError(RunError):
    """An answer's reward could not be computed."""


class DivergenceError(RunError):
    """A quantity that is not finite, or not within its bounds."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The sentence ` Did you mean 'x'?` for the closest known word, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def excerpt(value: object, around: object = None, *, width: int = EXCERPT) -> str:
    """`repr(value)` in at most `width` characters: the text around the fault, else its beginning and its end.

    Args:
        around: the part of the value that is at fault, such as one item of a list; None where the fault has
            no place.
    """
    text = repr(value)
    place = text.find(repr(around)) if around is not None else -1
    if place >= 0:
        return shorten(text, place, min(len(repr(around)), width), width=width)
    if len(text) <= width:
        return text
    half = (width - 5) // 2
    return f"{text[: width - 5 - half]} ... {text[-half:]}"


def shorten(text: str, start: int, length: int = 1, *, width: int = EXCERPT) -> str:
    """At most `width` characters of a text with `text[start : start + length]` in the middle, `...` for the
    rest."""
    if len(text) <= width:
        return text
    room = width - 6
    begin = max(0, min(start - (room - length) // 2, len(text) - room))
    end = begin + room
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"
