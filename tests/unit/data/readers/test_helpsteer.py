from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.core.records import HELPSTEER_ATTRIBUTES as ATTRIBUTES
from rlhf.core.records import Message, Rating
from rlhf.data.load import load_preferences, load_prompts, load_ratings
from rlhf.data.readers.helpsteer import split_turns

TWO_TURNS = "Hi.\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nHow are you?"
RATED = {
    "prompt": "What is 1+1?",
    "response": "2",
    "helpfulness": 4,
    "correctness": 4,
    "coherence": 4,
    "complexity": 0,
    "verbosity": 1,
}


def pair(strength: int, annotations: list[int] | None = None, **other: Any) -> dict[str, Any]:
    """A row of preference/preference.jsonl.gz."""
    statement = f"@Response {1 if strength < 0 else 2} is better."
    row = {
        "split": "train",
        "prompt": "What is 1+1?",
        "response_1": "2",
        "response_2": "3",
        "preference_strength": strength,
        "preference_statement": statement,
        "preference_elaboration": "It is right.",
        "three_most_similar_preferences": [
            {"statement": statement, "elaboration": "It is right.", "strength": strength}
        ],
        **other,
    }
    if annotations is not None:
        raw = [{"strength": annotation, "justification": "It is right."} for annotation in annotations]
        row["all_preferences_unprocessed"] = raw
    return row


def preferences_of(path: str, split: str = "train", max_spread: int = 2, **options: Any) -> Any:
    source = DataSource(path=path, format="helpsteer2-preference", split=split, **options)
    return load_preferences([source], seed=0, max_spread=max_spread)


def test_turns_are_split_at_the_markers() -> None:
    assert split_turns(TWO_TURNS) == (
        Message("user", "Hi."),
        Message("assistant", "Hello!"),
        Message("user", "How are you?"),
    )
    assert split_turns("Is <extra_id_1>User a token?") == (Message("user", "Is <extra_id_1>User a token?"),)


@pytest.fixture
def folder(write_rows: Callable[..., str], tmp_path: Path) -> str:
    """A folder in the layout of nvidia/HelpSteer2."""
    write_rows("train.jsonl.gz", [RATED, {**RATED, "response": "3", "helpfulness": 0}, RATED])
    write_rows("validation.jsonl.gz", [{**RATED, "prompt": TWO_TURNS}])
    write_rows("preference/preference.jsonl.gz", [pair(-3), pair(2, prompt=TWO_TURNS, split="val")])
    spread = {key: [4, 1, 2] for key in ATTRIBUTES}
    write_rows("disagreements/disagreements.jsonl.gz", [{**RATED, **spread}])
    return str(tmp_path)


def test_ratings_of_a_folder(folder: str) -> None:
    ratings, report = load_ratings([DataSource(path=folder, format="helpsteer2")], seed=0)
    attributes = {
        "helpfulness": 4.0,
        "correctness": 4.0,
        "coherence": 4.0,
        "complexity": 0.0,
        "verbosity": 1.0,
    }
    assert ratings[0] == Rating((Message("user", "What is 1+1?"),), "2", attributes, source=folder)
    assert [rating.response for rating in ratings] == ["2", "3"]
    assert report.as_dict()["dropped"] == {
        "duplicate": {"count": 1, "examples": [f"{folder}/train.jsonl.gz:3"]}
    }


@pytest.mark.parametrize("split", ["validation", "val"])
def test_the_validation_split_has_two_names(folder: str, split: str) -> None:
    ratings, _ = load_ratings([DataSource(path=folder, format="helpsteer2", split=split)], seed=0)
    assert [len(rating.prompt) for rating in ratings] == [3]
    preferences, _ = preferences_of(folder, split)
    assert [(item.strength, len(item.prompt)) for item in preferences] == [(2, 3)]


def test_preferences_of_a_folder_and_of_its_file(folder: str) -> None:
    preferences, report = preferences_of(folder)
    assert [(item.strength, item.chosen, item.rejected) for item in preferences] == [(-3, "2", "3")]
    assert report.read == 1
    assert [item.strength for item in preferences_of(folder + "/preference/preference.jsonl.gz")[0]] == [-3]


def test_a_split_that_is_not_there(folder: str) -> None:
    with pytest.raises(DataError, match="'test'") as caught:
        preferences_of(folder, "test")
    assert "train, val" in caught.value.allowed


