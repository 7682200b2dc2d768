"""Answers of two systems to the same prompts: sampled from policies and bases, or read from files.

Systems on the same base share it, as does a reward model that was trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from policy.evaluation.generation import TokenBudget, answer_questions
from policy.evaluation.speaker import Speaker, on_base
from policy.shared_base import SharedBase
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Conversation, Prompt
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.answer_files import Answered, is_answer_file, read_answers
from rlhf.data.evaluation.judge_formats import own_question
from rlhf.models.checkpoint_folder import model_folder

AnswersByPrompt = Mapping[Conversation, tuple[str, ...]]
"""A system's answers by prompt."""


@dataclass(frozen=True)
class Side:
    """A compared system: a speaker, or the rows of a file."""

    name: str
    speaker: Speaker | None
    rows: Sequence[Answered]

    @classmethod
    def read(cls, word: str, drops: DropReport) -> Side:
        """The system of a command-line argument: a file of answers, a policy's folder, or a base.

        Raises:
            DataError: the file holds no answers.
            ModelError: it is neither a policy nor a base.
        """
        if not is_answer_file(word):
            speaker = Speaker.read(word)
            return cls(speaker.name, speaker, ())
        rows, report = read_answers(Path(word))
        drops.merge(report)
        return cls(Path(word).name, None, rows)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of a file."""
        return [row.prompt for row in self.rows]


def on_one_base(sides: Sequence[Side]) -> list[Side]:
    """The systems, with a plain base loaded in the dtype of the other's policy, and only once."""
    policies = {
        side.speaker.model["base"]: side.speaker
        for side in sides
        if side.speaker is not None and side.speaker.folder is not None
    }
    resolved = []
    for side in sides:
        speaker = side.speaker
        if speaker is not None and speaker.folder is None:
            like = policies.get(speaker.model["base"], speaker)
            side = replace(side, speaker=replace(speaker, model=like.model, chat=like.chat))
        resolved.append(side)
    return resolved


class Bases:
    """The loaded bases, each once, with their adapters."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[object, ...], SharedBase] = {}

    def of(self, speaker: Speaker) -> SharedBase:
        """The base of a speaker, loaded at the first call; its policy is attached under the folder's name."""
        settings = sorted((name, str(value)) for name, value in speaker.model.items())
        key = (*settings, speaker.chat.template_hash)
        if key not in self._loaded:
            self._loaded[key] = SharedBase.load(**speaker.model, chat=speaker.chat)
        base = self._loaded[key]
        if speaker.folder is not None and str(speaker.folder) not in base.policies:
            base.add_policy(speaker.folder, str(speaker.folder))
        return base

    def judge(self, reward: str) -> SharedBase | None:
        """A loaded base with the reward model attached, if it was trained on one of them; else None."""
        if (model_folder(reward) / "reward.json").exists():
            for base in self._loaded.values():
                with suppress(ModelError):  # another base or template
                    base.add_reward(reward)
                    return base
        return None


@dataclass(frozen=True, slots=True)
class Drawing:
    """Sampling settings of systems that are not files."""

    temperature: float
    max_new_tokens: int
    batch: int
    seed: int


def answers_of(
    side: Side,
    samples: int,
    prompts: Sequence[Prompt],
    bases: Bases,
    drawing: Drawing,
    drops: DropReport,
    on_progress: Callable[[int], None],
) -> AnswersByPrompt:
    """A system's answers by prompt.

    A prompt that a file lacks, or that does not fit into the context, is counted in `drops` and missing.
    """
    if side.speaker is None:
        answers = {row.prompt.messages: row.answers for row in side.rows}
        for number, prompt in enumerate(prompts, 1):
            if prompt.messages not in answers:
                drops.drop(f"not in {side.name}", f"prompt {number}")
        return answers
    speaker, base = side.speaker, bases.of(side.speaker)
    questions = [own_question(number, prompt) for number, prompt in enumerate(prompts, 1)]
    replies = answer_questions(
        questions,
        on_base(base, None if speaker.folder is None else str(speaker.folder), drawing.max_new_tokens),
        TokenBudget(speaker.chat, speaker.context, drawing.max_new_tokens),
        samples=samples,
        temperature=lambda _: drawing.temperature,
        batch=drawing.batch,
        seed=drawing.seed,
        drops=DropReport(),
        on_progress=on_progress,
    )
    for index in sorted(set(range(len(questions))) - set(replies)):
        drops.drop(
            f"too long for {side.name} with an answer of {drawing.max_new_tokens} tokens",
            questions[index].place,
        )
    return {
        questions[index].prompt: tuple(reply.turns[0] for reply in sampled)
        for index, sampled in replies.items()
    }


def paired(
    prompts: Sequence[Prompt], a: AnswersByPrompt, b: AnswersByPrompt, *, least_b: int
) -> list[tuple[Prompt, tuple[str, ...], tuple[str, ...]]]:
    """The prompts that both systems answered, with the answers.

    Args:
        prompts: in their order.
        a: the answers of system A.
        b: the answers of system B.
        least_b: how many answers B must have to each prompt.

    Raises:
        DataError: no prompt is left, or B has too few answers.
    """
    pairs = []
    for number, prompt in enumerate(prompts, 1):
        if prompt.messages not in a or prompt.messages not in b:
            continue
        answers = b[prompt.messages]
        if len(answers) < least_b:
            raise DataError(
                f"B has {len(answers)} answers to prompt {number}; --best-of needs {least_b}.",
                fix=f"rlhf generate ... --format jsonl --samples {least_b}, or a smaller --best-of",
            )
        pairs.append((prompt, a[prompt.messages], answers))
    return pairs
