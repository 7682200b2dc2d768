"""Questions answered in batches, turn by turn; a killed run goes on with the batch it was at.

Every batch draws from a seed of its own, so that a run that goes on gives the answers of one that was never
killed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from policy.evaluation.draft import Draft, Replies
from policy.evaluation.speaker import Sample
from policy.rollouts.protocol import seed_of
from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Message, Rollout
from rlhf.data.drops import DropReport
from rlhf.data.judge_formats import Question, Reply
from rlhf.models.chat import Chat

SPARE = 8
"""Tokens by which an answer, read back as text, may come out longer than it was sampled."""


class TokenBudget:
    """Whether a prompt and an answer to it fit into the context."""

    def __init__(self, chat: Chat, context: int, max_new_tokens: int) -> None:
        self.chat, self.context, self.max_new_tokens = chat, context, max_new_tokens

    def longest(self, questions: Sequence[Question]) -> int:
        """Tokens that the longest of the questions may reach, with an answer in every turn."""
        threads = self.chat.prompts_ids(_thread(one, [""] * len(one.later)) for one in questions)
        return max(
            (
                len(ids) + (1 + len(one.later)) * self.max_new_tokens + len(one.later) * SPARE
                for one, ids in zip(questions, threads, strict=True)
                if not isinstance(ids, RefusalError)  # which are not asked, see `fault`
            ),
            default=self.max_new_tokens,
        )

    def fault(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot be answered, or None."""
        try:
            ids = self.chat.prompt_ids(conversation)
        except RefusalError as refusal:
            return f"is {refusal.reason}"
        if len(ids) + self.max_new_tokens <= self.context:
            return None
        return (
            f"does not fit into the context of {self.context} tokens with an answer of {self.max_new_tokens} "
            "(lower --max-new-tokens)"
        )


def answer_questions(
    questions: Sequence[Question],
    sample: Sample,
    room: TokenBudget,
    *,
    samples: int,
    temperature: Callable[[Question], float],
    batch: int,
    seed: int,
    drops: DropReport,
    strip: bool = False,
    draft: Draft | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[int, list[Reply]]:
    """Answer every question `samples` times; the later turns of a question see the answers before.

    Args:
        room: decides whether a prompt and its answer fit; what does not is counted in `drops` and has no
            replies.
        temperature: of a question.
        batch: questions answered at a time; they have one temperature.
        strip: take white space off the ends of an answer.
        draft: keeps what is answered, and knows what was.
        on_progress: hears how many questions are done.

    Returns:
        The replies by the question's position.
    """
    answers: dict[int, list[Reply]] = {}
    done = 0
    known = draft.batches if draft else []
    batches = batches_of(questions, temperature, batch)
    for number, (heat, members) in enumerate(batches):
        if number < len(known):
            replies = known[number]
        else:
            some = [questions[position] for position in members]
            drawn = seed_of(seed, number)
            found = converse(some, sample, room, samples=samples, temperature=heat, seed=drawn, strip=strip)
            replies = dict(zip(members, found, strict=True))
            if draft:
                draft.append(replies)
        for position, one in replies.items():
            if isinstance(one, str):
                drops.drop(one, questions[position].place)
            else:
                answers[position] = one
        done += len(members)
        if number >= len(known) or number == len(batches) - 1:  # the time left is not that of reading a draft
            on_progress(done)
    return dict(sorted(answers.items()))


def batches_of(
    questions: Sequence[Question], temperature: Callable[[Question], float], batch: int
) -> list[tuple[float, list[int]]]:
    """Positions of at most `batch` questions of one temperature, which comes with them.

    The longest prompts first.
    """

    def order(position: int) -> tuple[float, int]:
        one = questions[position]
        return temperature(one), -sum(len(message.content) for message in one.prompt)

    ordered = sorted(range(len(questions)), key=order)
    batches = []
    for heat, group in itertools.groupby(ordered, key=lambda position: temperature(questions[position])):
        members = list(group)
        batches += [(heat, members[start : start + batch]) for start in range(0, len(members), batch)]
    return batches


def converse(
    questions: Sequence[Question],
    sample: Sample,
    room: TokenBudget,
    *,
    samples: int,
    temperature: float,
    seed: int,
    strip: bool,
) -> list[Replies]:
    """The replies to each question, or why there are none; each sample is a conversation of its own."""
    said: list[list[list[Rollout]]] = [[[] for _ in range(samples)] for _ in questions]
    faults: dict[int, str] = {}
    for turn in range(1 + max(len(one.later) for one in questions)):
        # At the first turn, and without chance at all, what one sample is asked the others are too.
        alike = turn == 0 or temperature == 0
        threads = {
            (place, number): _thread(one, [_text(rollout, strip) for rollout in said[place][number]])
            for place, one in enumerate(questions)
            if turn <= len(one.later) and place not in faults
            for number in range(1 if alike else samples)
        }
        for (place, _), thread in threads.items():
            if fault := room.fault(thread):
                faults[place] = f"turn {turn + 1} {fault}" if turn else fault
        asked = {key: thread for key, thread in threads.items() if key[0] not in faults}
        if not asked:
            break
        drawn = samples if turn == 0 and temperature > 0 else 1
        groups = sample(
            list(asked.values()), samples=drawn, temperature=temperature, seed=seed_of(seed, turn)
        )
        for (place, number), group in zip(asked, groups, strict=True):
            hearers = range(samples) if alike else (number,)
            for hearer, rollout in zip(hearers, itertools.cycle(group), strict=False):
                said[place][hearer].append(rollout)
    return [
        faults.get(place) or [_reply(rollouts, strip) for rollouts in conversations]
        for place, conversations in enumerate(said)
    ]


def _thread(question: Question, answers: Sequence[str]) -> Conversation:
    """The conversation up to the turn that comes after these answers."""
    messages = list(question.prompt)
    for answer, next_turn in zip(answers, question.later, strict=False):
        messages += [Message("assistant", answer), Message("user", next_turn)]
    return tuple(messages)


def _text(rollout: Rollout, strip: bool) -> str:
    return rollout.text.strip() if strip else rollout.text


def _reply(rollouts: Sequence[Rollout], strip: bool) -> Reply:
    return Reply(
        tuple(_text(one, strip) for one in rollouts),
        tuple(one.finished for one in rollouts),
        tuple(len(one.completion_ids) for one in rollouts),
    )