def test_prompts_of_either_file(folder: str) -> None:
    sources = [DataSource(path=folder, format=name) for name in ("helpsteer2", "helpsteer2-preference")]
    prompts, report = load_prompts(sources)
    assert [prompt.messages for prompt in prompts] == [(Message("user", "What is 1+1?"),)]
    assert report.reasons == {"duplicate": 3}


def test_the_published_strength_is_taken_unless_raw_annotations_are_asked_for(
    write_rows: Callable[..., str],
) -> None:
    # The raw ones: -2, -3, -3 average to -8/3, rounded -3.
    path = write_rows("rows.jsonl", [pair(1, [-2, -3, -3, 2, -100])])
    assert [item.strength for item in preferences_of(path)[0]] == [1]
    assert [item.strength for item in preferences_of(path, annotations="raw")[0]] == [-3]


def test_the_papers_set_is_the_public_file_without_its_zeros(write_rows: Callable[..., str]) -> None:
    rows = [pair(0), pair(2, [2, 2, -100]), pair(-3, [-3, 1, 3], response_1="x"), pair(0, split="val")]
    path = write_rows("preference/preference.jsonl.gz", rows)
    preferences, report = preferences_of(path)
    assert [item.strength for item in preferences] == [2, -3]  # whatever the annotations are
    assert report.examples == {"tie (strength 0)": [f"{path}:1"]}


@pytest.mark.parametrize(
    ("row", "asked", "message"),
    [
        (
            {**pair(1), "preference_strength": None, "all_preferences_unprocessed": []},
            "published",
            "'preference_strength'",
        ),
        (pair(1), "raw", "'all_preferences_unprocessed'"),
    ],
)
def test_the_other_kind_of_annotation_is_no_stand_in(
    write_rows: Callable[..., str], row: dict[str, Any], asked: str, message: str
) -> None:
    path = write_rows("rows.jsonl", [row])
    with pytest.raises(DataError) as caught:
        preferences_of(path, annotations=asked)
    assert caught.value.found.startswith(f"{path}:1: ") and message in caught.value.found
    other = {"published": "raw", "raw": "published"}[asked]
    assert f"`annotations: {other}`" in caught.value.fix


def test_each_drop_has_its_reason_and_place(write_rows: Callable[..., str]) -> None:
    agreed = [3, 2, 3]
    rows = [
        pair(-3, [-3, 1, 3]),
        pair(0, [-1, 1, 1]),
        pair(2, [2, -100, 2]),
        pair(2, agreed, response_1="same", response_2="same\n"),
        pair(2, agreed, response_1=" "),
        pair(2, agreed, prompt="\n"),
        pair(2, agreed, prompt="Hi.\n<extra_id_1>Assistant\nHello!"),
        pair(2, [2, 2, 2]),
        pair(-3, [-2, -2, -2], response_1="3", response_2="2"),  # the same choice on the other side
        pair(-3, [-3, -3, -3]),  # the opposite choice: another opinion, kept
    ]
    path = write_rows("rows.jsonl", rows)
    preferences, report = preferences_of(path, annotations="raw")
    assert [item.strength for item in preferences] == [2, -3]
    assert report.examples == {
        "annotators disagree (spread > 2)": [f"{path}:1"],
        "tie (strength 0)": [f"{path}:2"],
        "fewer than three valid annotations": [f"{path}:3"],
        "identical responses": [f"{path}:4"],
        "empty response": [f"{path}:5"],
        "blank prompt": [f"{path}:6"],
        "prompt does not end with the user's turn": [f"{path}:7"],
        "duplicate": [f"{path}:9"],
    }
    assert (report.read, report.kept) == (10, 2)


def test_a_larger_spread_may_be_allowed(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [pair(1, [-1, 2, 3])])  # spread 4, mean 4/3
    preferences, _ = preferences_of(path, max_spread=4, annotations="raw")
    assert [item.strength for item in preferences] == [1]


def ratings_of(path: str, split: str = "disagreements", max_spread: int = 2) -> Any:
    source = DataSource(path=path, format="helpsteer2", split=split)
    return load_ratings([source], seed=0, max_spread=max_spread)


def annotators(**columns: list[int]) -> dict[str, Any]:
    """A row of disagreements/disagreements.jsonl.gz."""
    (people,) = {len(values) for values in columns.values()}
    return {**RATED, **{name: [1] * people for name in ATTRIBUTES}, **columns}


