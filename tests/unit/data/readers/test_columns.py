from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Message, Preference, Prompt
from rlhf.data.comparisons import load_comparisons
from rlhf.data.drops import DropReport
from rlhf.data.load import join_ratings, load_preferences, load_prompts, load_ratings
from rlhf.data.pairs import pair_rated

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1+1?"}]
PROMPT = (Message("system", "Be brief."), Message("user", "What is 1+1?"))
TEA = {"key": "tea", "related": ["leaf"], "request": "About tea.", "limit": 5}
CHECK = {"family": "words", **TEA}


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def ratings_of(write_rows: Callable[..., str]) -> Callable[..., Any]:
    def load(*rows: dict[str, Any], **options: Any) -> Any:
        path = write_rows("rows.jsonl", [{"prompt": "q", "response": "a", **row} for row in rows])
        ratings, report = load_ratings([DataSource(path=path, **options)], seed=0)
        return [dict(rating.ratings) for rating in ratings], report

    return load


@pytest.fixture
def preferences_of(write_rows: Callable[..., str]) -> Callable[..., Any]:
    def load(*rows: dict[str, Any], **options: Any) -> Any:
        source = DataSource(path=write_rows("rows.jsonl", rows), **options)
        return load_preferences([source], seed=0, max_spread=2)

    return load


def test_a_dictionary_of_ratings_is_read_whole(ratings_of: Callable[..., Any]) -> None:
    ratings, _ = ratings_of({"ratings": {"helpfulness": 3, "depth": None, "wit": 1.5}})
    assert ratings == [{"helpfulness": 3.0, "wit": 1.5}]


def test_named_attributes_alone_are_read_from_columns_and_keys(ratings_of: Callable[..., Any]) -> None:
    columns = {"helpfulness": "useful", "correctness": "ratings.factuality"}
    row = {"useful": 2, "coherence": 4, "ratings": {"factuality": 1, "depth": 3}}
    assert ratings_of(row, columns=columns)[0] == [{"helpfulness": 2.0, "correctness": 1.0}]


def test_without_a_dictionary_the_five_attributes_are_columns(ratings_of: Callable[..., Any]) -> None:
    assert ratings_of({"helpfulness": 2, "verbosity": 0, "wit": 9})[0] == [
        {"helpfulness": 2.0, "verbosity": 0.0}
    ]


def test_a_scale_is_mapped_to_0_to_4(ratings_of: Callable[..., Any]) -> None:
    rows = [{"response": str(value), "ratings": {"helpfulness": value}} for value in (1, 3.25, 10)]
    # (1-1)/9*4, (3.25-1)/9*4, (10-1)/9*4
    assert ratings_of(*rows, scale=(1, 10))[0] == [
        {"helpfulness": 0.0},
        {"helpfulness": 1.0},
        {"helpfulness": 4.0},
    ]


def test_each_row_may_name_its_scale(ratings_of: Callable[..., Any]) -> None:
    rows = [
        {"response": "1", "ratings": {"helpfulness": 5}, "range": [1, 5]},
        {"response": "2", "ratings": {"helpfulness": 5}, "range": [0, 10]},
        {"response": "3", "ratings": {"helpfulness": 5}, "range": "helpfulness 1-5"},
        {"response": "4", "ratings": {"helpfulness": 5}, "range": [5, 1]},
        {"response": "5", "ratings": {"helpfulness": 5}},
        {"response": "6", "ratings": {"helpfulness": None}, "range": [1, 5]},
    ]
    ratings, report = ratings_of(*rows, scale="row", columns={"scale": "range"})
    assert ratings == [{"helpfulness": 4.0}, {"helpfulness": 2.0}]
    assert report.reasons == {"scale unknown": 3, "no rating": 1}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"ratings": {"wit": 5}}, {}, r":1: .*'ratings\.wit' .*5\n.*0 .*4\n.*`scale:"),
        ({"ratings": [5]}, {}, r":1: .*'ratings' .*\[5\]"),
        ({}, {}, ":1: .*'ratings'"),
        ({"response": 5, "ratings": {"wit": 1}}, {}, r":1: .*'response' .*5"),
        (
            {"ratings": {"wit": 1}},
            {"columns": {"depth": "ratings.deep"}},
            r"columns\.depth: .*'ratings\.deep'",
        ),
    ],
)
def test_malformed_ratings(
    ratings_of: Callable[..., Any], row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ratings_of(row, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"promt": "q"}}, r"columns\.promt: .*'prompt'"),
        ({"columns": {"chosen": "a"}}, r"columns\.chosen: .*'chosen'"),
        ({"scale": (5, 1)}, r"scale: \[5\.0, 1\.0\]"),
        ({"format": "helpsteer2-preference"}, "ratings\n.*helpsteer2"),
        ({"format": "helpsteer2", "columns": {"prompt": "q"}}, "remove `columns`"),
        ({"path": "demo"}, "`format: helpsteer2`"),
    ],
)
def test_a_source_that_cannot_hold_ratings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_ratings([DataSource(**{"path": "absent.jsonl", **options})], seed=0)


