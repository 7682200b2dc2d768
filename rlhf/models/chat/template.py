"""A chat template with everything it depends on: its text, the date it may write, and its options.

A template reads a date as the variable `date_string` or by calling `strftime_now`, the one function of transformers'
template environment that knows the day. Both are pinned, or a reward would depend on the day it is computed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf.core.errors import ConfigError, ModelError, did_you_mean

DATE = "26 Jul 2024"
DEFAULT = "default"
TEMPLATE_FILE = "chat_template.jinja"
"""Where transformers keeps the template of a tokenizer."""
DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%b %d, %Y", "%B %d, %Y")
END_OF_PINS = "{# end of pinned values #}\n"
"""Ends what `ChatTemplate.pinned` puts before the text. A comment: it renders to nothing, and neither does its newline."""
STRFTIME_CALL = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')""")


@dataclass(frozen=True)
class ChatTemplate:
    """The text of a chat template and the values it is rendered with.

    Attributes:
        text: Jinja source.
        date: the date that the template may write.
        kwargs: options of the template, such as `enable_thinking`.
    """

    text: str
    date: str = DATE
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of text, date and options: the same digest gives the same ids with the same tokenizer."""
        parts = [self.text, self.date]
        if self.kwargs:
            parts.append(json.dumps(self.kwargs, sort_keys=True, ensure_ascii=False))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def variables(self) -> dict[str, Any]:
        """What the template is rendered with besides the messages; these names hide the environment's own functions."""
        return {"date_string": self.date, "strftime_now": self.strftime, **self.kwargs}

    def strftime(self, date_format: str) -> str:
        """The pinned date in the format a template asks for.

        Raises:
            ModelError: the pinned date is in no known format.
        """
        for known in DATE_FORMATS:
            try:
                return datetime.strptime(self.date, known).strftime(date_format)
            except ValueError:
                continue
        raise ModelError(
            f"The chat template formats a date, and model.template_date is {self.date!r}.",
            allowed="a date such as "
            + ", ".join(repr(datetime(2024, 7, 26).strftime(f)) for f in DATE_FORMATS),
            fix=f"model.template_date='{DATE}'",
        )

    def pinned(self) -> str:
        """Jinja source that renders the same without being passed date and options, for tokenizers on disk."""
        pins = []
        if "date_string" in self.text:
            pins.append(f"{{%- set date_string = {_literal(self.date)} %}}")
        if formats := sorted({a or b for a, b in STRFTIME_CALL.findall(self.text)}):
            dates = _literal({one: self.strftime(one) for one in formats})
            pins.append(f"{{%- macro strftime_now(format) -%}}{{{{ {dates}[format] }}}}{{%- endmacro %}}")
        for name, value in sorted(self.kwargs.items()):
            pins.append(
                f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
            )
        return "".join([*pins, END_OF_PINS, self.text]) if pins else self.text


def choose_template(tokenizer: Any, name_or_file: str | None) -> tuple[str, str | None]:
    """The text of the template of a tokenizer, and its name where there are several.

    Args:
        name_or_file: one of the tokenizer's named templates, or a file with a template; None: the default one.

    Raises:
        ModelError: there is no such template, or none at all, or several of which none is the default.
    """
    own = tokenizer.chat_template
    named: Mapping[str, str] = own if isinstance(own, dict) else {DEFAULT: own} if own else {}
    if name_or_file is not None:
        if name_or_file in named:
            return _without_pins(named[name_or_file]), name_or_file
        file = Path(name_or_file).expanduser()
        if file.is_file():
            return _without_pins(file.read_text("utf-8")), None
        names = ", ".join(named) or "none"
        raise ModelError(
            f"model.chat_template is {name_or_file!r}: no such file, and no such template of the tokenizer."
            f"{did_you_mean(name_or_file, named)}",
            allowed=f"a file with a Jinja template, or a template of the tokenizer: {names}",
            fix="model.chat_template=FILE.jinja",
        )
    if not named:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template.",
            allowed="an instruct model, whose tokenizer says how messages become text; or a file with a template",
            fix="use the -Instruct version of the model, or set model.chat_template=FILE.jinja",
        )
    if len(named) == 1 or DEFAULT in named:
        name = DEFAULT if DEFAULT in named else next(iter(named))
        return _without_pins(named[name]), name if len(named) > 1 else None
    raise ModelError(
        f"The tokenizer of {tokenizer.name_or_path!r} has {len(named)} chat templates, and none is the default.",
        allowed=", ".join(named),
        fix=f"model.chat_template={next(iter(named))}",
    )


def keys_to_set(here: ChatTemplate, card: Mapping[str, Any], folder: Path | None) -> list[str]:
    """The config keys that make a template the one on an adapter's card, as they are typed.

    Args:
        folder: the adapter's, which holds the text of its template.
    """
    date, kwargs = card["template_date"], card.get("chat_template_kwargs", {})
    keys = []
    if here.date != date:
        keys.append(f"model.template_date={date!r}")
    if here.kwargs != kwargs:
        keys.append(f"model.chat_template_kwargs='{json.dumps(kwargs)}'")
    if replace(here, date=date, kwargs=kwargs).digest != card["template_hash"] and folder is not None:
        keys.append(f"model.chat_template={folder / TEMPLATE_FILE}")
    return keys


def check_options(kwargs: Mapping[str, Any], tokenizer: Any) -> None:
    """Make sure that options of a template hide none of the names it is rendered with.

    Raises:
        ConfigError: one does.
    """
    reserved = {
        *inspect.signature(tokenizer.apply_chat_template).parameters,
        "messages",
        *ChatTemplate("").variables(),
    }
    taken = sorted(reserved & kwargs.keys())
    if taken:
        raise ConfigError(
            f"model.chat_template_kwargs sets {', '.join(taken)}.",
            allowed="options of the chat template, such as enable_thinking",
            fix="leave them out; model.template_date sets the date, model.chat_template the template",
        )


def _without_pins(text: str) -> str:
    return text.rpartition(END_OF_PINS)[2]


def _literal(value: Any) -> str:
    """A JSON value as a Jinja literal."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
