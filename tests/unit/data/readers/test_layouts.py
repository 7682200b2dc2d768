"""A row of each public layout, and the table in docs/data.md, which this file writes when run as a script."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Message
from rlhf.data import rules
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.load import load_preferences, load_prompts, load_ratings
from rlhf.data.readers.layouts import LAYOUTS, table

DOCS = Path(__file__).parents[4] / "docs" / "data.md"
USER = {"role": "user", "content": "q"}
PROMPT = (Message("user", "q"),)


def turns(answer: str) -> list[dict[str, str]]:
    return [USER, {"role": "assistant", "content": answer}]


def transcript(answer: str) -> str:
    return f"\n\nHuman: q\n\nAssistant: {answer}"


PAIR = {"chosen": "good", "rejected": "bad"}
PREFERENCES: dict[str, Any] = {
    "chosen and rejected": {"chosen": turns("good"), "rejected": turns("bad"), "source": "skywork"},
    "two responses and a strength": {
        "prompt": "q",
        "response_1": "good",
        "response_2": "bad",
        "preference_strength": -1,
    },
    "UltraFeedback-binarized": {
        "prompt": "q",
        "chosen": turns("good"),
        "rejected": turns("bad"),
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    },
    "hh-rlhf": {"chosen": transcript("good"), "rejected": transcript("bad")},
    "chosen and rejected as JSON": {"chosen": json.dumps(turns("good")), "rejected": str(turns("bad"))},
    "SHP": {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1},
    "PKU-SafeRLHF": {"prompt": "q", "response_0": "good", "response_1": "bad", "better_response_id": 0},
    "LMArena": {"conversation_a": turns("good"), "conversation_b": turns("bad"), "winner": "model_a"},
    "answers a and b with a winner": {
        "prompt": "q",
        "response_a": "bad",
        "response_b": "good",
        "winner": "B",
    },
    "PPE human preference": {"prompt": "q", "response_1": "good", "response_2": "bad", "winner": "model_a"},
    "LMSYS-55k": {
        "prompt": '["q"]',
        "response_a": '["bad"]',
        "response_b": '["good"]',
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    },
    "KTO": [
        {"prompt": "q", "completion": "bad", "label": False},
        {"prompt": "q", "completion": "good", "label": True},
    ],
    "UltraFeedback": {
        "instruction": "q",
        "completions": [{"response": "bad", "overall_score": 4}, {"response": "good", "overall_score": 7.5}],
    },
    "Nectar": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "bad", "rank": 2}, {"answer": "good", "rank": 1}],
    },
    "HelpSteer3": {"context": [USER], "response1": "bad", "response2": "good", "overall_preference": 1},
    "ShareGPT pairs": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "Alpaca pairs": {"instruction": "q", "input": "", **PAIR},
    "question and pairs": {"question": "q", **PAIR},
}
PROMPTS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "q"},
    "messages": {"messages": turns("a")},
    "ShareGPT": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "Alpaca": {"instruction": "q", "output": "a"},
    "question": {"question": "q", "answer": "a"},
    "SHP": {"history": "q", "human_ref_A": "a"},
    "LMArena": {"conversation_a": turns("a"), "winner": "model_a"},
    "LMSYS-55k": PREFERENCES["LMSYS-55k"],
    "HelpSteer3": {"context": [USER], "response1": "a"},
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_layout_of_preferences(write_rows: Any, name: str) -> None:
    rows = PREFERENCES[name]
    path = write_rows("rows.jsonl", rows if isinstance(rows, list) else [rows])
    (item,), report = load_preferences([DataSource(path=path)], seed=0, max_spread=2)
    assert (item.prompt, item.chosen, item.rejected, abs(item.strength)) == (PROMPT, "good", "bad", 1)
    (note,) = (note for note in report.notes if "pin it" in note)
    # The source in this note reads the same rows, and no layout is guessed.
    line = note.partition("pin it: - ")[2]
    pinned = DataSource.model_validate(yaml.safe_load(line))
    again, quiet = load_preferences([pinned], seed=0, max_spread=2)
    assert again == [item] and not any("pin it" in note for note in quiet.notes)
    assert name in note


def test_the_line_that_pins_a_layout_is_yaml_with_the_other_keys_of_the_source(write_rows: Any) -> None:
    path = write_rows("a: b.jsonl", [{**PREFERENCES["SHP"], "id": "null"}])
    source = DataSource(path=path, where={"id": ["null"]}, split="train: all")
    written = DataSource.model_validate(source.model_dump())  # as in config.yaml: every key is set
    for given in (source, written):
        _, report = load_preferences([given], seed=0, max_spread=2)
        (note,) = (note for note in report.notes if "pin it" in note)
        (line,) = yaml.safe_load(note.partition("pin it: ")[2])
        columns = line.pop("columns")
        assert DataSource.model_validate(line) == source
        assert columns["prompt"] == "history"


@pytest.mark.parametrize("name", PROMPTS)
def test_a_layout_of_prompts(write_rows: Any, name: str) -> None:
    path = write_rows("rows.jsonl", [PROMPTS[name]])
    (item,), _ = load_prompts([DataSource(path=path)])
    assert item.messages == PROMPT


def test_there_is_a_row_of_every_layout_and_the_docs_show_them() -> None:
    names = {
        kind: [layout.name for layout in LAYOUTS if layout.kind == kind]
        for kind in ("preferences", "prompts")
    }
    assert names == {"preferences": [*PREFERENCES], "prompts": [*PROMPTS]}
    shown = re.search(r"<!-- layouts -->\n(.*?)<!-- /layouts -->", DOCS.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == table(), "python tests/unit/data/readers/test_layouts.py"


def test_columns_of_two_layouts_ask_with_both_lines(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", [{**PREFERENCES["SHP"], "prompt": "q", **PAIR}])
    with pytest.raises(
        ConfigError, match="(?s)winner: labels.*chosen: chosen|chosen: chosen.*winner: labels"
    ):
        load_preferences([DataSource(path=path)], seed=0, max_spread=2)


def test_a_benchmark_with_columns_of_two_layouts_is_no_guess_either(write_rows: Any) -> None:
    path = write_rows("rows.jsonl", [{**PREFERENCES["SHP"], "prompt": "q", **PAIR}])
    with pytest.raises(DataError) as caught:
        load_benchmark(path)
    assert "SHP" in caught.value.found and "chosen and rejected" in caught.value.found
    assert "config" not in caught.value.allowed + caught.value.fix


def test_the_words_of_feedback_are_ratings(write_rows: Any) -> None:
    texts = [f"The response is {word} helpful. More." for word in ("mostly", "perfectly", "mostly")]
    row = {
        "context": [USER],
        "response1": "a",
        "response2": "b",
        "feedback1": texts,
        "feedback2": ["Fine.", *texts[:2]],
        "domain": "code",
        "language": "python",
    }
    (rating,), report = load_ratings([DataSource(path=write_rows("rows.jsonl", [row]))], seed=0)
    assert (rating.response, rating.ratings) == ("a", {"helpfulness": 3.0})  # the mean of 3, 4 and 3, rounded
    assert rating.groups == {"domain": "code", "language": "python"}
    assert sum("left out" in note for note in report.notes) == 1


def test_a_null_preference_of_helpsteer3_is_counted(write_rows: Any) -> None:
    row = PREFERENCES["HelpSteer3"]
    path = write_rows("rows.jsonl", [row, {**row, "overall_preference": None}])
    items, report = load_preferences([DataSource(path=path, format="helpsteer3")], seed=0, max_spread=2)
    assert len(items) == 1 and report.reasons == {rules.NO_PREFERENCE: 1}
    first = write_rows("first.jsonl", [{**row, "overall_preference": None}, row])
    _, report = load_preferences([DataSource(path=first)], seed=0, max_spread=2)  # recognised by its columns
    benchmark = load_benchmark(first)
    assert report.reasons == benchmark.drops.reasons == {rules.NO_PREFERENCE: 1}
    raw = {**row, "individual_preference": [{"score": score, "reasoning": ""} for score in (-1, -2, -3)]}
    source = DataSource(path=write_rows("raw.jsonl", [raw]), format="helpsteer3", annotations="raw")
    assert load_preferences([source], seed=0, max_spread=2)[0][0].strength == -2


def test_a_nectar_row_makes_every_pair_of_different_rank(write_rows: Any) -> None:
    answers = [{"answer": str(rank), "rank": rank} for rank in (3, 1, 2)] + [{"answer": "x", "rank": 3}]
    path = write_rows("rows.jsonl", [{"prompt": "q", "answers": answers}])
    items, report = load_preferences([DataSource(path=path)], seed=0, max_spread=2)
    assert [(item.chosen, item.rejected) for item in items] == [
        ("1", "2"), ("1", "3"), ("1", "x"), ("2", "3"), ("2", "x"),
    ]  # fmt: skip
    assert (report.read, report.kept) == (5, 5)


MAP = {"prompt": "q", "response_1": "left", "response_2": "right"}


@pytest.mark.parametrize(
    ("values", "signs"),
    [
        ([0, 1], [-1, 1]),
        ([1, 2], [-1, 1]),
        (["left", "right"], [-1, 1]),
        (["A", "b"], [-1, 1]),
        (["model_a", "tie", "model_b"], [-1, 1]),
        (["response_2", "both_bad", "response_1"], [1, -1]),
    ],
)
def test_winners(write_rows: Any, values: list[Any], signs: list[int]) -> None:
    rows = [{"q": f"q{n}", "left": "x", "right": "y", "w": value} for n, value in enumerate(values)]
    source = DataSource(path=write_rows("rows.jsonl", rows), columns={**MAP, "winner": "w"})
    items, _ = load_preferences([source], seed=0, max_spread=2)
    assert [item.strength for item in items] == signs


@pytest.mark.parametrize("values", [[1, 1], [0, 1, 2], ["c"], [3]])
def test_winners_that_name_no_side(write_rows: Any, values: list[Any]) -> None:
    rows = [{"q": f"q{n}", "left": "x", "right": "y", "w": value} for n, value in enumerate(values)]
    source = DataSource(path=write_rows("rows.jsonl", rows), columns={**MAP, "winner": "w"})
    with pytest.raises(DataError, match="'w'"):
        load_preferences([source], seed=0, max_spread=2)


def test_an_index_is_no_strength_and_the_fix_works(write_rows: Any) -> None:
    rows = [{"q": f"q{n}", "left": "x", "right": "y", "w": n} for n in (0, 1)]
    path = write_rows("rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_preferences(
            [DataSource(path=path, columns={**MAP, "preference_strength": "w"})], seed=0, max_spread=2
        )
    assert "winner: w" in caught.value.fix
    fixed = DataSource(path=path, columns={**MAP, "winner": "w"})
    assert [item.strength for item in load_preferences([fixed], seed=0, max_spread=2)[0]] == [-1, 1]


def test_margins_are_rounded_to_a_strength(write_rows: Any) -> None:
    rows = [{"prompt": f"{margin}", **PAIR, "margin": margin} for margin in (0.4, 1.5, 2.4, 0.0)]
    columns = {"chosen": "chosen", "rejected": "rejected", "strength": "margin"}
    source = DataSource(path=write_rows("rows.jsonl", rows), columns=columns)
    items, report = load_preferences([source], seed=0, max_spread=2)
    assert [item.strength for item in items] == [-1, -2, -2] and report.reasons == {rules.TIE: 1}


def test_contradictions_and_encoded_prompts_are_noted(write_rows: Any) -> None:
    rows = [
        {"prompt": json.dumps([USER]), **PAIR},
        {"prompt": json.dumps([USER]), "chosen": "bad", "rejected": "good"},
    ]
    source = DataSource(path=write_rows("rows.jsonl", rows), columns={"prompt": "prompt"})
    _, report = load_preferences([source], seed=0, max_spread=2)
    assert any("A over B" in note and count == 2 for note, count in report.notes.items())
    assert any("encoding: json" in note for note in report.notes)
    fixed = source.model_copy(update={"encoding": "json"})
    items, report = load_preferences([fixed], seed=0, max_spread=2)
    assert items[0].prompt == PROMPT
    assert not any("encoding" in note for note in report.notes)


if __name__ == "__main__":
    text = DOCS.read_text("utf-8")
    block = "<!-- layouts -->\n" + "\n".join(table()) + "\n<!-- /layouts -->"
    DOCS.write_text(
        re.sub(r"<!-- layouts -->.*?<!-- /layouts -->", lambda _: block, text, flags=re.DOTALL), "utf-8"
    )
