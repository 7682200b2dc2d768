"""Excerpts of values in messages show the fault, wherever it is in the value."""

from __future__ import annotations

import pytest

from rlhf.core.errors import EXCERPT, excerpt, shorten

LONG = "x" * 5_000


def test_a_short_value_is_shown_whole() -> None:
    assert excerpt({"role": "bot"}) == "{'role': 'bot'}"
    assert excerpt("line\nbreak") == r"'line\nbreak'"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([LONG, {"role": "assitant"}, LONG], {"role": "assitant"}),
        ([0.5] * 900 + [float("nan")] + [0.5] * 900, float("nan")),
        ({"content": LONG, "role": "assitant", "metadata": LONG}, "assitant"),
        ([float("nan")] + [0.5] * 900, float("nan")),
        ([0.5] * 900 + [float("nan")], float("nan")),
    ],
)
def test_the_fault_is_in_the_excerpt(value: object, fault: object) -> None:
    shown = excerpt(value, fault)
    assert repr(fault) in shown
    assert len(shown) <= EXCERPT


def test_without_a_place_beginning_and_end_are_shown() -> None:
    shown = excerpt("start" + LONG + "end")
    assert shown.startswith("'startx") and shown.endswith("xend'") and " ... " in shown
    assert len(shown) <= EXCERPT


@pytest.mark.parametrize("start", [0, 1, 79, 2_500, 4_980, 4_999])
def test_shortened_text_holds_the_place(start: int) -> None:
    text = "".join(f"{number:05d}" for number in range(1_000))
    shown = shorten(text, start, width=60)
    kept = shown.removeprefix("...").removesuffix("...")
    begin = text.find(kept)
    assert begin <= start < begin + len(kept) and len(shown) <= 60
    assert shown.startswith("...") == (begin > 0)
    assert shown.endswith("...") == (begin + len(kept) < len(text))
