"""Annotations become rows that `train-reward` reads: strengths and ratings by hand, and back through our own
readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.annotate.agreement import is_disputed, progress
from rlhf.annotate.exchange import from_argilla, from_label_studio, to_argilla, to_label_studio
from rlhf.annotate.export import export_rows, joined_turns, write_export
from rlhf.annotate.records import Annotation, Submission
from rlhf.annotate.store import Store
from rlhf.annotate.tasks import Task
from rlhf.commands.annotate import export, import_
from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError, OutputError
from rlhf.core.records import Message
from rlhf.data.load import load_preferences, load_ratings
from rlhf.data.readers.helpsteer import split_turns
from tests.unit.annotate.conftest import submission


@pytest.fixture
def annotated(store: Store) -> Store:
    """Task 1: agreed, +2. Task 2: disputed, decided as -1. Task 3: neither is valid."""
    marks = {1: (1, 2, 3), 2: (-3, 3, 1), 3: (-100, -100, -100)}
    for place, name in enumerate(("ana", "ben", "cy")):
        store.add_annotator(name)
        for number, strengths in marks.items():
            store.save(
                number, name, submission(strengths[place], 3, f"{name} says"), final=True, seconds=place
            )
    store.add_annotator("dora", adjudicates=True)
    store.adjudicate(2, "dora", submission(-1, reason="It depends."))
    return store


def test_files_are_read_unchanged_by_training(annotated: Store, tmp_path: Path) -> None:
    written = write_export(annotated, tmp_path / "out")
    by_prompt = {row["prompt"]: row for row in written.preferences}
    assert by_prompt["Tell me about tea."]["preference_strength"] == 2
    assert by_prompt["Tell me about bread."]["preference_strength"] == -1
    assert by_prompt["Tell me about bread."]["preference_elaboration"] == "It depends."
    assert by_prompt["Tell me about snow."]["preference_strength"] == 0
    tea = by_prompt["Tell me about tea."]
    assert [mark["strength"] for mark in tea["all_preferences_unprocessed"]] == [1, 2, 3]
    assert tea["preference_statement"] == "@Response 2 is better than @Response 1."
    folder = str(tmp_path / "out")
    splits = {row["split"] for row in written.preferences}
    read = []
    for split in splits:
        source = DataSource(path=folder, format="helpsteer2-preference", split=split)
        read += load_preferences([source], seed=0, max_spread=2)[0]
    assert sorted((p.prompt[-1].content, p.strength) for p in read) == [
        ("Tell me about bread.", -1),
        ("Tell me about tea.", 2),
    ]
    ratings, _ = load_ratings([DataSource(path=folder, format="helpsteer2")], seed=0, max_spread=2)
    assert {rating.ratings["helpfulness"] for rating in ratings} == {3.0, 4.0}
    everyone, _ = load_ratings(
        [DataSource(path=folder, format="helpsteer2", split="disagreements")], seed=0, max_spread=2
    )
    assert len(everyone) == len(ratings) == 6


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for output in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(OutputError, match=f"OUTPUT {output} exists already"):
            export("annotations.db", output)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_turns_are_joined_as_helpsteer_has_them() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    joined = joined_turns(turns)
    assert joined is not None
    assert split_turns(joined) == turns
    assert joined_turns((Message("system", "s"), Message("user", "a"))) is None
    assert joined_turns((Message("user", "a\n<extra_id_1>User\nb"),)) is None


def test_what_the_format_cannot_hold_is_counted(store: Store, tmp_path: Path) -> None:
    store.add_tasks([Task((Message("system", "s"), Message("user", "u")), "a", "b")])
    store.add_annotator("ana")
    store.save(4, "ana", submission(1), final=True, seconds=0)
    written = write_export(store, tmp_path / "out")
    assert (written.preferences, sum(written.left_out.values())) == ([], 1)


def own(*strengths: int) -> list[Annotation]:
    return [Annotation(1, f"p{n}", True, submission(s), 1.0) for n, s in enumerate(strengths)]


@pytest.mark.parametrize(
    ("strengths", "disputed"),
    [((1, 2, 3), False), ((-3, 3, 1), True), ((1, 2), False), ((-1, 1, 1), False), ((-1, 1, -100), True)],
)
def test_which_tasks_are_disputed(strengths: tuple[int, ...], disputed: bool) -> None:
    assert is_disputed(own(*strengths), 3) is disputed


@pytest.mark.parametrize(
    ("strengths", "per_task", "disputed"),
    [((2,), 1, False), ((2,), 2, False), ((-3, 3), 2, True), ((1, 3), 2, False), ((2, -100), 2, True)],
)
def test_one_or_two_annotators_can_agree_where_no_more_were_wanted(
    strengths: tuple[int, ...], per_task: int, disputed: bool
) -> None:
    assert is_disputed(own(*strengths), per_task) is disputed


def test_the_export_of_one_or_two_annotators_per_task(store: Store) -> None:
    """Means rounded towards 0: 2 and 3 give 2; 3 and -3 disagree; the default wants three annotators."""
    for name in ("ana", "ben"):
        store.add_annotator(name)
    for number, strengths in ((1, (2, 3)), (2, (-2,)), (3, (3, -3))):
        for name, strength in zip(("ana", "ben"), strengths, strict=False):
            store.save(number, name, submission(strength), final=True, seconds=1.0)
    arguments = store.tasks(), store.annotations(), store.adjudications()
    for fewest, expected in ((1, [2, -2, 0]), (2, [2, 0, 0]), (3, [0, 0, 0])):
        rows = export_rows(*arguments, fewest=fewest)
        assert [row["preference_strength"] for row in rows.preferences] == expected
        assert len(rows.ratings) == 2 * {1: 3, 2: 2, 3: 0}[fewest]


def test_progress_by_hand(annotated: Store) -> None:
    counts = progress(3, annotated.annotations(), 3, {2})
    assert (counts["annotations"], counts["wanted"], counts["complete"], counts["disputed"]) == (9, 9, 3, 0)
    assert counts["annotators"]["ana"]["count"] == 3
    assert counts["annotators"]["cy"]["seconds"] == 2.0
    assert counts["kappa"]["linear"] is not None


@pytest.mark.parametrize(
    ("write", "read"), [(to_label_studio, from_label_studio), (to_argilla, from_argilla)]
)
def test_other_tools_read_and_write_the_same(annotated: Store, write: object, read: object) -> None:
    assert callable(write)
    assert callable(read)
    content = json.loads(json.dumps(write(annotated.tasks(), annotated.annotations())))
    back = read(content)
    assert [task for task, _ in back] == list(annotated.tasks().values())
    strengths = [[submission.strength for _, submission in rows] for _, rows in back]
    assert strengths == [[1, 2, 3], [-3, 3, 1], [-100, -100, -100]]
    assert back[0][1][0] == ("ana", Submission(strength=1, reason="ana says"))


def test_a_plain_pairwise_project_of_label_studio() -> None:
    content = [
        {
            "data": {"prompt": "P", "answer1": "a", "answer2": "b"},
            "annotations": [
                {"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}
            ],
        }
    ]
    ((task, rows),) = from_label_studio(content)
    assert (task.response_1, rows) == ("a", [("7", Submission(strength=-2))])


@pytest.mark.parametrize("content", [{}, ["x"], [{"data": {"prompt": "P"}}], [{"fields": {"a": 1}}], [{}]])
def test_what_is_no_export_of_theirs(content: object) -> None:
    for read in (from_label_studio, from_argilla):
        with pytest.raises(DataError):
            read(content)


def test_half_rated_responses_beside_neither_is_valid(store: Store) -> None:
    """The page asks for no ratings then, and keeps those that were clicked before."""
    partial = Submission(strength=-100, ratings_1={"helpfulness": 1}, reason="Both are wrong.")
    for name, mark in (
        ("ana", partial),
        ("ben", submission(2)),
        ("cy", submission(2)),
        ("dan", submission(2)),
    ):
        store.add_annotator(name)
        store.save(1, name, mark, final=True, seconds=1)
    rows = export_rows(store.tasks(), store.annotations(), {1: partial})
    assert [len(row["helpfulness"]) for row in rows.disagreements] == [3, 3]
    assert [row["helpfulness"] for row in rows.ratings] == [3, 4]
    assert list(rows.left_out.values()) == [1]


def test_annotations_that_were_skipped_in_label_studio_are_none() -> None:
    result = [{"type": "pairwise", "value": {"selected": "left"}}]
    content = [
        {"data": FIELDS, "annotations": [{"was_cancelled": True, "result": result}, {"result": result}]}
    ]
    ((_, rows),) = from_label_studio(content)
    assert len(rows) == 1


FIELDS = {"prompt": "P", "response_1": "a", "response_2": "b"}


@pytest.mark.parametrize(
    ("fields", "annotations", "found"),
    [
        ({"prompt": [{"role": "user"}]}, [], "the prompt is not text"),
        ({"prompt": 3}, [], "the prompt is not text"),
        ({"response_2": None}, [], "response_1 or response_2 is not text"),
        ({"response_2": "a"}, [], "both responses are the same"),
        ({"response_2": "\ud83d"}, [], "half of a surrogate pair"),
        ({}, ["good"], "the preference 'good' is not a valid strength"),
        ({}, [7], "the preference 7 is not a valid strength"),
        ({}, [True], "the preference True is not a valid strength"),
        ({}, [1.5], "the preference 1.5 is not a valid strength"),
    ],
)
def test_values_that_no_export_has(fields: dict[str, Any], annotations: list[Any], found: str) -> None:
    degrees = [{"from_name": "strength", "value": {"choices": [value]}} for value in annotations]
    label_studio = [{"data": FIELDS | fields, "annotations": [{"result": [degree]} for degree in degrees]}]
    argilla = [{"fields": FIELDS | fields, "responses": {"preference": [{"value": v} for v in annotations]}}]
    for read, content, place in (
        (from_label_studio, label_studio, "task"),
        (from_argilla, argilla, "record"),
    ):
        with pytest.raises(DataError, match=f"{place} 1: ") as caught:
            read(content)
        assert found in caught.value.found
    with pytest.raises(DataError, match="task 1: its annotations are not as Label Studio exports them"):
        from_label_studio([{"data": FIELDS, "annotations": [3]}])
    with pytest.raises(DataError, match="record 1: its annotations are not as Argilla exports them"):
        from_argilla([{"fields": FIELDS, "responses": {"preference": ["x"]}}])


def test_null_in_place_of_no_annotations_and_people_as_objects() -> None:
    assert [rows for _, rows in from_label_studio([{"data": FIELDS, "annotations": None}])] == [[]]
    assert [rows for _, rows in from_argilla([{"fields": FIELDS, "responses": {"preference": None}}])] == [[]]
    result = [{"type": "pairwise", "value": {"selected": "right"}}]
    people = [{"id": 4, "email": "ana@example.org"}, {"id": 5}, 6, None]
    content = [{"data": FIELDS, "annotations": [{"completed_by": p, "result": result} for p in people]}]
    ((_, rows),) = from_label_studio(content)
    assert [name for name, _ in rows] == ["ana@example.org", "5", "6", "imported"]


def test_what_another_tools_form_has_no_place_for_is_counted(
    annotated: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(annotated.location, tmp_path / "out.json", form="argilla")  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "Wrote 3 tasks with 9 annotations" in printed
    assert "the ratings of 9 annotations and 1 decisions of adjudicators" in printed


def test_an_import_keeps_what_people_annotated_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "a.db")
    record = {"fields": FIELDS, "responses": {"preference": [{"value": 1, "user_id": "ana"}]}}
    store.add_tasks([from_argilla([record])[0][0]])
    store.add_annotator("ana")
    store.save(1, "ana", submission(-3), final=True, seconds=9)
    file = tmp_path / "export.json"
    ben = {**record, "responses": {"preference": [{"value": 2, "user_id": "ben"}]}}
    file.write_text(json.dumps([record, ben]))
    import_(file, "argilla", str(tmp_path / "a.db"))
    printed = capsys.readouterr().out
    assert "Added 0 tasks and 1 annotations" in printed
    assert "Kept 1 annotations of the store" in printed
    assert {a.annotator: a.submission.strength for a in store.annotations()} == {"ana": -3, "ben": 2}
    import_(file, "argilla", str(tmp_path / "new.db"))  # a task that is twice in a file is one task
    assert "Added 1 tasks and 2 annotations" in capsys.readouterr().out


def test_an_import_that_is_not_json_says_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export.json").write_text("id,text\n")
    with pytest.raises(DataError, match=r"export\.json cannot be read as JSON") as caught:
        import_(Path("export.json"), "argilla", "annotations.db")
    assert "Argilla" in caught.value.allowed
    assert not (tmp_path / "annotations.db").exists()
