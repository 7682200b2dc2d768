"""A schema in plain words: its keys, what each allows, what is wrong with a value. Pydantic's wording ends here."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from rlhf.core.errors import did_you_mean

Parts = tuple[str | int, ...]
"""A key as its steps from the top: ("stages", 0, "name")."""

PLAIN_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
BOUND_WORDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
BOUND_TYPES = {
    annotated_types.Ge: "ge",
    annotated_types.Gt: "gt",
    annotated_types.Le: "le",
    annotated_types.Lt: "lt",
    annotated_types.MinLen: "min_length",
}
UNIONS = (Union, types.UnionType)
UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
RULE_BROKEN = ("value_error", "assertion_error")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a schema; `default` is pydantic's undefined where the key is required."""

    dotted: str
    field: FieldInfo
    default: Any
    model: type[BaseModel] | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a config: where, what was found, what is allowed, what to do."""

    parts: Parts
    found: str
    allowed: str = ""
    fix: str = ""


def keys(schema: type[BaseModel], prefix: str = "", instance: Any = None) -> Iterator[Key]:
    """Every key of a schema, outer before inner; items of a list are written `list.N.key`."""
    for name, field in schema.model_fields.items():
        set_above = instance is not None
        default = getattr(instance, name) if set_above else field.get_default(call_default_factory=True)
        model, is_list = _model_inside(field.annotation)
        yield Key(prefix + name, field, default, model)
        if model is not None:
            below = default if isinstance(default, model) else None
            yield from keys(model, f"{prefix}{name}.{'N.' if is_list else ''}", below)


def describe(schema: type[BaseModel]) -> str:
    """Every key of a schema with what it allows, its default and its doc line, as a page to read."""
    lines = [
        (schema.__doc__ or schema.__name__).splitlines()[0],
        "A key of a list item holds its number for N. `extends: FILE` starts from the keys of another file.",
        "",
    ]
    for key in keys(schema):
        if key.default is PydanticUndefined:
            state = "required"
        elif isinstance(key.default, BaseModel):
            state = "may be left out"
        else:
            state = f"default {_as_yaml(key.default)}"
        if key.model is None:
            kind = plain(key.field.annotation, key.field.metadata)
        else:
            kind = "a list" if _is_list(key.field.annotation) else "a mapping"
        lines.append(f"{key.dotted}: {kind}; {state}")
        if key.field.description:
            lines.append(f"    {key.field.description}")
    return "\n".join(lines)


def plain(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a type allows, in plain words: `a whole number of at least 1, or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain(inner[0], [*metadata, *inner[1:]])
    if origin in UNIONS:
        members = [plain(one, metadata) for one in inner if one is not types.NoneType]
        return ", or ".join([*members, "null"] if types.NoneType in inner else members)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(repr(one) for one in inner)
    bounds = _bounds(metadata)
    if origin is list:
        length = f" of at least {bounds['min_length']}" if "min_length" in bounds else ""
        return f"a list{length}, each item {plain(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)} ({', '.join(plain(one) for one in inner)})"
    if origin is dict:
        return f"a mapping from {plain(inner[0])} to {plain(inner[1])}"
    if _is_model(annotation):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    name = PLAIN_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    if "ge" in bounds and "le" in bounds:
        return f"{name} from {_number(bounds['ge'])} to {_number(bounds['le'])}"
    words = [f"{word} {_number(bounds[bound])}" for bound, word in BOUND_WORDS.items() if bound in bounds]
    return f"{name} {' and '.join(words)}" if words else name


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def problems(error: ValidationError, schema: type[BaseModel], data: Mapping[str, Any]) -> list[Problem]:
    """Pydantic's complaints as problems in plain words, one a place.

    The members of a union each complain about the same value; they become one problem.
    """
    by_place: dict[Parts, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, schema, data)
        by_place.setdefault(problem.parts, problem)
    return list(by_place.values())


def dotted(parts: Parts) -> str:
    """A key as it is typed on the command line."""
    return ".".join(str(part) for part in parts)


def _problem(detail: ErrorDetails, schema: type[BaseModel], data: Mapping[str, Any]) -> Problem:
    spot = _locate(schema, detail["loc"])
    key, kind = dotted(spot.parts), detail["type"]
    if kind in UNKNOWN_KEY:
        return _unknown_key(spot, schema)
    about = f". Meaning: {spot.field.description}" if spot.field and spot.field.description else ""
    allowed = plain(spot.annotation, spot.metadata)
    if kind == "missing" and spot.parts == detail["loc"]:
        return Problem(spot.parts, f"the key '{key}' is missing", allowed + about, f"add '{key}'")
    value = _value(data, spot.parts)
    if kind in RULE_BROKEN:
        rule = str(detail.get("ctx", {}).get("error", detail["msg"]))
        return Problem(spot.parts, f"{key}: {rule}" if key else rule)
    return Problem(spot.parts, f"{key}: found {_short(value)}", allowed + about, _fix(spot, value))


def _fix(spot: _Spot, value: Any) -> str:
    key = dotted(spot.parts)
    members = _members(spot.annotation)
    if str in members and isinstance(value, bool | int | float | date):
        return f"put the value in quotes: '{key}=\"{value}\"'"
    choices = [choice for one in members if get_origin(one) is Literal for choice in get_args(one)]
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    if close:
        return f"{key}={close[0]}"
    default = spot.field.get_default(call_default_factory=True) if spot.field and spot.whole_field else None
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return f"change '{key}'"
    return f"change it; the default is {key}={_as_yaml(default)}"


def _unknown_key(spot: _Spot, schema: type[BaseModel]) -> Problem:
    word, known = str(spot.parts[-1]), list(spot.owner.model_fields)
    # The same name on another level is a better guess than a similar one on this level.
    elsewhere = [key.dotted for key in keys(schema) if key.dotted.rpartition(".")[2] == word]
    hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else did_you_mean(word, known)
    found = f"unknown key '{dotted(spot.parts)}'.{hint}"
    return Problem(spot.parts, found, ", ".join(known), "rename the key or take it out")


@dataclass(frozen=True, slots=True)
class _Spot:
    """A place in a config: its key, the schema that owns it, and what may stand there."""

    parts: Parts
    owner: type[BaseModel]
    field: FieldInfo | None
    annotation: Any
    metadata: Sequence[Any]
    whole_field: bool


def _locate(schema: type[BaseModel], loc: tuple[str | int, ...]) -> _Spot:
    """Follow pydantic's location through the schema, up to where it names a member of a union or of a tuple."""
    parts: list[str | int] = []
    owner, field, whole_field = schema, None, False
    annotation: Any = schema
    metadata: Sequence[Any] = ()
    for part in loc:
        inner, _ = _without_null(annotation, metadata)
        if _is_model(inner):
            owner, field, whole_field = inner, inner.model_fields.get(str(part)), True
            annotation, metadata = (field.annotation, field.metadata) if field else (None, ())
        elif get_origin(inner) in (list, dict):
            annotation, metadata, whole_field = get_args(inner)[-1], (), False
        else:
            break
        parts.append(part)
    return _Spot(tuple(parts), owner, field, annotation, metadata, whole_field)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types a union allows; of any other type, itself."""
    inner, _ = _without_null(annotation, ())
    return get_args(inner) if get_origin(inner) in UNIONS else (inner,)


def _without_null(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    if get_origin(annotation) in UNIONS:
        members = [one for one in get_args(annotation) if one is not types.NoneType]
        if len(members) == 1:
            return _without_null(members[0], metadata)
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return _without_null(base, [*metadata, *more])
    return annotation, metadata


def _is_list(annotation: Any) -> bool:
    return get_origin(_without_null(annotation, ())[0]) is list


def _model_inside(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The schema below a key, if any, and whether the key holds a list of it."""
    annotation, _ = _without_null(annotation, ())
    is_list = _is_list(annotation)
    if is_list:
        annotation, _ = _without_null(get_args(annotation)[0], ())
    return (annotation if _is_model(annotation) else None), is_list


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    """Bounds of a type by name (ge, gt, le, lt, min_length), wherever pydantic keeps them."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _bounds(item.metadata)
        elif type(item) in BOUND_TYPES:
            name = BOUND_TYPES[type(item)]
            found[name] = getattr(item, name)
    return found


def _value(data: Any, parts: Parts) -> Any:
    for part in parts:
        if isinstance(part, str) or isinstance(data, list):  # one thing may stand for a list of one
            data = data[part]
    return data


def _short(value: Any, limit: int = 80) -> str:
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that are no text, or a value that holds itself
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _as_yaml(value: Any) -> str:
    as_json = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(as_json, default_flow_style=True, width=1000).removesuffix("...\n").strip()
