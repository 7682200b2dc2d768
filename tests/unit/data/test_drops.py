from __future__ import annotations

from rlhf.data.drops import DropReport


def report(read: int, *drops: tuple[str, str]) -> DropReport:
    result = DropReport(read=read)
    for reason, place in drops:
        result.drop(reason, place)
    return result


def test_every_row_read_is_kept_or_dropped_for_a_reason() -> None:
    result = report(1200, ("tie", "a:3"), ("blank", "a:4"), ("tie", "a:5"))
    assert (result.read, result.kept) == (1200, 1197)
    assert result.lines() == [
        "1,200 rows read, 1,197 kept, 3 dropped",
        "        2  tie: a:3, a:5",
        "        1  blank: a:4",
    ]


def test_three_places_are_shown_and_all_are_counted() -> None:
    result = report(9, *(("tie", f"a:{line}") for line in range(1, 6)))
    assert result.lines()[1] == "        5  tie: a:1, a:2, a:3, ..."
    assert result.as_dict() == {
        "read": 9,
        "kept": 4,
        "dropped": {"tie": {"count": 5, "examples": ["a:1", "a:2", "a:3"]}},
    }


def test_a_place_is_shown_once() -> None:
    # A pair takes the ratings of its two responses with it: three rows, one place.
    result = report(9, ("long", "a:1"), ("long", "a:1"), ("long", "a:1"), ("long", "a:2"))
    assert (result.reasons, result.examples) == ({"long": 4}, {"long": ["a:1", "a:2"]})
    assert result.merge(report(1, ("long", "a:2"))).examples == {"long": ["a:1", "a:2"]}


def test_merging_adds_up() -> None:
    first = report(10, ("tie", "a:1"), ("tie", "a:2"))
    second = report(5, ("tie", "b:1"), ("tie", "b:2"), ("blank", "b:3"))
    assert first.merge(second) is first
    assert (first.read, first.kept) == (15, 10)
    assert first.reasons == {"tie": 4, "blank": 1}
    assert first.examples == {"tie": ["a:1", "a:2", "b:1"], "blank": ["b:3"]}
    assert second.examples["tie"] == ["b:1", "b:2"]
