from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.core.records import Comparison, Message, Preference, Rating
from rlhf.data.comparisons import load_comparisons
from rlhf.data.digests import digest_of
from rlhf.data.load import (
    join_ratings,
    load_preferences,
    load_prompts,
    load_ratings,
)

PROMPT = (Message("user", "q"),)


def test_sources_are_read_in_order_and_reported_together(write_rows: Callable[..., str]) -> None:
    first = write_rows("first.jsonl", [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}])
    second = write_rows("second.jsonl.gz", [{"prompt": "b"}, {"prompt": "c"}])
    prompts, report = load_prompts([DataSource(path=first), DataSource(path=second)])
    assert [prompt.messages[0].content for prompt in prompts] == ["a", "b", "c"]
    assert (report.read, report.kept) == (5, 3)
    assert report.examples == {"blank prompt": [f"{first}:2"], "duplicate": [f"{second}:1"]}
    apart = {name: (part.read, part.kept) for name, part in report.sources.items()}
    assert apart == {f"prompts of {first}": (3, 2), f"prompts of {second}": (2, 1)}


def test_a_record_knows_its_row_which_is_no_part_of_its_content(write_rows: Callable[..., str]) -> None:
    rows = [
        {"prompt": "a", "response": "b", "ratings": {"helpfulness": n}, "source": "people"} for n in (1, 2)
    ]
    first, second = write_rows("first.jsonl", rows), write_rows("second.jsonl", rows)
    (ratings, report), (again, other) = (
        load_ratings([DataSource(path=path)], seed=0) for path in (first, second)
    )
    assert [rating.place for rating in ratings] == [f"{first}:1", f"{first}:2"]
    assert [rating.source for rating in ratings] == ["people", "people"]
    assert (ratings, report.digests) == (again, other.digests)


def test_nothing_left_shows_why(write_rows: Callable[..., str]) -> None:
    tie = {"prompt": "q", "response_1": "1", "response_2": "2", "preference_strength": 0}
    path = write_rows("rows.jsonl", [tie, {**tie, "response_1": ""}])
    with pytest.raises(DataError) as caught:
        load_preferences([DataSource(path=path)], seed=0, max_spread=2)
    message = str(caught.value)
    assert message.startswith(f"no usable preferences in {path}:\n2 rows read, 0 kept, 2 dropped\n")
    assert f"tie (strength 0): {path}:1\n" in message
    assert f"empty response: {path}:2\n" in message
    assert caught.value.exit_code == 2


def test_an_empty_file_has_nothing_left(write_rows: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        load_prompts([DataSource(path=write_rows("rows.jsonl", []))])


def test_no_source_is_no_error() -> None:
    assert load_ratings([], seed=0)[0] == []


def test_a_response_rated_twice_differently_is_no_duplicate(write_rows: Callable[..., str]) -> None:
    rows = [{"prompt": "q", "response": "a", "ratings": {"helpfulness": value}} for value in (1, 1, 3)]
    ratings, report = load_ratings([DataSource(path=write_rows("rows.jsonl", rows))], seed=0)
    assert [rating.ratings["helpfulness"] for rating in ratings] == [1, 3]
    assert report.reasons == {"duplicate": 1}


def test_ratings_join_the_side_they_rate_once_and_the_rest_stays() -> None:
    preferences = [
        Preference(PROMPT, "a", "b", -1),
        Preference(PROMPT, "c", "a", 1),
        Preference(PROMPT, "e", "c", 2),
    ]
    rated_a = [
        Rating(PROMPT, "a", {"helpfulness": 4.0}),
        Rating(PROMPT, "a", {"helpfulness": 1.0, "wit": 2.0}),
    ]
    rated_c = Rating(PROMPT, "c", {"helpfulness": 0.0})
    elsewhere = [
        Rating((Message("user", "other"),), "a", {"helpfulness": 3.0}),
        Rating(PROMPT, "d", {"wit": 1.0}),
    ]
    joined, single = join_ratings(preferences, [*rated_a, elsewhere[0], rated_c, elsewhere[1]])
    assert [(item.ratings_1, item.ratings_2) for item in joined] == [
        ({"helpfulness": 2.5, "wit": 2.0}, {}),  # (4 + 1) / 2
        ({"helpfulness": 0.0}, {}),  # `a` is attached already
        ({}, {}),  # and so is `c`
    ]
    assert [item.strength for item in joined] == [-1, 1, 2]
    assert single == elsewhere


@pytest.fixture
def benchmark(write_rows: Callable[..., str]) -> str:
    conversation = [{"role": "user", "content": "q"}]
    reply = [{"role": "assistant", "content": "good"}]
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "", "subset": "easy", "id": 1},
        {"prompt": conversation, "chosen": reply, "rejected": "bad", "subset": "hard", "section": "Chat"},
        {"prompt": "q", "chosen": "good", "rejected": "", "subset": "easy", "id": 2},
        {"prompt": "q", "chosen": "same", "rejected": "same", "subset": "easy", "id": 3},
    ]
    return write_rows("data/filtered.jsonl.gz", rows)


