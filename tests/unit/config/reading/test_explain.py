from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reading.explain import describe, keys, plain
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import Strict
from rlhf.core.errors import ConfigError

CONFIGS = Path(__file__).parents[4] / "configs"


class Inner(Strict):
    """Inner."""

    size: Annotated[int, Field(ge=1)] = 2
    """How large."""


class Outer(Strict):
    """The page's first line."""

    items: list[Inner]
    """Some items."""
    inner: Inner = Inner(size=7)
    """Set here, not in its class."""
    name: str | None = None
    """A name."""


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("data.preferences=a.jsonl", "'data.preferences=[{path: a.jsonl}]'"),
        ("data.preferences={path: a.jsonl, limit: 3}", "'data.preferences=[{path: a.jsonl, limit: 3}]'"),
        ("data.preferences=[a.jsonl]", "write {path: a.jsonl} for 'data.preferences.0'"),
        ("attributes=wit", "'attributes=[wit]'"),
        ("data.preferences=3", "change it; the default is data.preferences=[]"),
        ("model=embedded", "change 'model'"),
    ],
)
def test_the_fix_of_a_value_that_is_no_list(typed: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "reward" / "local-pairs.yaml", RewardConfig, [typed])
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (Annotated[int, Field(ge=1)] | None, "a whole number of at least 1, or null"),
        (Annotated[float, Field(gt=0, lt=1)], "a number above 0 and below 1"),
        (Annotated[float, Field(ge=0, le=1)], "a number from 0 to 1"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (Literal["a"], "'a'"),
        (Annotated[list[str], Field(min_length=1)], "a list of at least 1, each item text"),
        (tuple[float, float], "a list of 2 (a number, a number)"),
        (dict[str, Path], "a mapping from text to a path"),
        (Inner, "a mapping with the keys size"),
        (bool, "true or false"),
    ],
)
def test_types_in_plain_words(annotation: Any, words: str) -> None:
    assert plain(annotation) == words


def test_the_page_shows_types_effective_defaults_and_doc_lines() -> None:
    assert describe(Outer).splitlines() == [
        "The page's first line.",
        "N in a key is the index of a list item. `extends: FILE` starts from the keys of another file.",
        "",
        "items: a list; required",
        "    Some items.",
        "items.N.size: a whole number of at least 1; default 2",
        "    How large.",
        "inner: a mapping; optional",
        "    Set here, not in its class.",
        "inner.size: a whole number of at least 1; default 7",
        "    How large.",
        "name: text, or null; default null",
        "    A name.",
    ]


@pytest.mark.parametrize("schema", [RewardConfig, PolicyConfig])
def test_every_key_of_the_two_commands_has_its_doc_line(schema: type[Strict]) -> None:
    assert [key.dotted for key in keys(schema) if not key.field.description] == []
