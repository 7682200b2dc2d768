"""Feedback that is no pair a row: labels of single responses, lists of completions, and one-hot winners."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Message, Preference
from rlhf.data import rules
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.load import load_preferences, load_prompts, load_ratings
from rlhf.data.readers import ultrafeedback, unpaired

PROMPT = (Message("user", "q"),)


def load(path: str, **options: Any) -> tuple[list[Preference], DropReport]:
    return load_preferences([DataSource(path=path, **options)], seed=0, max_spread=2)


def chosen_and_rejected(items: list[Preference]) -> list[tuple[str, str]]:
    return [(item.chosen, item.rejected) for item in items]


def kto(*rows: tuple[str, str, Any]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in rows]


LABELLED = kto(
    ("q", "g1", True), ("q", "b1", False), ("q", "g2", True), ("alone", "g", True), ("q", "b2", False)
)
PAIRS = [("g1", "b1"), ("g1", "b2"), ("g2", "b1"), ("g2", "b2")]


def test_labels_are_paired_by_prompt_and_what_has_no_counterpart_is_counted(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", LABELLED)
    items, report = load(path)
    assert chosen_and_rejected(items) == PAIRS
    assert {(item.prompt, item.strength) for item in items} == {(PROMPT, -1)}
    assert report.examples == {unpaired.NO_COUNTERPART: [f"{path}:4"]}
    assert (report.read, report.kept) == (5, 4)
    benchmark = load_benchmark(path)
    assert [(item.chosen, item.rejected) for item in benchmark.items] == PAIRS
    assert benchmark.drops.reasons == {unpaired.NO_COUNTERPART: 1}


def test_labels_under_other_names_in_conversations_and_in_csv(write_rows: Any, tmp_path: Path) -> None:
    columns = {"prompt": "ask", "response": "reply", "label": "ok"}
    rows = [
        {
            "ask": [{"role": "user", "content": "q"}],
            "reply": [{"role": "assistant", "content": text}],
            "ok": ok,
        }
        for text, ok in (("good", 1), ("bad", 0))
    ]
    items, report = load(write_rows("rows.jsonl", rows), columns=columns)
    assert chosen_and_rejected(items) == [("good", "bad")] and items[0].prompt == PROMPT
    assert not report.notes  # no column is left unread
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["ask", "reply", "ok"], ["q", "good", "True"], ["q", "bad", "False"]])
    assert chosen_and_rejected(load(str(file), columns=columns)[0]) == [("good", "bad")]


def test_a_limit_draws_pairs(write_rows: Any) -> None:
    items, _ = load(write_rows("rows.jsonl", LABELLED), limit=5)
    assert chosen_and_rejected(items) == PAIRS
    assert len(load(write_rows("rows.jsonl", LABELLED), limit=2)[0]) == 2


def test_a_response_with_both_labels_prefers_nothing(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", kto(("q", "same", True), ("q", "same", False), ("q", "worse", False)))
    items, report = load(path)
    assert chosen_and_rejected(items) == [("same", "worse")]
    assert report.reasons == {rules.IDENTICAL_RESPONSES: 1}


def test_a_label_that_is_no_truth_value_is_refused(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", kto(("q", "a", "good")))
    columns = {"prompt": "prompt", "response": "completion", "label": "label"}
    with pytest.raises(DataError, match="'label' is 'good'"):
        load(path, columns=columns)
    with pytest.raises(DataError, match="no layout"):  # not guessed, either
        load(path)
    with pytest.raises(ConfigError, match="two forms"):
        load(path, columns={**columns, "winner": "label"})


def test_a_label_is_no_rating_and_the_fix_works(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", LABELLED)
    columns = {"prompt": "prompt", "response": "completion", "helpfulness": "label"}
    with pytest.raises(DataError) as caught:
        load_ratings([DataSource(path=path, columns=columns)], seed=0)
    assert "`preferences`" in caught.value.fix and "label: COLUMN" in caught.value.fix


def completion(response: str, *ratings: Any, **scores: Any) -> dict[str, Any]:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {name: {"Rating": rating} for name, rating in zip(names, ratings, strict=False)}
    return {"response": response, **({"annotations": annotations} if ratings else {}), **scores}


@pytest.mark.parametrize(
    ("completions", "pair"),
    [
        # The means of the ratings are 4, 5 and 2; overall_score says otherwise.
        (
            [
                completion("a", "4", "4", "4", "4", overall_score=10),
                completion("b", "5", "5", "5", "5", overall_score=1),
                completion("c", "1", "2", "2", "3", overall_score=9),
            ],
            ("b", "c"),
        ),
        # One completion has a rating that is not there: it is left out, and the two others are compared.
        ([completion("a", "1", "N/A"), completion("b", "2", "2"), completion("c", "3", "2")], ("c", "b")),
        # Fewer than two have ratings, so the score that all have decides.
        (
            [completion("a", **{"fine-grained_score": 2}), completion("b", "1", **{"fine-grained_score": 3})],
            ("b", "a"),
        ),
        ([completion("a", overall_score=3.5), completion("b", overall_score="3")], ("a", "b")),
    ],
)
def test_completions_make_the_pair_of_best_and_worst(
    write_rows: Any, completions: list[dict[str, Any]], pair: tuple[str, str]
) -> None:
    path = write_rows("rows.jsonl", [{"instruction": "q", "completions": completions, "models": ["m"]}])
    items, report = load(path)
    assert chosen_and_rejected(items) == [pair] and items[0].strength == -1
    left_out = len(completions) == 3 and "N/A" in str(completions)
    assert (ultrafeedback.LEFT_OUT in report.notes) == left_out
    assert [(item.chosen, item.rejected) for item in load_benchmark(path).items] == [pair]
    assert load_prompts([DataSource(path=path)])[0][0].messages == PROMPT


def test_completions_as_an_object_of_lists(write_rows: Any) -> None:
    rows = [{"prompt": "q", "completions": {"response": ["a", "b"], "overall_score": [2, 3]}}]
    assert chosen_and_rejected(load(write_rows("rows.jsonl", rows))[0]) == [("b", "a")]


def test_completions_without_a_preference_are_counted(write_rows: Any) -> None:
    rows = [
        {"instruction": "q", "completions": [completion("a", "3"), completion("b", "3")]},
        {"instruction": "q", "completions": [completion("a", "N/A"), completion("b", "3")]},
        {"instruction": "q", "completions": []},
        {"instruction": "q", "completions": [completion("a", "3"), completion("b", "4")]},
    ]
    items, report = load(write_rows("rows.jsonl", rows))
    assert chosen_and_rejected(items) == [("b", "a")]
    assert report.reasons == {rules.TIE: 1, ultrafeedback.FEW_SCORED: 2}


def test_completions_are_rated_responses(write_rows: Any) -> None:
    completions = [completion("a", "5", "1"), completion("b", "N/A", "2"), completion("", "3")]
    path = write_rows("rows.jsonl", [{"instruction": "q", "completions": completions}])
    ratings, _ = load_ratings([DataSource(path=path)], seed=0)
    # 1..5 becomes 0..4.
    assert [(item.response, item.ratings) for item in ratings] == [
        ("a", {"helpfulness": 4.0, "honesty": 0.0}),
        ("b", {"honesty": 1.0}),
    ]
    wrong = write_rows("wrong.jsonl", [{"instruction": "q", "completions": [completion("a", "10")]}])
    with pytest.raises(DataError, match="1 to 5"):
        load_ratings([DataSource(path=wrong)], seed=0)


def test_lists_of_another_shape_say_that_a_map_cannot_reach_into_them(write_rows: Any) -> None:
    for candidates in (["a", "b"], [{"text": "a"}, {"text": "b"}]):
        path = write_rows("rows.jsonl", [{"instruction": "q", "generations": candidates, "scores": [1, 2]}])
        with pytest.raises(DataError) as caught:
            load(path)
        assert "'generations'" in caught.value.fix and "a row of its own" in caught.value.fix


def lmsys(first: Any, second: Any, winner: str, prompt: Any = '["q"]') -> dict[str, Any]:
    one_hot = {f"winner_{name}": int(name == winner) for name in ("model_a", "model_b", "tie")}
    return {"id": 1, "model_a": "m", "prompt": prompt, "response_a": first, "response_b": second, **one_hot}


def test_one_hot_winners_are_winners(write_rows: Any) -> None:
    rows = [
        lmsys("A", "B", "model_a", "text"),
        lmsys('["A"]', '["B"]', "model_b"),
        lmsys(["A"], ["B"], "tie", ["list"]),
        lmsys('["x", "A"]', '["x", "B"]', "model_b", '["q", "r"]'),
        lmsys('["x", "A"]', '["y", "B"]', "model_b", '["q", "r"]'),
        lmsys("[1] A", "[2] B", "model_a", "[3] text"),
        lmsys('["A", null]', '["A", "B"]', "model_a", '["q", "s"]'),
    ]
    path = write_rows("rows.jsonl", rows)
    items, report = load(path)
    assert chosen_and_rejected(items) == [("A", "B"), ("B", "A"), ("B", "A"), ("[1] A", "[2] B")]
    assert [message.content for message in items[2].prompt] == ["q", "x", "r"]
    assert report.examples == {
        rules.TIE: [f"{path}:3"],
        rules.DIFFERENT_TURNS: [f"{path}:5"],
        rules.EMPTY_RESPONSE: [f"{path}:7"],
    }
    assert len(load_benchmark(path).items) == 4
    prompts, _ = load_prompts([DataSource(path=path)])
    assert [item.messages[0].content for item in prompts] == ["text", "q", "list", "[3] text"]


def test_lists_of_turns_that_do_not_fit_the_prompt_are_refused(write_rows: Any) -> None:
    with pytest.raises(DataError, match="2 answers"):
        load(write_rows("rows.jsonl", [lmsys('["A"]', '["B", "C"]', "model_a", '["q", "r"]')]))


COLUMNS = {"prompt": "q", "response_1": "left", "response_2": "right"}


def test_two_columns_of_numbers_name_the_higher_one(write_rows: Any, tmp_path: Path) -> None:
    values: list[tuple[Any, Any]] = [(1, 0), (0, 1), (0, 0), (-0.5, 0.5), (True, False)]
    rows = [{"q": f"q{n}", "left": "x", "right": "y", "f": a, "s": b} for n, (a, b) in enumerate(values)]
    columns = {**COLUMNS, "winner": "f + s"}
    items, report = load(write_rows("rows.jsonl", rows), columns=columns)
    assert [item.strength for item in items] == [-1, 1, 1, -1]
    assert report.reasons == {rules.TIE: 1} and not report.notes
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["q", "left", "right", "f", "s"], ["q", "x", "y", "0", "1"]])
    assert load(str(file), columns=columns)[0][0].strength == 1


def test_half_of_a_one_hot_winner_is_no_index_and_the_fix_works(write_rows: Any) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    rows = [
        {"q": f"q{n}", "left": "x", "right": "y", **dict(zip(names, hot, strict=True))}
        for n, hot in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    ]
    path = write_rows("rows.jsonl", rows)
    for column in names[:2]:  # read as an index, every pair of one of them would be inverted
        with pytest.raises(DataError) as caught:
            load(path, columns={**COLUMNS, "winner": column})
        assert "winner_model_a" in caught.value.fix and "winner_model_b" in caught.value.fix
    items, _ = load(path, columns={**COLUMNS, "winner": " + ".join(names)})
    assert [item.strength for item in items] == [-1, 1]
    wrong = write_rows("wrong.jsonl", [{**rows[0], "winner_tie": 1}])
    with pytest.raises(DataError, match="winner_tie"):
        load(wrong, columns={**COLUMNS, "winner": " + ".join(names)})
    # Two annotators' indices, which agree somewhere, are indices.
    annotators = [{**rows[n], "index_1": n % 2, "index_2": n // 2} for n in range(2)]
    annotators.append({**rows[2], "index_1": 1, "index_2": 1})
    assert load(write_rows("two.jsonl", annotators), columns={**COLUMNS, "winner": "index_1"})[0]


def test_conversations_that_end_with_the_user_are_dropped_by_that_reason(write_rows: Any) -> None:
    rows = [
        {"chosen": conversation("q", "A", "thanks"), "rejected": conversation("q", "B", "thanks")},
        {"chosen": conversation("q", "A"), "rejected": conversation("q", "B")},
    ]
    path = write_rows("rows.jsonl", rows)
    items, report = load(path)
    assert chosen_and_rejected(items) == [("A", "B")]
    assert report.examples == {rules.NO_ANSWER: [f"{path}:1"]}


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.mark.parametrize("with_prompt", [False, True])
def test_responses_to_different_turns_are_dropped_and_the_others_kept(
    write_rows: Any, with_prompt: bool
) -> None:
    rows: list[dict[str, Any]] = [
        {"chosen": conversation("q", "x", "r", "A"), "rejected": conversation("q", "y", "r", "B")},
        {"chosen": conversation("q", "x", "r", "A"), "rejected": conversation("q", " x", "r", "B")},
    ]
    if with_prompt:
        rows = [{"prompt": conversation("q", "x", "r"), **row} for row in rows]
    path = write_rows("rows.jsonl", rows)
    items, report = load(path)
    assert chosen_and_rejected(items) == [("A", "B")]
    assert report.examples == {rules.DIFFERENT_TURNS: [f"{path}:1"]}
    arena = [
        {"conversation_a": row["chosen"], "conversation_b": row["rejected"], "winner": "model_a"}
        for row in rows
    ]
    items, report = load(write_rows("arena.jsonl", arena))
    assert len(items) == 1 and report.reasons == {rules.DIFFERENT_TURNS: 1}
    encoded = [{side: json.dumps(row[side]) for side in ("chosen", "rejected")} for row in rows]
    items, report = load(write_rows("encoded.jsonl", encoded))
    assert len(items) == 1 and report.reasons == {rules.DIFFERENT_TURNS: 1}
    assert len(load_benchmark(path).items) == 1