def test_comparisons_keep_repeats_and_empty_answers(benchmark: str) -> None:
    items, report = load_comparisons(benchmark)
    easy = Comparison(PROMPT, "good", "", subset="easy")
    assert items == [easy, Comparison(PROMPT, "good", "bad", subset="hard", section="Chat"), easy]
    assert report.examples == {"identical responses": [f"{benchmark}:4"]}


def test_comparisons_of_a_folder_are_the_filtered_split(benchmark: str) -> None:
    assert len(load_comparisons(str(Path(benchmark).parent))[0]) == 3


def test_a_comparison_without_a_subset(write_rows: Callable[..., str]) -> None:
    path = write_rows("rows.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    (item,), _ = load_comparisons(path)
    assert (item.chosen, item.rejected, item.subset) == ("a", "b", "all")


def test_rewardbench_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, *, split: str, **others: None) -> datasets.Dataset:
        assert (name, split) == ("allenai/reward-bench", "filtered")
        assert not any(others.values())
        row = {"prompt": "q", "chosen": "a", "chosen_model": "m", "rejected": "b", "rejected_model": "n"}
        return datasets.Dataset.from_list([{**row, "subset": "alpacaeval-easy", "id": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_comparisons("rewardbench")[0] == [Comparison(PROMPT, "a", "b", subset="alpacaeval-easy")]


@pytest.mark.parametrize("split", ["train", "val", "validation"])
def test_the_synthetic_ratings_join_the_synthetic_preferences(split: str) -> None:
    pairs = DataSource(path="demo", format="helpsteer2-preference", split=split, annotations="raw")
    preferences, report = load_preferences([pairs], seed=0, max_spread=2)
    ratings, _ = load_ratings([DataSource(path="demo", format="helpsteer2", split=split)], seed=0)
    assert report.read == len({(rating.prompt) for rating in ratings})
    joined, single = join_ratings(preferences, ratings)
    assert all(item.ratings_1 and item.ratings_2 for item in joined)
    assert len(single) == len(ratings) - 2 * len(joined)
    assert set(report.reasons) <= {
        "annotators disagree (spread > 2)",
        "tie (strength 0)",
        "fewer than three valid annotations",
    }


def test_the_synthetic_prompts_carry_checks_and_the_benchmark_sections() -> None:
    prompts, report = load_prompts([DataSource(path="demo")])
    assert report.read == report.kept == len(prompts)
    assert all(prompt.check and prompt.source.startswith("synthetic") for prompt in prompts)
    items, report = load_comparisons("demo")
    assert report.read == report.kept == len(items)
    assert all(item.section for item in items)


def test_an_unknown_split_of_the_synthetic_rows() -> None:
    with pytest.raises(DataError, match="'tset'"):
        load_prompts([DataSource(path="demo", split="tset")])


def test_a_digest_is_of_the_content_and_not_of_its_place() -> None:
    @dataclass(frozen=True)
    class Old:
        text: str
        source: str = ""

    @dataclass(frozen=True)
    class New:
        text: str
        source: str = ""
        extra: tuple[str, ...] = ()

    assert digest_of([Old("a", "here")]) == digest_of([Old("a", "there")]) == digest_of([New("a")])
    different = [[Old("b")], [Old("a"), Old("a")], [New("a", extra=("x",))], []]
    assert len({digest_of([Old("a")]), *map(digest_of, different)}) == 5
    assert digest_of([Old("a"), Old("b")]) != digest_of([Old("b"), Old("a")])
    lone = "\ud83d"  # half of a surrogate pair, which JSON can hold
    assert digest_of([Old(lone)]) != digest_of([Old("")])
