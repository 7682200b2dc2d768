"""Records of principles -> items to train on: a response with all its principles is one tree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from reward.principle.question import question
from reward.training.batches import TOO_LONG, Item
from rlhf.config.principle import PrincipleConfig
from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Message, Principle
from rlhf.data.drops import DropReport, nothing_left, place_of
from rlhf.data.load import load_principles
from rlhf.data.split import held_out
from rlhf.kernels.packing import Tree
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SamePrompts

FULFILMENT = "fulfilment"
"""The name of the one output."""


@dataclass(frozen=True)
class PrincipleData:
    """Items to train on, items and records that are held out, and what was left out."""

    training: list[Item]
    validation: list[Item]
    held_out: list[Principle]
    drops: DropReport


def load_data(config: PrincipleConfig, chat: Chat) -> PrincipleData:
    """Rows of all sources as items, split by a hash of the prompt.

    Raises:
        DataError: nothing is left to train on.
    """
    records, drops = load_principles(config.data.principles, seed=config.seed)
    same = SamePrompts(chat)
    same.add([record.prompt for record in records])
    sides: dict[bool, list[Principle]] = {True: [], False: []}
    for record in records:
        prompt = same.representative(record.prompt)
        sides[held_out(prompt, config.data.validation_share, "validation")].append(record)
    longest = config.model.max_length
    training, _ = make_items(sides[False], chat, max_length=longest, report=drops)
    validation, kept = make_items(sides[True], chat, max_length=longest, report=drops)
    if not training:
        held = {"data.validation_share": len(kept)}
        raise nothing_left("There is nothing to train on.", drops, "data.principles", held)
    return PrincipleData(training, validation, kept, drops)


def make_items(
    records: Sequence[Principle], chat: Chat, *, max_length: int, report: DropReport
) -> tuple[list[Item], list[Principle]]:
    """One item for each response, with a branch for each of its principles, and the records that are in them.

    What the chat template refuses, or is longer than `max_length`, is dropped and counted in `report`. The
    target of a branch is 1 if its principle is fulfilled, else 0.
    """
    groups: dict[tuple[Conversation, str], list[Principle]] = {}
    for record in records:
        groups.setdefault((record.prompt, record.response), []).append(record)
    ordered = list(itertools.chain.from_iterable(groups.values()))
    sequences = chat.prompts_ids([asked(record) for record in ordered])
    items, kept = list[Item](), list[Principle]()
    for members in groups.values():
        usable = list[tuple[list[int], Principle]]()
        for record, ids in zip(members, itertools.islice(sequences, len(members)), strict=True):
            if isinstance(ids, RefusalError) or len(ids) > max_length:
                reason = ids.reason if isinstance(ids, RefusalError) else TOO_LONG
                report.drop(reason, place_of(record))
            else:
                usable.append((ids, record))
        if usable:
            tree = Tree.of_sequences([ids for ids, _ in usable])
            targets = tuple((float(record.fulfilled),) for _, record in usable)
            items.append(Item(tree, targets, 0, usable[0][1].source))
            kept += [record for _, record in usable]
    return items, kept


def asked(record: Principle) -> Conversation:
    """The conversation of a record with the question about its principle."""
    return question((*record.prompt, Message("assistant", record.response)), record.principle)
