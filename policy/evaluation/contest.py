"""Two sides answer the same prompts: policies and bases by sampling, files by what they hold.

Sides on the same base share it, and so does a reward model that was trained on it.
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
from rlhf.data.answer_files import Answered, is_answer_file, read_answers
from rlhf.data.drops import DropReport
from rlhf.data.judge_formats import own_question

Told = Mapping[Conversation, tuple[str, ...]]
"""A side's answers by the prompt."""


@dataclass(frozen=True)
class Side:
    """One side: a speaker, or the rows of a file."""

    name: str
    speaker: Speaker | None
    rows: Sequence[Answered]

    @classmethod
    def read(cls, word: str, drops: DropReport) -> Side:
        """What a word on the command line names: a file of answers, a policy's folder, or a base.

        Raises:
            DataError: a file that holds no answers.
            ModelError: neither policy nor base.
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
    """The sides, with a base by itself loaded as the other side's policy has it: in its number format, and
    once."""
    policies = {
        side.speaker.model["base"]: side.speaker
        for side in sides
        if side.speaker is not None and side.speaker.folder is not None
    }
    found = []
    for side in sides:
        speaker = side.speaker
        if speaker is not None and speaker.folder is None:
            like = policies.get(speaker.model["base"], speaker)
            side = replace(side, speaker=replace(speaker, model=like.model, chat=like.chat))
        found.append(side)
    return found


class Bases:
    """The bases that are loaded, each once, with what hangs on them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[object, ...], SharedBase] = {}

    def of(self, speaker: Speaker) -> SharedBase:
        """The base of a speaker, loaded when it is first asked for.

        Its policy hangs on it under the folder's name.
        """
        settings = sorted((name, str(value)) for name, value in speaker.model.items())
        key = (*settings, speaker.chat.template_hash)
        if key not in self._loaded:
            self._loaded[key] = SharedBase.load(**speaker.model, chat=speaker.chat)
        base = self._loaded[key]
        if speaker.folder is not None and str(speaker.folder) not in base.policies:
            base.add_policy(speaker.folder, str(speaker.folder))
        return base

    def judge(self, reward: str) -> SharedBase | None:
        """A loaded base with the reward model hung on it, if it was trained on this one.

        Else None: it needs one of its own.
        """
        if (Path(reward) / "reward.json").exists():
            for base in self._loaded.values():
                with suppress(ModelError):  # another base or template
                    base.add_reward(reward)
                    return base
        return None


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a side that is no file answers."""

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
) -> Told:
    """A side's answers by prompt.

    A prompt that a file lacks, or that does not fit into the context, is counted and missing.
    """
    if side.speaker is None:
        told = {row.prompt.messages: row.answers for row in side.rows}
        for number, prompt in enumerate(prompts, 1):
            if prompt.messages not in told:
                drops.drop(f"not in {side.name}", f"prompt {number}")
        return told
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
    for place in sorted(set(range(len(questions))) - set(replies)):
        drops.drop(
            f"too long for {side.name} with an answer of {drawing.max_new_tokens} tokens",
            questions[place].place,
        )
    return {
        questions[place].prompt: tuple(reply.turns[0] for reply in found) for place, found in replies.items()
    }


def paired(
    prompts: Sequence[Prompt], a: Told, b: Told, *, least_b: int
) -> list[tuple[Prompt, tuple[str, ...], tuple[str, ...]]]:
    """The prompts that both sides have answers to, with these.

    Args:
        prompts: in their order.
        a: the answers of one side.
        b: the answers of the other.
        least_b: how many answers B must have to each prompt.

    Raises:
        DataError: no prompt is left, or B has too few answers.
    """
    found = []
    for number, prompt in enumerate(prompts, 1):
        if prompt.messages not in a or prompt.messages not in b:
            continue
        answers = b[prompt.messages]
        if len(answers) < least_b:
            raise DataError(
                f"B has {len(answers)} answers to prompt {number}; --best-of needs {least_b}.",
                fix=f"rlhf generate ... --format jsonl --samples {least_b}, or a smaller --best-of",
            )
        found.append((prompt, a[prompt.messages], answers))
    return found
