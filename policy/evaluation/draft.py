"""Partial results of `generate`, from which a killed run resumes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from rlhf.core.errors import OutputError
from rlhf.data.evaluation.judge_formats import Reply

Replies = list[Reply] | str
"""The replies to a question, one per sample; or why there are none."""


class Draft:
    """Answers so far, one line per batch, in a hidden file beside the output.

    An incomplete last line is dropped.

    Args:
        output: the file to write.
        settings: those that determine the answers; a draft with others is not resumed.

    Raises:
        OutputError: there is a draft with other settings, or another process is writing it.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.path = output.with_name(f".{output.name}.draft")
        self.batches: list[dict[int, Replies]] = []
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(json.loads(json.dumps(settings)))
        except BlockingIOError:
            self._file.close()
            raise OutputError(
                f"Another process is writing {output}.", fix="wait until it has finished"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def append(self, replies: Mapping[int, Replies]) -> None:
        """Append a batch of replies by question position."""
        plain = {
            position: replied if isinstance(replied, str) else [asdict(reply) for reply in replied]
            for position, replied in replies.items()
        }
        self._write({"replies": plain})

    def remove(self) -> None:
        """Delete the draft: its answers are in the output."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        rows, whole = [], 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
            whole += len(line)
        self._file.truncate(whole)
        if not rows:
            self._write(settings)
            return
        before, *batches = rows
        changed = [
            f"  {name}: was {before.get(name)}, is {settings.get(name)}"
            for name in settings | before
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise OutputError(
                "\n".join([f"{self.path} holds answers of an unfinished run with other settings:", *changed]),
                allowed="the same settings, to resume it",
                fix=f"use the earlier settings, or rm {self.path}",
            )
        self.batches = [
            {int(position): _replies(stored) for position, stored in row["replies"].items()}
            for row in batches
        ]

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _replies(stored: str | Sequence[Mapping[str, Any]]) -> Replies:
    if isinstance(stored, str):
        return stored
    return [Reply(tuple(row["turns"]), tuple(row["finished"]), tuple(row["tokens"])) for row in stored]
