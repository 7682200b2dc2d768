from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data.sources.rows import read_rows

ROWS = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "val"}, {"prompt": "c", "split": "train"}]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = []

    def load_dataset(
        name: str, *, data_dir: str | None, split: str, revision: str | None
    ) -> datasets.Dataset:
        made.append((name, data_dir, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


def test_a_hub_name_is_loaded_by_split(calls: list[tuple[Any, ...]]) -> None:
    rows = list(read_rows(DataSource(path="org/name", split="test"), seed=0))
    assert calls == [("org/name", None, "test", None)]
    assert [(row.place, row.values["prompt"]) for row in rows] == [
        ("org/name (test): row 1", "a"),
        ("org/name (test): row 2", "b"),
        ("org/name (test): row 3", "c"),
    ]


@pytest.mark.parametrize(("split", "prompts"), [("train", ["a", "c"]), ("val", ["b"]), ("validation", ["b"])])
def test_a_column_separates_preferences_that_share_a_split(
    calls: list[tuple[Any, ...]], split: str, prompts: list[str]
) -> None:
    source = DataSource(path="nvidia/HelpSteer2", format="helpsteer2-preference", split=split)
    assert [row.values["prompt"] for row in read_rows(source, seed=0)] == prompts
    assert calls == [("nvidia/HelpSteer2", "preference", "train", None)]


def test_ratings_of_helpsteer2_call_the_split_validation(calls: list[tuple[Any, ...]]) -> None:
    list(read_rows(DataSource(path="nvidia/HelpSteer2", format="helpsteer2", split="val"), seed=0))
    assert calls == [("nvidia/HelpSteer2", None, "validation", None)]


def test_disagreements_of_helpsteer2_lie_in_a_folder(calls: list[tuple[Any, ...]]) -> None:
    source = DataSource(
        path="nvidia/HelpSteer2", format="helpsteer2", split="disagreements", revision="990b271"
    )
    rows = list(read_rows(source, seed=0))
    assert calls == [("nvidia/HelpSteer2", "disagreements", "train", "990b271")]
    assert rows[1].place == "nvidia/HelpSteer2/disagreements (train): row 2"


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
    assert "--data" in (caught.value.fix or "") and "`path`" in (caught.value.fix or "")
    assert caught.value.exit_code == 2


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """nvidia/HelpSteer2 in small, for the datasets library to read as it reads a repository of the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    rated = {"prompt": "q", "response": "a", **dict.fromkeys(names, 3)}
    raw = [{"strength": strength, "justification": "so"} for strength in (3, 2, -100, 3)]
    three = [{"statement": "s", "elaboration": "e", "strength": strength} for strength in (3, 2, 3)]
    pair = {
        "split": "val",
        "prompt": "q",
        "response_1": "a",
        "response_2": "b",
        "preference_strength": 3,
        "preference_statement": "s",
        "preference_elaboration": "e",
        "three_most_similar_preferences": three,
        "all_preferences_unprocessed": raw,
    }
    files = {
        "train.jsonl.gz": [rated, {**rated, "response": "b"}],
        "validation.jsonl.gz": [rated],
        "disagreements/disagreements.jsonl.gz": [{**rated, **{key: [3, 3, 4] for key in names}}],
        "preference/preference.jsonl.gz": [pair, {**pair, "split": "train", "preference_strength": 0}],
    }
    for name, rows in files.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(tmp_path / "repository")


def test_the_datasets_library_gives_the_rows_that_the_files_have(
    repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, splits in (
        ("helpsteer2", ("train", "validation", "disagreements")),
        ("helpsteer2-preference", ("train", "val")),
    ):
        for split in splits:
            source = DataSource.model_validate({"path": repository, "format": kind, "split": split})
            local = [dict(row.values) for row in read_rows(source, seed=0)]
            with monkeypatch.context() as patch:
                patch.setattr("rlhf.data.sources.rows.looks_local", lambda path: False)
                loaded = [dict(row.values) for row in read_rows(source, seed=0)]
            assert loaded == local != []