def test_two_responses_and_a_strength(preferences_of: Callable[..., Any]) -> None:
    row = {"prompt": ASKED, "a": "3", "b": answer("2"), "preference_strength": 2.0, "source": "quiz"}
    preferences, _ = preferences_of(row, columns={"response_1": "a", "response_2": "b"})
    assert preferences == [Preference(PROMPT, "3", "2", 2, source="quiz")]


def test_chosen_and_rejected(preferences_of: Callable[..., Any]) -> None:
    preferences, _ = preferences_of({"prompt": "q", "chosen": "2", "rejected": "3"})
    assert [(item.response_1, item.response_2, item.strength) for item in preferences] == [("2", "3", -1)]


def test_chosen_and_rejected_with_a_margin(preferences_of: Callable[..., Any]) -> None:
    rows = [{"prompt": "q", "chosen": "2", "rejected": str(margin), "margin": margin} for margin in (3, 0)]
    preferences, report = preferences_of(*rows, columns={"strength": "margin"})
    assert [item.strength for item in preferences] == [-3]
    assert report.reasons == {"tie (strength 0)": 1}


def test_conversations_stand_for_the_prompt(preferences_of: Callable[..., Any]) -> None:
    row = {"chosen": ASKED + answer("2"), "rejected": ASKED + answer("3")}
    expected = [(PROMPT, "2", "3")]
    for rows in (row, {**row, "prompt": ASKED}):
        preferences, _ = preferences_of(rows)
        assert [(item.prompt, item.chosen, item.rejected) for item in preferences] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "2", "rejected": "3"}, ":1: .*'prompt'"),
        ({"chosen": answer("2"), "rejected": answer("3")}, ":1: .*'prompt'"),
        ({"prompt": "q", "chosen": "2"}, ":1: .*'rejected'"),
        ({"prompt": "q", "chosen": ASKED, "rejected": "3"}, "assistant"),
        (
            {"prompt": "q", "chosen": ASKED + answer("2"), "rejected": ASKED + answer("3")},
            "'chosen'",
        ),
        (
            {"prompt": [{"role": "robot", "content": "q"}], "chosen": "2", "rejected": "3"},
            "roles system, developer, user, assistant, tool",
        ),
        (
            {"prompt": [{"role": "user", "content": None}], "chosen": "2", "rejected": "3"},
            "'prompt'",
        ),
        ({"prompt": "q", "response_1": "2", "response_2": "3"}, ":1: .*'preference_strength'"),
        (
            {"prompt": "q", "response_1": "2", "response_2": "3", "preference_strength": 1.5},
            "-3 .*3",
        ),
    ],
)
def test_malformed_preferences(preferences_of: Callable[..., Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        preferences_of(row)


def test_prompts_keep_source_and_check(write_rows: Callable[..., str]) -> None:
    path = write_rows(
        "rows.jsonl", [{"prompt": ASKED, "family": "sums", "check": {"is": 2}}, {"prompt": "q"}]
    )
    prompts, _ = load_prompts([DataSource(path=path, columns={"source": "family"})])
    assert prompts == [
        Prompt(PROMPT, source="sums", columns={"check": {"is": 2}}),
        Prompt((Message("user", "q"),), source=path),
    ]


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ({"family": "words", "limit": 5}, "key"),
        ({"family": "words", **TEA, "limit": 0}, "limit"),
        ({"family": "words", **TEA, "limit": True}, "limit"),
        ({"family": "list", **TEA, "count": 0}, "count"),
        ({"family": "include", **TEA, "wanted": []}, "wanted"),
        ({"family": "opening", **TEA, "start": "..."}, "start"),
        ({"family": "sentence", **TEA, "related": "leaf"}, "related"),
    ],
)
def test_a_check_that_cannot_be_computed_is_a_column_and_noted(
    write_rows: Callable[..., str], check: dict[str, Any], fault: str
) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "check": check}, {"prompt": "r", "check": CHECK}])
    (first, second), drops = load_prompts([DataSource(path=path)])
    assert (first.check, first.columns) == (None, {"check": check})
    assert second.check == CHECK
    assert any(f"not a gold check: {fault!r} is missing or unusable" in line for line in drops.lines())


