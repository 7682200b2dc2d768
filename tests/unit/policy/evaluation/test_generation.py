"""Questions answered by a stand-in for the engine that says what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policy.evaluation.draft import Draft
from policy.evaluation.generation import TokenBudget, answer_questions, batches_of
from rlhf.core.errors import OutputError, RefusalError
from rlhf.core.records import Conversation, Message, Rollout
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.judge_formats import Question, Reply


def words(conversation: Conversation) -> list[str]:
    if conversation[0].content == "refused":
        raise RefusalError("refused by the chat template: no")
    return " ".join(item.content for item in conversation).split()


def words_or_not(conversation: Conversation) -> list[str] | RefusalError:
    try:
        return words(conversation)
    except RefusalError as refusal:
        return refusal


WORDS: Any = SimpleNamespace(prompt_ids=words, prompts_ids=lambda many: map(words_or_not, many))
"""A chat of one token a word, which refuses "refused"."""


def question(key: str, *turns: str, heat: float | None = None) -> Question:
    return Question(key, f"file:{key}", (Message("user", turns[0]),), turns[1:], heat)


def rollout(text: str, *, finished: bool = True) -> Rollout:
    return Rollout((0,), tuple(range(len(text.split()))), (), finished, text)


class Echo:
    """Answers with what was printed last, the sample's number and the seed, with white space around."""

    def __init__(self, fail_at: int = -1) -> None:
        self.calls: list[tuple[list[Conversation], int, float]] = []
        self.fail_at = fail_at

    def __call__(
        self, conversations: Sequence[Conversation], *, samples: int, temperature: float, seed: int
    ) -> list[list[Rollout]]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((list(conversations), samples, temperature))
        return [
            [rollout(f" {conversation[-1].content}/{number}/{seed % 1000} ") for number in range(samples)]
            for conversation in conversations
        ]


def answer(questions: Sequence[Question], sample: Any, **options: Any) -> dict[int, list[Reply]]:
    settings: dict[str, Any] = {
        "samples": 1,
        "temperature": lambda item: 1.0 if item.temperature is None else item.temperature,
        "batch": 2,
        "seed": 0,
        "drops": DropReport(),
        "room": TokenBudget(WORDS, 100, 10),
    }
    settings |= options
    return answer_questions(questions, sample, settings.pop("room"), **settings)


def test_the_second_turn_sees_the_first_answer() -> None:
    echo = Echo()
    replies = answer([question("1", "first", "second")], echo, strip=True)
    ((asked,), *_), ((again,), *_) = echo.calls
    assert asked == (Message("user", "first"),)
    first, second = replies[0][0].turns
    assert again == (Message("user", "first"), Message("assistant", first), Message("user", "second"))
    assert first.startswith("first/0/") and second.startswith("second/0/")
    assert replies[0][0].finished == (True, True) and replies[0][0].tokens == (1, 1)


def test_each_sample_is_a_conversation_of_its_own() -> None:
    echo = Echo()
    replies = answer([question("1", "a", "b"), question("2", "c", "d")], echo, samples=3, strip=True)
    assert [(len(asked), samples) for asked, samples, _ in echo.calls] == [(2, 3), (6, 1)]
    for place in (0, 1):
        heard = [thread[1].content for thread in echo.calls[1][0][3 * place : 3 * place + 3]]
        assert heard == [reply.turns[0] for reply in replies[place]]
        assert len(set(heard)) == 3


def test_without_chance_one_answer_stands_for_all() -> None:
    echo = Echo()
    replies = answer([question("1", "a", "b", heat=0.0)], echo, samples=3)
    assert [(len(asked), samples, heat) for asked, samples, heat in echo.calls] == [(1, 1, 0.0)] * 2
    assert len(replies[0]) == 3 and len(set(replies[0])) == 1 and len(replies[0][0].turns) == 2


def test_white_space_stays_where_it_is_not_to_go() -> None:
    assert answer([question("1", "a")], Echo())[0][0].turns[0].startswith(" a/")


def test_batches_have_one_temperature_and_begin_with_the_longest() -> None:
    questions = [
        question("0", "x", heat=0.7),
        question("1", "xxx", heat=0.0),
        question("2", "xx", heat=0.7),
        question("3", "xxxx", heat=0.7),
        question("4", "x", heat=0.0),
    ]
    result = batches_of(questions, lambda item: item.temperature or 0.0, 2)
    assert result == [(0.0, [1, 4]), (0.7, [3, 2]), (0.7, [0])]


