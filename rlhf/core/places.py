"""Paths as users write them: expands `~` and `$VAR`, and suggests the path that a typo was meant to be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlhf.core.errors import did_you_mean

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
EXPLICIT = ("/", "./", "../", "~", "$")


def expand(text: str) -> str:
    """A path or name with `~`, `~USER`, `$VAR` and `${VAR}` expanded; an existing path is returned unchanged.

    Raises:
        ValueError: a variable is not set, or the home folder is unknown.
    """
    if ("~" not in text[:1] and "$" not in text) or _exists(text):
        return text
    for plain, braced in VARIABLE.findall(text):
        if plain + braced not in os.environ:
            name = plain + braced
            raise ValueError(
                f"found {text!r}, but {name} is not set: export {name}=..., or write the whole path"
            )
    text = os.path.expandvars(text)
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111  # pathlib's raises where there is no home
    if expanded.startswith("~"):
        raise ValueError(
            f"found {text!r}, but the home folder of this user is unknown: export HOME=..., or write the "
            "whole path"
        )
    return expanded


def home() -> Path | None:
    """The user's home folder; None if it is unknown (no HOME, and a user id without an account)."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def is_explicit(name: str) -> bool:
    """Whether a name can only be a local path: `/x`, `./x`, `~/x`, `a/b/c`, or with characters invalid on the
    Hub."""
    return name.startswith(EXPLICIT) or HUB_NAME.fullmatch(name) is None


def missing_local(name: str) -> str:
    """Why a path does not exist: its first missing part, and the closest existing name.

    Empty for a name that may be on the Hub (`OWNER/NAME`), unless the folder `OWNER` or a similar name exists
    here.
    """
    path = Path(name)
    closest = _closest(path)
    hub_like = not is_explicit(name)
    if (
        hub_like
        and "Did you mean" not in closest
        and not (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    ):
        return ""
    return closest


def _closest(path: Path) -> str:
    """`the folder X has no 'y'. Did you mean 'X/z'?` for the first missing part of a path."""
    step = path
    while step.parent != step and not _exists(str(step.parent)):
        step = step.parent
    folder = step.parent
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        names = []
    rest = path.relative_to(step)
    hint = did_you_mean(step.name, names)
    if hint:
        close = hint.split("'")[1]
        hint = f" Did you mean {str(folder / close / rest)!r}?"
    return f"the folder {folder.absolute()} has no {step.name!r}.{hint}"


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # a name too long for a file, or a folder without permission
        return False