def test_the_disagreements_are_a_split_of_the_folder_and_a_file(folder: str) -> None:
    # helpfulness [4, 1, 2]: spread 3.
    for max_spread, kept in ((2, 0), (3, 1)):
        for path in (folder, f"{folder}/disagreements/disagreements.jsonl.gz"):
            if kept:
                ratings, _ = ratings_of(path, max_spread=max_spread)
                assert ratings[0].ratings == dict.fromkeys(ATTRIBUTES, 2.0)  # 7/3
            else:
                with pytest.raises(DataError, match=r"1  annotators disagree \(spread > 2\): .*gz:1"):
                    ratings_of(path)


def test_the_annotators_who_agree_on_helpfulness_rate_all_attributes(write_rows: Callable[..., str]) -> None:
    row = annotators(helpfulness=[0, 3, 4, 0, 3], correctness=[0, 4, 3, 0, 4], verbosity=[4, 0, 1, 4, 1])
    ratings, _ = ratings_of(write_rows("rows.jsonl", [row]))
    # The second, third and fifth: helpfulness 10/3, correctness 11/3, verbosity 2/3, the others 1.
    expected = {"helpfulness": 3.0, "correctness": 4.0, "coherence": 1.0, "complexity": 1.0, "verbosity": 1.0}
    assert ratings[0].ratings == expected


def test_the_rows_example_on_the_card_of_helpsteer2(write_rows: Callable[..., str]) -> None:
    """Its card shows one row in both files: these lists, and 3, 4, 4, 2, 1."""
    lists = ([3, 3, 4], [3, 4, 4], [4, 3, 4], [2, 2, 2], [2, 1, 1])
    row = annotators(**dict(zip(ATTRIBUTES, lists, strict=True)))
    ratings, _ = ratings_of(write_rows("rows.jsonl", [row]))
    assert list(ratings[0].ratings.values()) == [3, 4, 4, 2, 1]


def test_each_row_of_the_disagreements_that_is_dropped_has_its_reason(
    write_rows: Callable[..., str],
) -> None:
    rows = [
        annotators(helpfulness=[2, 2, 3]),
        annotators(helpfulness=[2, 2]),
        annotators(helpfulness=[0, 4, 1, 4]),
        {**annotators(helpfulness=[2, 2, 2]), "coherence": [1, 1, 1, 1]},
    ]
    path = write_rows("rows.jsonl", rows)
    ratings, report = ratings_of(path)
    assert len(ratings) == 1
    assert report.examples == {
        "fewer than three valid annotations": [f"{path}:2"],
        "annotators disagree (spread > 2)": [f"{path}:3"],
        "attributes with different numbers of annotators": [f"{path}:4"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"helpfulness": [5, 1, 1]}, "'helpfulness', item 1 of 3"),
        ({"verbosity": 1}, "'verbosity'"),
        ({"verbosity": [1, None, 1]}, "'verbosity', item 2 of 3"),
    ],
)
def test_malformed_disagreements(
    write_rows: Callable[..., str], change: dict[str, Any], message: str
) -> None:
    path = write_rows("rows.jsonl", [{**annotators(helpfulness=[1, 1, 1]), **change}])
    with pytest.raises(DataError) as caught:
        ratings_of(path)
    assert caught.value.found.startswith(f"{path}:1: ") and message in caught.value.found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"helpfulness": 5}, "'helpfulness'"),
        ({"helpfulness": "4"}, "'helpfulness' is '4'"),
        ({"coherence": None}, "'coherence'"),
        ({"prompt": ["What?"]}, "'prompt'"),
    ],
)
def test_a_malformed_rating_is_an_error_with_its_line(
    write_rows: Callable[..., str], change: dict[str, Any], message: str
) -> None:
    path = write_rows("rows.jsonl.gz", [RATED, {**RATED, **change}])
    with pytest.raises(DataError) as caught:
        load_ratings([DataSource(path=path, format="helpsteer2")], seed=0)
    assert caught.value.found.startswith(f"{path}:2: ") and message in caught.value.found
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair(4), "'preference_strength'"),
        (pair(1, response_2=None), "'response_2'"),
    ],
)
def test_a_malformed_preference_is_an_error_with_its_line(
    write_rows: Callable[..., str], row: dict[str, Any], message: str
) -> None:
    path = write_rows("rows.jsonl", [pair(-3), row])
    with pytest.raises(DataError) as caught:
        preferences_of(path)
    assert caught.value.found.startswith(f"{path}:2: ") and message in caught.value.found


def test_a_malformed_annotation_is_an_error_with_its_line(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [pair(1, [1, 2, 7])])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*'all_preferences_unprocessed'") as caught:
        preferences_of(path, annotations="raw")
    assert "-100" in caught.value.allowed
