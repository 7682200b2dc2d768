"""Describes a schema for users: its keys, allowed values, and pydantic's validation errors in plain words."""

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
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from rlhf.config.reading.values import as_yaml
from rlhf.core.errors import EXCERPT, did_you_mean, excerpt

Parts = tuple[str | int, ...]
"""Path of a key from the top: ("stages", 0, "name")."""

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
    """One key of a schema; `default` is `PydanticUndefined` for a required key."""

    dotted: str
    field: FieldInfo
    default: Any
    model: type[BaseModel] | None


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a config: its key, the value found, the allowed values, the fix."""

    parts: Parts
    found: str
    allowed: str = ""
    fix: str = ""


def keys(schema: type[BaseModel], prefix: str = "", instance: Any = None) -> Iterator[Key]:
    """Every key of a schema, outer before inner; keys of a list's items are `list.N.key`."""
    for name, field in schema.model_fields.items():
        if instance is not None:
            default = getattr(instance, name)
        else:
            default = field.get_default(call_default_factory=True)
        model, is_list = _model_inside(field.annotation)
        yield Key(prefix + name, field, default, model)
        if model is not None:
            below = default if isinstance(default, model) else None
            yield from keys(model, f"{prefix}{name}.{'N.' if is_list else ''}", below)


def describe(schema: type[BaseModel]) -> str:
    """The text of `--explain`: every key of a schema with its allowed values, default and description."""
    lines = [
        (schema.__doc__ or schema.__name__).splitlines()[0],
        "N in a key is the index of a list item. `extends: FILE` starts from the keys of another file.",
        "",
    ]
    for key in keys(schema):
        if key.default is PydanticUndefined:
            state = "required"
        elif isinstance(key.default, BaseModel):
            state = "optional"
        else:
            state = f"default {as_yaml(key.default)}"
        if key.model is None:
            kind = plain(key.field.annotation, key.field.metadata)
        else:
            kind = "a list" if _is_list(key.field.annotation) else "a mapping"
        lines.append(f"{key.dotted}: {kind}; {state}")
        if key.field.description:
            lines.append(f"    {' '.join(key.field.description.split())}")
    return "\n".join(lines)


def plain(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The allowed values of a type in plain words: `a whole number of at least 1, or null`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain(inner[0], [*metadata, *inner[1:]])
    if origin in UNIONS:
        members = [plain(member, metadata) for member in inner if member is not types.NoneType]
        return ", or ".join([*members, "null"] if types.NoneType in inner else members)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(repr, inner))
    bounds = _bounds(metadata)
    if origin is list:
        length = f" of at least {bounds['min_length']}" if "min_length" in bounds else ""
        return f"a list{length}, each item {plain(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)} ({', '.join(map(plain, inner))})"
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
    """Pydantic's validation errors in plain words, one per key.

    Pydantic reports one error per member of a union for the same value; only the first is kept.
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
    description = " ".join((spot.field.description or "").split()) if spot.field else ""
    about = f". Meaning: {description}" if description else ""
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
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    if close:
        return f"{key}={close[0]}"
    if (item := _as_item(spot.annotation, value)) is not None:
        return f"'{key}={as_yaml(item)}'" if spot.whole_field else f"write {as_yaml(item)} for '{key}'"
    default = spot.field.get_default(call_default_factory=True) if spot.field and spot.whole_field else None
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return f"change '{key}'"
    return f"change it; the default is {key}={as_yaml(default)}"


def _as_item(annotation: Any, value: Any) -> Any:
    """A value in the list, or under the one required key, that its type asks for; None if that does not fit.

    `a.jsonl` is `[{path: a.jsonl}]` for a list of data sources.
    """
    inner, _ = _without_null(annotation, ())
    if get_origin(inner) is list and not isinstance(value, list):
        member = get_args(inner)[0]
        if _is_model(member) and isinstance(value, dict):
            return [value]
        if _is_model(member) or not isinstance(value, str):
            item = _as_item(member, value)
            return None if item is None else [item]
        return [value] if str in _members(member) else None
    if _is_model(inner) and isinstance(value, str):
        required = [name for name, field in inner.model_fields.items() if field.is_required()]
        return {required[0]: value} if len(required) == 1 else None
    return None


def _unknown_key(spot: _Spot, schema: type[BaseModel]) -> Problem:
    word, known = str(spot.parts[-1]), list(spot.owner.model_fields)
    # The same name on another level is a better guess than a similar one on this level.
    elsewhere = [key.dotted for key in keys(schema) if key.dotted.rpartition(".")[2] == word]
    hint = f" Did you mean '{elsewhere[0]}'?" if elsewhere else did_you_mean(word, known)
    found = f"unknown key '{dotted(spot.parts)}'.{hint}"
    return Problem(spot.parts, found, ", ".join(known), "rename or remove the key")


@dataclass(frozen=True, slots=True)
class _Spot:
    """A place in a config: its key, the schema with the field, and the allowed type."""

    parts: Parts
    owner: type[BaseModel]
    field: FieldInfo | None
    annotation: Any
    metadata: Sequence[Any]
    whole_field: bool


def _locate(schema: type[BaseModel], loc: tuple[str | int, ...]) -> _Spot:
    """Follow pydantic's location through the schema, up to where it names a member of a union or of a
    tuple."""
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
    """The member types of a union; for any other type, the type itself."""
    inner, _ = _without_null(annotation, ())
    return get_args(inner) if get_origin(inner) in UNIONS else (inner,)


def _without_null(annotation: Any, metadata: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    if get_origin(annotation) in UNIONS:
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if len(members) == 1:
            return _without_null(members[0], metadata)
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return _without_null(base, [*metadata, *more])
    return annotation, metadata


def _is_list(annotation: Any) -> bool:
    return get_origin(_without_null(annotation, ())[0]) is list


def _model_inside(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The schema of a key's value, if any, and whether the value is a list of it."""
    annotation, _ = _without_null(annotation, ())
    is_list = _is_list(annotation)
    if is_list:
        annotation, _ = _without_null(get_args(annotation)[0], ())
    return (annotation if _is_model(annotation) else None), is_list


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    """Bounds of a type by name (ge, gt, le, lt, min_length), including those of nested `Field`s."""
    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            bounds |= _bounds(item.metadata)
        elif type(item) in BOUND_TYPES:
            name = BOUND_TYPES[type(item)]
            bounds[name] = getattr(item, name)
    return bounds


def _value(data: Any, parts: Parts) -> Any:
    for part in parts:
        if isinstance(part, str) or isinstance(data, list):  # a list key also takes a single value
            data = data[part]
    return data


def _short(value: Any) -> str:
    """The value as JSON; a long one as an excerpt with its beginning and its end."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that are not strings, or a circular reference
        text = repr(value)
    return text if len(text) <= EXCERPT else excerpt(value)
