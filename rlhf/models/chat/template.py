"""A chat template with everything its output depends on: text, date and options.

A template reads the date from the variable `date_string` or from transformers' function `strftime_now`. Both
are pinned, or a reward would depend on the current day.
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
"""transformers' file of a tokenizer's template."""
DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%b %d, %Y", "%B %d, %Y")
END_OF_PINS = "{# end of pinned values #}\n"
"""Ends the prefix that `ChatTemplate.pinned` adds. A comment renders to nothing, its newline included."""
STRFTIME_CALL = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')""")


@dataclass(frozen=True)
class ChatTemplate:
    """The text of a chat template and the values it is rendered with.

    Attributes:
        text: Jinja source.
        date: the pinned date.
        kwargs: options of the template, such as `enable_thinking`.
    """

    text: str
    date: str = DATE
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of text, date and options."""
        parts = [self.text, self.date]
        if self.kwargs:
            parts.append(json.dumps(self.kwargs, sort_keys=True, ensure_ascii=False))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def variables(self) -> dict[str, Any]:
        """The template's variables besides the messages; they shadow functions of the environment."""
        return {"date_string": self.date, "strftime_now": self.strftime, **self.kwargs}

    def strftime(self, date_format: str) -> str:
        """The pinned date in another format.

        Raises:
            ModelError: the format of the pinned date is unknown.
        """
        for pinned_format in DATE_FORMATS:
            try:
                return datetime.strptime(self.date, pinned_format).strftime(date_format)
            except ValueError:
                continue
        raise ModelError(
            f"The chat template formats a date, and model.template_date is {self.date!r}.",
            allowed="a date such as "
            + ", ".join(repr(datetime(2024, 7, 26).strftime(f)) for f in DATE_FORMATS),
            fix=f"model.template_date='{DATE}'",
        )

    def pinned(self) -> str:
        """Jinja source with date and options included, for tokenizers on disk."""
        pins = []
        if "date_string" in self.text:
            pins.append(f"{{%- set date_string = {_literal(self.date)} %}}")
        if formats := sorted({a or b for a, b in STRFTIME_CALL.findall(self.text)}):
            dates = _literal({date_format: self.strftime(date_format) for date_format in formats})
            pins.append(f"{{%- macro strftime_now(format) -%}}{{{{ {dates}[format] }}}}{{%- endmacro %}}")
        for name, value in sorted(self.kwargs.items()):
            pins.append(
                f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
            )
        return "".join([*pins, END_OF_PINS, self.text]) if pins else self.text


def choose_template(tokenizer: Any, name_or_file: str | None) -> tuple[str, str | None]:
    """The text of a tokenizer's template, and its name if there are several.

    Args:
        name_or_file: a template of the tokenizer, or a file; None: the default template.

    Raises:
        ModelError: the template does not exist, or there is no default.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {DEFAULT: templates} if templates else {}
    named: Mapping[str, str] = templates
    if name_or_file is not None:
        if name_or_file in named:
            return _without_pins(named[name_or_file]), name_or_file
        file = Path(name_or_file).expanduser()
        if file.is_file():
            return _without_pins(file.read_text("utf-8")), None
        names = ", ".join(named) or "none"
        raise ModelError(
            f"model.chat_template is {name_or_file!r}, neither a file nor a template of the tokenizer."
            f"{did_you_mean(name_or_file, named)}",
            allowed=f"a file with a Jinja template, or a template of the tokenizer: {names}",
            fix="model.chat_template=FILE.jinja",
        )
    if not named:
        raise ModelError(
            f"The tokenizer of {tokenizer.name_or_path!r} has no chat template.",
            allowed="an instruct model, whose tokenizer has a chat template; or a file with a template",
            fix="use the -Instruct version of the model, or set model.chat_template=FILE.jinja in a config; "
            f"without a config, save the template as {TEMPLATE_FILE} in the model's folder",
        )
    if len(named) == 1 or DEFAULT in named:
        name = DEFAULT if DEFAULT in named else next(iter(named))
        return _without_pins(named[name]), name if len(named) > 1 else None
    raise ModelError(
        f"The tokenizer of {tokenizer.name_or_path!r} has {len(named)} chat templates, and no default.",
        allowed=", ".join(named),
        fix=f"model.chat_template={next(iter(named))}",
    )


def keys_to_set(here: ChatTemplate, card: Mapping[str, Any], folder: Path | None) -> list[str]:
    """The config keys, as KEY=VALUE, that reproduce the template of an adapter's card.

    Args:
        folder: the adapter's folder, which contains its template.
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
    """Refuse options that shadow variables of the template.

    Raises:
        ConfigError: an option does.
    """
    reserved = {
        *inspect.signature(tokenizer.apply_chat_template).parameters,
        "messages",
        *ChatTemplate("").variables(),
    }
    shadowed = sorted(reserved & kwargs.keys())
    if shadowed:
        raise ConfigError(
            f"model.chat_template_kwargs sets {', '.join(shadowed)}.",
            allowed="options of the chat template, such as enable_thinking",
            fix="remove them; model.template_date sets the date, model.chat_template the template",
        )


def _without_pins(text: str) -> str:
    return text.rpartition(END_OF_PINS)[2]


def _literal(value: Any) -> str:
    """A JSON value as a Jinja literal."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
