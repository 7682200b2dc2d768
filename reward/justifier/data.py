"""Justifications as token ids: the request of `reward.judge.forms.justifier_request`, and the text that is
learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward.judge.forms import justifier_request
from reward.training.batches import TOO_LONG
from rlhf.config.justifier import JustifierConfig
from rlhf.core.errors import RefusalError
from rlhf.core.records import Justification, Message
from rlhf.data.drops import DropReport, nothing_left, place_of
from rlhf.data.load import load_justifications
from rlhf.data.split import held_out
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SamePrompts

IGNORED = -100
"""The label of a token that has no loss."""
FOR_TEST = "prompt is in data.test_share"


@dataclass(frozen=True)
class Example:
    """A request and its target; `labels` are the target's ids, `IGNORED` in the request."""

    input_ids: list[int]
    labels: list[int]


def example(record: Justification, chat: Chat) -> Example:
    """A record as ids: the chat's prompt, the reasons with the verdict last, and the end of the answer.

    Raises:
        RefusalError: the chat template refuses it.
    """
    request = justifier_request(record.prompt, record.response_1, record.response_2)
    prompt = chat.prompt_ids((Message("user", request),))
    target = list(chat.tokenizer(record.text, add_special_tokens=False)["input_ids"])
    target.append(chat.stop_ids[0])
    return Example([*prompt, *target], [IGNORED] * len(prompt) + target)


@dataclass(frozen=True)
class JustifierData:
    """Examples to train on, pairs that are held out, and what was left out."""

    training: list[Example]
    held_out: list[Justification]
    drops: DropReport


def load_data(config: JustifierConfig, chat: Chat) -> JustifierData:
    """Rows of all sources, split by a hash of the prompt; what is refused or too long is dropped and counted.

    Raises:
        DataError: nothing is left to train on.
    """
    records, drops = load_justifications(
        config.data.justifications, seed=config.seed, max_spread=config.data.max_spread
    )
    same = SamePrompts(chat)
    same.add([record.prompt for record in records])
    training, held = list[Example](), list[Justification]()
    for record in records:
        try:
            made = example(record, chat)
        except RefusalError as error:
            drops.drop(error.reason, place_of(record))
            continue
        if len(made.input_ids) > config.model.max_length:
            drops.drop(TOO_LONG, place_of(record))
        elif held_out(prompt := same.representative(record.prompt), config.data.test_share, "test"):
            drops.drop(FOR_TEST, place_of(record))
        elif held_out(prompt, config.data.validation_share, "validation"):
            held.append(record)
        else:
            training.append(made)
    if not training:
        withheld = {"data.validation_share": len(held)}
        raise nothing_left("There is nothing to train on.", drops, "data.justifications", withheld)
    return JustifierData(training, held[: config.evaluation_pairs], drops)


def columns(examples: Sequence[Example], order: Sequence[int]) -> dict[str, list[list[int]]]:
    """The columns of TRL's prepared data set, in the order of the draws."""
    return {
        "input_ids": [examples[place].input_ids for place in order],
        "labels": [examples[place].labels for place in order],
    }
