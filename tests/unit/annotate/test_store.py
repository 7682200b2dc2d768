"""Tasks are handed out and saved: nobody sees a task twice, no task gets too many annotators, nothing is
lost."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rlhf.annotate import store as module
from rlhf.annotate.database import location_of
from rlhf.annotate.records import Submission
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import read_tasks
from rlhf.core.errors import ConfigError, DataError, OutputError
from rlhf.data.drops import DropReport
from rlhf.data.rules import DUPLICATE, IDENTICAL_RESPONSES
from tests.unit.annotate.conftest import submission, task


def test_a_task_is_claimed_once_by_each_and_finished_first(store: Store) -> None:
    for name in ("ana", "ben"):
        store.add_annotator(name)
    assert store.claim("ana", 2) == 1
    assert store.claim("ana", 2) == 1, "an open draft comes back"
    store.save(1, "ana", submission(1), final=True, seconds=9.0)
    assert store.claim("ben", 2) == 1, "a started task is finished before a new one is begun"
    assert store.claim("ana", 2) == 2


def test_no_task_has_more_annotators_than_wanted(store: Store) -> None:
    names = [f"person {n}" for n in range(6)]
    for name in names:
        store.add_annotator(name)
    claims: list[int | None] = []

    def work(name: str) -> None:
        claims.append(store.claim(name, 2))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, filter(None, claims))) == [1, 1, 2, 2, 3, 3]
    store.add_annotator("late")
    assert store.claim("late", 2) is None


def test_an_abandoned_task_is_free_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ana", "ben"):
        store.add_annotator(name)
    assert store.claim("ana", 1) == 1
    assert store.claim("ben", 1) == 2
    monkeypatch.setattr(module, "LEASE", -1.0)
    store.add_annotator("cy")
    assert store.claim("cy", 1) == 1


def test_saving_twice_and_drafts_after_the_end_change_nothing(store: Store) -> None:
    store.add_annotator("ana")
    for _ in range(2):
        store.save(1, "ana", submission(2), final=True, seconds=1.0)
    store.save(1, "ana", Submission(), final=False, seconds=2.0)
    (annotation,) = store.annotations()
    assert (annotation.submission, annotation.final) == (submission(2), True)
    store.save(1, "ana", submission(-1), final=True, seconds=3.0)
    assert store.annotations()[0].submission.strength == -1, "a person may change their mind"


def test_what_was_saved_is_there_after_a_restart(store: Store) -> None:
    token = store.add_annotator("ana")
    store.save(2, "ana", Submission(reason="half a"), final=False, seconds=1.0)
    again = Store(store.location)
    assert again.annotator_of(token) == again.annotator("ana")
    saved = again.saved(2, "ana")
    assert saved is not None
    assert (saved.submission.reason, saved.final) == ("half a", False)
    assert again.session_secret("ana") == store.session_secret("ana")


def test_tokens_are_not_stored_and_can_be_replaced(store: Store) -> None:
    old = store.add_annotator("ana")
    new = store.add_annotator("ana")
    assert store.annotator_of(old) is None
    assert store.annotator_of(new) is not None
    store.close()
    assert new.encode() not in b"".join(f.read_bytes() for f in Path(store.location).parent.glob("a.db*"))


def test_the_same_task_twice_is_one(store: Store) -> None:
    assert store.add_tasks([task("tea"), task("rain")]) == 1


def test_files_that_are_no_store(tmp_path: Path, store: Store) -> None:
    (tmp_path / "text.db").write_text("not a database, but a longer text than a header of one is")
    with pytest.raises(OutputError):
        Store(tmp_path / "text.db")
    with sqlite3.connect(store.location) as connection:
        connection.execute("UPDATE meta SET value = '9' WHERE key = 'version'")
    with pytest.raises(DataError) as caught:
        Store(store.location)
    assert "version 9" in caught.value.found
    with pytest.raises(OutputError):
        Store(tmp_path / "no" / "folder.db")


@pytest.mark.parametrize("location", ["nosuchdb://u:sesame@h/d", "postgresql+nodriver://u:sesame@h/d", "://"])
def test_a_database_that_cannot_be_opened_keeps_its_password(location: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(location)
    assert "sesame" not in str(caught.value)


def test_a_location_is_named_without_its_password(tmp_path: Path) -> None:
    assert Store(tmp_path / "a.db").location == str(tmp_path / "a.db")
    url = sa.make_url("postgresql://u:sesame@host/d")
    assert location_of(url) == "postgresql://u:***@host/d"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "x", "responses": ["a"]}', "1 responses"),
        ('{"prompt": "x", "responses": ["a", "b", "c"]}', "3 responses"),
        ('{"prompt": "x"}', "no responses"),
        ('{"prompt": "x", "chosen": "\\ud83d", "rejected": "b"}', "surrogate"),
        ('{"prompt": "x", "response_1": "a", "response_2": "a"}', "the same"),
        ('{"prompt": "x", "response_1": "a", "response_2": " "}', "empty"),
    ],
)
def test_rows_that_are_no_task(tmp_path: Path, row: str, words: str) -> None:
    good = '{"prompt": "x", "chosen": "a", "rejected": "b"}\n'
    (tmp_path / "tasks.jsonl").write_text(good + row)
    with pytest.raises(DataError) as caught:
        read_tasks(str(tmp_path / "tasks.jsonl"))
    assert "tasks.jsonl:2" in caught.value.found and words in caught.value.found


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_of_a_comparison_the_most_undecided_answers_come_first(tmp_path: Path) -> None:
    def side(*answers: tuple[str, float | None]) -> list[dict[str, Any]]:
        return [{"answer": text, "reward": reward, "gold": None} for text, reward in answers]

    prompts = [[{"role": "user", "content": name}] for name in ("clear", "close", "equal", "blank")]
    rows = [
        {"prompt": prompts[0], "source": "s", "a": side(("x", 1.0), ("y", 3.0)), "b": side(("z", 0.0))},
        {"prompt": prompts[1], "source": "s", "a": side(("x", 1.0), ("y", 3.0)), "b": side(("z", 2.9))},
        {"prompt": prompts[2], "source": "s", "a": side(("x", 1.0)), "b": side(("x", 1.0))},
        {"prompt": prompts[3], "source": "s", "a": side((" ", 1.0)), "b": side(("x", 1.0))},
    ]
    report = DropReport()
    tasks = read_tasks(write(tmp_path, rows), report)
    # Distances of the closest pairs: |1 - 0| and |3 - 2.9|.
    shown = [(t.prompt[0].content, t.response_1, t.response_2) for t in tasks]
    assert shown == [("close", "y", "z"), ("clear", "x", "z")]
    assert report.reasons == {IDENTICAL_RESPONSES: 2}
    with pytest.raises(DataError) as caught:
        read_tasks(write(tmp_path, [{"prompt": "q", "a": ["text"], "b": ["other"]}]))
    assert "tasks.jsonl:1" in caught.value.found


def test_rows_that_repeat_a_task_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_1": "a", "response_2": "b"}
    rows, report = [row, {**row, "prompt": "other"}, row], DropReport()
    path = write(tmp_path, rows)
    assert len(read_tasks(path, report)) == 2
    assert (report.read, report.reasons, report.examples) == (
        3,
        {DUPLICATE: 1},
        {DUPLICATE: [f"{path}:3"]},
    )


@pytest.mark.parametrize("side", ["prompt", "response_1"])
def test_what_the_page_does_not_show_is_refused(tmp_path: Path, side: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turn = {"role": "assistant", "content": "Look.", "tool_calls": [call]}
    user = {"role": "user", "content": "q"}
    row: dict[str, Any] = {"prompt": "q", "response_1": "a", "response_2": "b"}
    row[side] = [user, turn, user] if side == "prompt" else [turn]
    path = write(tmp_path, [row])
    with pytest.raises(DataError) as caught:
        read_tasks(path)
    assert f"{path}:1" in caught.value.found and "tool_calls" in caught.value.found


def test_a_new_store_is_its_owners_alone(tmp_path: Path) -> None:
    """It holds what sessions are signed with."""
    store = Store(tmp_path / "private.db")
    store.add_tasks([task("tea")])
    assert {file.stat().st_mode & 0o077 for file in tmp_path.glob("private.db*")} == {0}