@pytest.mark.parametrize("check", ["two", 2, {"answer": "2"}])
def test_a_check_without_a_family_is_a_column_of_the_users(
    write_rows: Callable[..., str], check: Any
) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "check": check, "answer": "2"}])
    (prompt,), _ = load_prompts([DataSource(path=path)])
    assert prompt.check is None
    assert prompt.columns == {"check": check, "answer": "2"}


def test_a_check_of_a_known_family_is_the_gold_scores(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "check": CHECK}])
    (prompt,), _ = load_prompts([DataSource(path=path)])
    assert prompt.check == CHECK


def call(argument: int, **fields: Any) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": {"x": argument}}
    return [{"role": "assistant", "content": "", "tool_calls": [{"function": function}], **fields}]


def test_tool_calls_and_reasoning_of_responses_are_kept(preferences_of: Callable[..., Any]) -> None:
    right, wrong = call(1), call(2, reasoning_content="two?")
    row = {"prompt": ASKED, "chosen": right, "rejected": wrong}
    (pair,), report = preferences_of(row)
    assert report.reasons == {}
    assert pair.chosen_message.extra()["tool_calls"] == right[0]["tool_calls"]
    assert pair.rejected_message.extra()["reasoning_content"] == "two?"


def test_responses_that_differ_in_their_calls_alone_are_different(
    preferences_of: Callable[..., Any], write_rows: Callable[..., str]
) -> None:
    right, wrong = call(1), call(2)
    rows = [{"prompt": ASKED, "chosen": right, "rejected": other} for other in (wrong, right)]
    rows.append({"prompt": ASKED, "chosen": wrong, "rejected": right})
    pairs, report = preferences_of(*rows)
    assert report.reasons == {"identical responses": 1}  # and the third is no duplicate of the first
    assert len(pairs) == 2

    rated = [{"prompt": ASKED, "response": call(x), "ratings": {"helpfulness": x}} for x in (1, 2)]
    ratings, _ = load_ratings([DataSource(path=write_rows("ratings.jsonl", rated))], seed=0)
    joined, left = join_ratings(pairs[:1], ratings)
    assert (joined[0].ratings_1, joined[0].ratings_2, left) == ({"helpfulness": 1}, {"helpfulness": 2}, [])
    (made,), _ = pair_rated(ratings, "helpfulness")
    assert made.chosen_message == pairs[0].rejected_message

    benchmark = write_rows("benchmark.jsonl", rows[:1])
    ((item,), _) = load_comparisons(benchmark)
    assert item.chosen_fields == pairs[0].fields_1
    assert item.rejected_fields == pairs[0].fields_2


def unread(report: DropReport) -> list[str]:
    return [note for note in report.notes if "not read" in note]


def test_columns_that_are_not_read_are_noted(
    preferences_of: Callable[..., Any], ratings_of: Callable[..., Any]
) -> None:
    row = {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "id": 7,
        "winner": None,
        "response_1": "c",
        "images": [],
    }
    _, report = preferences_of(row, {**row, "prompt": "r", "score": 1})
    assert unread(report) == ["columns that are not read: id, response_1, score"]
    _, report = ratings_of(
        {"useful": 2, "ratings": {"depth": 3}, "id": 1}, columns={"depth": "ratings.depth"}
    )
    assert unread(report) == ["columns that are not read: useful, id"]
    _, report = ratings_of({"helpfulness": 2, "id": 1}, where={"id": [1]})
    assert unread(report) == []