def test_questions_of_one_and_of_two_turns_in_one_batch() -> None:
    replies = answer([question("1", "a"), question("2", "b", "c")], Echo())
    assert [len(replies[place][0].turns) for place in (0, 1)] == [1, 2]


def test_what_does_not_fit_is_counted_with_its_place() -> None:
    drops, heard = DropReport(read=3), list[int]()
    questions = [question("1", "short"), question("2", "w " * 95), question("3", "short", "w " * 90)]
    replies = answer(questions, Echo(), drops=drops, on_progress=heard.append)
    assert list(replies) == [0]
    assert drops.kept == 1 and heard == [2, 3]
    assert drops.examples == {
        "does not fit into the context of 100 tokens with an answer of 10 (lower --max-new-tokens)": [
            "file:2"
        ],
        "turn 2 does not fit into the context of 100 tokens with an answer of 10 (lower --max-new-tokens)": [
            "file:3"
        ],
    }


def test_what_the_template_refuses_is_counted_with_its_place() -> None:
    drops = DropReport(read=2)
    questions = [question("1", "short"), question("2", "refused")]
    assert list(answer(questions, Echo(), drops=drops)) == [0]
    assert drops.examples == {"is refused by the chat template: no": ["file:2"]}
    assert TokenBudget(WORDS, 100, 10).longest(questions) == 1 + 10
    assert TokenBudget(WORDS, 100, 10).longest(questions[1:]) == 10


def test_the_room_a_file_of_questions_needs() -> None:
    room = TokenBudget(WORDS, 100, 10)
    assert room.longest([question("1", "a b c")]) == 3 + 10
    assert room.longest([question("1", "a"), question("2", "a b", "c")]) == 3 + 2 * 10 + 8


QUESTIONS = [question(str(number), f"q{number}", "more") for number in range(5)]


def drafted(file: Path, sample: Echo, **settings: Any) -> tuple[dict[int, list[Reply]], int]:
    """The replies, and how many batches were there already."""
    with Draft(file, {"seed": 0, **settings}) as draft:
        known = len(draft.batches)
        return answer(QUESTIONS, sample, samples=2, draft=draft), known


def test_a_killed_run_goes_on_and_ends_with_the_same_answers(tmp_path: Path) -> None:
    whole, _ = drafted(tmp_path / "whole.jsonl", Echo())
    file, killed = tmp_path / "out.jsonl", Echo(fail_at=3)  # in the second turn of the second batch
    with pytest.raises(KeyboardInterrupt):
        drafted(file, killed)
    draft = tmp_path / ".out.jsonl.draft"
    assert draft.read_bytes().count(b"\n") == 2  # the settings, and one batch
    with draft.open("ab") as torn:
        torn.write(b'{"replies": {"2": [{"tur')
    going_on = Echo()
    replies, known = drafted(file, going_on)
    assert known == 1 and len(going_on.calls) == 4
    assert replies == whole
    again, known = drafted(file, Echo(fail_at=0))
    assert known == 3 and again == whole


def test_other_settings_do_not_go_on_with_a_draft(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    drafted(file, Echo(), temperature=1.0)
    with pytest.raises(OutputError) as error:
        drafted(file, Echo(), temperature=0.7)
    assert all(part in error.value.found for part in ("temperature", "1.0", "0.7"))
    assert f"rm {tmp_path}" in error.value.fix


def test_two_processes_do_not_write_one_draft(tmp_path: Path) -> None:
    with Draft(tmp_path / "out.jsonl", {}), pytest.raises(OutputError, match=r"out\.jsonl"):
        Draft(tmp_path / "out.jsonl", {})


def test_what_was_dropped_stays_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    file, drops = tmp_path / "out.jsonl", [DropReport(), DropReport()]
    questions = [replace(QUESTIONS[0], prompt=(Message("user", "w " * 99),)), QUESTIONS[1]]
    result = []
    for report in drops:
        with Draft(file, {}) as draft:
            result.append(answer(questions, Echo(), drops=report, draft=draft))
    assert result[0] == result[1] and drops[0].examples == drops[1].examples != {}


def test_answers_do_not_depend_on_when_a_batch_is_made() -> None:
    """The seed of a batch is its own: the second batch alone has the answers it has after the first."""
    calls: list[Callable[..., Any]] = [Echo(), Echo()]
    first, two = (answer(QUESTIONS, echo, seed=seed) for echo, seed in zip(calls, (0, 1), strict=True))
    assert first != two
    assert first == answer(QUESTIONS, Echo(), seed=0)
