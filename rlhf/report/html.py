"""Templates of pages: Jinja, everything escaped, one style sheet; `plain.html`: pages without scripts."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

ROOM = "rlhf.report"


def environment() -> Environment:
    """The templates of this package."""
    return Environment(
        loader=PackageLoader(ROOM, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> Markup:
    """The text of one of our style sheets or scripts."""
    file = resources.files(ROOM) / "templates" / name
    return Markup(file.read_text(encoding="utf-8"))  # noqa: S704


def script_hash(text: str) -> str:
    """A script's hash in the form of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
