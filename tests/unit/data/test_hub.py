from __future__ import annotations

from typing import Any

import datasets
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data.rows import read_rows

ROWS = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "val"}, {"prompt": "c", "split": "train"}]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    made: list[tuple[str, Any, Any]] = []

    def load_dataset(name: str, *, data_dir: str | None, split: str) -> datasets.Dataset:
        made.append((name, data_dir, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


def test_a_hub_name_is_loaded_by_split(calls: list[tuple[str, Any, Any]]) -> None:
    rows = list(read_rows(DataSource(path="org/name", split="test"), seed=0))
    assert calls == [("org/name", None, "test")]
    assert [(row.place, row.values["prompt"]) for row in rows] == [
        ("org/name (test): row 1", "a"),
        ("org/name (test): row 2", "b"),
        ("org/name (test): row 3", "c"),
    ]


@pytest.mark.parametrize(("split", "prompts"), [("train", ["a", "c"]), ("val", ["b"]), ("validation", ["b"])])
def test_preferences_lie_in_one_split_and_are_told_apart_by_a_column(
    calls: list[tuple[str, Any, Any]], split: str, prompts: list[str]
) -> None:
    source = DataSource(path="nvidia/HelpSteer2", format="helpsteer2-preference", split=split)
    assert [row.values["prompt"] for row in read_rows(source, seed=0)] == prompts
    assert calls == [("nvidia/HelpSteer2", "preference", "train")]


def test_ratings_of_helpsteer2_call_the_split_validation(calls: list[tuple[str, Any, Any]]) -> None:
    list(read_rows(DataSource(path="nvidia/HelpSteer2", format="helpsteer2", split="val"), seed=0))
    assert calls == [("nvidia/HelpSteer2", None, "validation")]


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach the Hub"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'org/name' doesn't exist"),
        ValueError('Unknown split "train"'),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_a_failure_says_how_to_use_a_local_copy(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        list(read_rows(DataSource(path="org/name"), seed=0))
    message = str(caught.value)
    assert str(failure) in message
    assert "hf download org/name --repo-type dataset --local-dir FOLDER" in message
    assert caught.value.exit_code == 2
