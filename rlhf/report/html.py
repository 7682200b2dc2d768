"""How pages are made: jinja, everything escaped, one style sheet; `plain.html` is the frame of those without
scripts.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

ROOM = "rlhf.report"


def environment(package: str = ROOM) -> Environment:
    """The templates of a package, and behind them those of this one."""
    rooms = dict.fromkeys((package, ROOM))
    return Environment(
        loader=ChoiceLoader([PackageLoader(room, "templates") for room in rooms]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> Markup:
    """A style sheet or script of ours, as it is."""
    file = resources.files(ROOM) / "templates" / name
    return Markup(file.read_text(encoding="utf-8"))  # noqa: S704


def script_hash(text: str) -> str:
    """A script's hash as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
