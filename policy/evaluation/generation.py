"""Samples answers to questions in batches, turn by turn; a killed run resumes at its batch.

Every batch has its own seed, so that a resumed run gives the answers of an uninterrupted one.
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
from rlhf.data.evaluation.judge_formats import Question, Reply
from rlhf.models.chat import Chat

SPARE = 8
"""Tokens by which an answer may grow when its text is tokenized again."""


class TokenBudget:
    """Checks whether a prompt and its answer fit into the context."""

    def __init__(self, chat: Chat, context: int, max_new_tokens: int) -> None:
        self.chat, self.context, self.max_new_tokens = chat, context, max_new_tokens

    def longest(self, questions: Sequence[Question]) -> int:
        """The maximal length of the questions in tokens, with an answer in every turn."""
        threads = self.chat.prompts_ids(
            _thread(question, [""] * len(question.later)) for question in questions
        )
        return max(
            (
                len(ids) + (1 + len(question.later)) * self.max_new_tokens + len(question.later) * SPARE
                for question, ids in zip(questions, threads, strict=True)
                if not isinstance(ids, RefusalError)  # skipped, see `fault`
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
    budget: TokenBudget,
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
    """Sample `samples` answers to every question; later turns see the answers before them.

    Args:
        budget: checks that prompt and answer fit; a question that does not fit is counted in `drops` and has
            no replies.
        temperature: of a question.
        batch: questions per batch, which have the same temperature.
        strip: take white space off the ends of an answer.
        draft: stores finished batches and returns those of an earlier run.
        on_progress: called with the number of finished questions.

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
            batch_seed = seed_of(seed, number)
            conversed = converse(
                some, sample, budget, samples=samples, temperature=heat, seed=batch_seed, strip=strip
            )
            replies = dict(zip(members, conversed, strict=True))
            if draft:
                draft.append(replies)
        for position, reply in replies.items():
            if isinstance(reply, str):
                drops.drop(reply, questions[position].place)
            else:
                answers[position] = reply
        done += len(members)
        if number >= len(known) or number == len(batches) - 1:  # stored batches would distort the time left
            on_progress(done)
    return dict(sorted(answers.items()))


def batches_of(
    questions: Sequence[Question], temperature: Callable[[Question], float], batch: int
) -> list[tuple[float, list[int]]]:
    """Positions of at most `batch` questions of one temperature, which comes with them.

    The longest prompts first.
    """

    def order(position: int) -> tuple[float, int]:
        question = questions[position]
        return temperature(question), -sum(len(message.content) for message in question.prompt)

    ordered = sorted(range(len(questions)), key=order)
    batches = []
    for heat, group in itertools.groupby(ordered, key=lambda position: temperature(questions[position])):
        members = list(group)
        batches += [(heat, members[start : start + batch]) for start in range(0, len(members), batch)]
    return batches


def converse(
    questions: Sequence[Question],
    sample: Sample,
    budget: TokenBudget,
    *,
    samples: int,
    temperature: float,
    seed: int,
    strip: bool,
) -> list[Replies]:
    """The replies to each question, or why there are none; each sample is a separate conversation."""
    rollouts: list[list[list[Rollout]]] = [[[] for _ in range(samples)] for _ in questions]
    faults: dict[int, str] = {}
    for turn in range(1 + max(len(question.later) for question in questions)):
        # At the first turn, and in greedy decoding, all samples have the same prompt.
        alike = turn == 0 or temperature == 0
        threads = {
            (index, number): _thread(question, [_text(rollout, strip) for rollout in rollouts[index][number]])
            for index, question in enumerate(questions)
            if turn <= len(question.later) and index not in faults
            for number in range(1 if alike else samples)
        }
        for (index, _), thread in threads.items():
            if fault := budget.fault(thread):
                faults[index] = f"turn {turn + 1} {fault}" if turn else fault
        pending = {key: thread for key, thread in threads.items() if key[0] not in faults}
        if not pending:
            break
        per_prompt = samples if turn == 0 and temperature > 0 else 1
        groups = sample(
            list(pending.values()), samples=per_prompt, temperature=temperature, seed=seed_of(seed, turn)
        )
        for (index, number), group in zip(pending, groups, strict=True):
            receivers = range(samples) if alike else (number,)
            for receiver, rollout in zip(receivers, itertools.cycle(group), strict=False):
                rollouts[index][receiver].append(rollout)
    return [
        faults.get(index) or [_reply(turns, strip) for turns in conversations]
        for index, conversations in enumerate(rollouts)
    ]


def _thread(question: Question, answers: Sequence[str]) -> Conversation:
    """The conversation up to the turn after these answers."""
    messages = list(question.prompt)
    for answer, next_turn in zip(answers, question.later, strict=False):
        messages += [Message("assistant", answer), Message("user", next_turn)]
    return tuple(messages)


def _text(rollout: Rollout, strip: bool) -> str:
    return rollout.text.strip() if strip else rollout.text


def _reply(rollouts: Sequence[Rollout], strip: bool) -> Reply:
    return Reply(
        tuple(_text(rollout, strip) for rollout in rollouts),
        tuple(rollout.finished for rollout in rollouts),
        tuple(len(rollout.completion_ids) for rollout in rollouts),
    )
