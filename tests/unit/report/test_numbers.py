"""Figures as people read them."""

from __future__ import annotations

import math

from rlhf.report.numbers import (
    decimals_for,
    duration,
    finite,
    fixed,
    percent,
    short,
    signed,
    tick_labels,
)


def test_signs_are_true_minus_signs_and_zero_has_none() -> None:
    assert fixed(-1234.56, 1) == "\N{MINUS SIGN}1,234.6"
    assert fixed(-0.004, 2) == "0.00"
    assert signed(0.21, 2) == "+0.21"
    assert signed(-0.21, 2) == "\N{MINUS SIGN}0.21"
    assert signed(0.001, 2) == "0.00"


def test_decimals_show_two_digits_of_the_change() -> None:
    assert [decimals_for(size) for size in (123.0, 12.8, 3.2, 0.21, 0.02, 1e-9, 0.0)] == [0, 0, 1, 2, 3, 4, 2]


def test_short() -> None:
    assert [short(value) for value in (0, 1234.5, 12.34, 0.04567, 3e-5, -2.5e7)] == [
        "0",
        "1,234",
        "12.3",
        "0.0457",
        "3e\N{MINUS SIGN}5",
        "\N{MINUS SIGN}2.5e7",
    ]


def test_tick_labels_have_all_their_digits_and_no_more() -> None:
    assert tick_labels([-0.5, 0, 0.25, 1]) == ["\N{MINUS SIGN}0.5", "0", "0.25", "1"]
    assert tick_labels([0, 5e-5, 1e-4]) == ["0", "5e\N{MINUS SIGN}5", "1e\N{MINUS SIGN}4"]


def test_percent_and_duration() -> None:
    assert percent(0.6731) == "67.3\N{NO-BREAK SPACE}%"
    assert [duration(seconds) for seconds in (38, 720, 11100)] == ["38 s", "12 min", "3 h 05 min"]


def test_finite_refuses_what_is_no_number() -> None:
    assert [finite(value) for value in (1, 2.5, math.nan, math.inf, None, "3", [1])] == [
        1.0,
        2.5,
        None,
        None,
        None,
        None,
        None,
    ]
