from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reward.training.batches import TOO_LONG, Item, batches, faults, make_items
from rlhf.core.records import Message, Preference, Rating
from rlhf.data.drops import DropReport
from rlhf.kernels.packing import Tree
from rlhf.models.chat import Chat

PROMPT = (Message("user", "Name a colour."),)
ATTRIBUTES = ("helpfulness", "verbosity")


def preference(strength: int, answer_1: str = "Blue.", answer_2: str = "Red, I think.") -> Preference:
    return Preference(
        PROMPT, answer_1, answer_2, strength, {"helpfulness": 1.0}, {"verbosity": 4.0}, source="here"
    )


def items(
    preferences: list[Preference], ratings: list[Rating], chat: Chat, max_length: int = 200
) -> list[Item]:
    return make_items(
        preferences, ratings, chat, attributes=ATTRIBUTES, max_length=max_length, report=DropReport()
    )


def test_a_pair_shares_its_prompt(tiny_chat: Chat) -> None:
    (item,) = items([preference(2)], [], tiny_chat)
    ids = [
        tiny_chat.conversation_ids((*PROMPT, Message("assistant", answer)))
        for answer in ("Blue.", "Red, I think.")
    ]
    assert [list(item.tree.trunk + branch) for branch in item.tree.branches] == ids
    assert list(item.tree.trunk) == tiny_chat.prompt_ids(PROMPT)
    assert item.ratings == ((1.0, None), (None, 4.0))
    assert (item.strength, item.source) == (2, "here")


def test_a_rated_response_is_an_item_without_a_pair(tiny_chat: Chat) -> None:
    (item,) = items([], [Rating(PROMPT, "Blue.", {"helpfulness": 3.0, "unknown": 1.0}, "there")], tiny_chat)
    assert (item.ratings, item.strength, item.source) == (((3.0, None),), 0, "there")
    assert len(item.tree.branches) == 1


def test_what_is_too_long_is_dropped_and_counted(tiny_chat: Chat) -> None:
    length = len(tiny_chat.conversation_ids((*PROMPT, Message("assistant", "Red, I think."))))
    long = preference(1, answer_2="word " * 50)
    report = DropReport()
    kept = make_items(
        [preference(1), long], [], tiny_chat, attributes=ATTRIBUTES, max_length=length, report=report
    )
    assert len(kept) == 1
    # The pair's own row, and the rows of the ratings that were joined to it.
    rows = 1 + bool(long.ratings_1) + bool(long.ratings_2)
    assert (report.reasons, report.examples) == ({TOO_LONG: rows}, {TOO_LONG: ["here"]})
    assert list(faults([preference(1), long], tiny_chat, length)) == [None, TOO_LONG]
    assert list(faults([preference(1)], tiny_chat, length - 1)) == [TOO_LONG]
    assert items([preference(1)], [], tiny_chat, length - 1) == []


def test_what_the_template_refuses_is_dropped_and_counted(refusing_base: Path) -> None:
    chat = Chat.load(refusing_base)
    refused = replace(preference(2), prompt=(Message("system", "Be kind."), *PROMPT))
    rating = Rating(refused.prompt, "Blue.", {"helpfulness": 3.0}, "there")
    report = DropReport()
    kept = make_items(
        [refused, preference(1)],
        [rating, replace(rating, prompt=PROMPT)],
        chat,
        attributes=ATTRIBUTES,
        max_length=200,
        report=report,
    )
    assert [(item.strength, item.source) for item in kept] == [(1, "here"), (0, "there")]
    reason = "refused by the chat template: System role not supported"
    assert report.reasons == {reason: 3 + 1}  # a pair with two ratings, and a rating
    assert report.examples == {reason: ["here", "there"]}
    assert list(faults([refused, preference(1)], chat, 200)) == [reason, None]


@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_targets_stay_with_their_branches(budget: int) -> None:
    """Each response's token, rating and place in a pair agree, however the items are packed."""
    made = [
        Item(Tree((1,), ((10,), (11, 11))), ((1.0, None), (None, 2.0)), -3),  # prefers the first
        Item(Tree((2,), ((12, 12, 12),)), ((3.0, 4.0),)),
        Item(Tree((3, 3), ((13,), (14,))), ((None, None), (0.5, None)), 1),  # prefers the second
    ]
    ratings = {10: (1.0, None), 11: (None, 2.0), 12: (3.0, 4.0), 13: (None, None), 14: (0.5, None)}
    seen, pairs = set(), []
    for batch in batches(made, budget, pad_id=0):
        tokens = batch.packed.ids_RT[batch.packed.last_tokens_N].tolist()
        seen.update(tokens)
        assert batch.ratings_NA.shape == batch.present_NA.shape == (len(tokens), 2)
        for row, token in enumerate(tokens):
            expected = ratings[token]
            assert batch.present_NA[row].tolist() == [value is not None for value in expected]
            for value, target in zip(expected, batch.ratings_NA[row].tolist(), strict=True):
                assert value is None or value == target
        for chosen, rejected, strength in zip(
            batch.chosen_B.tolist(), batch.rejected_B.tolist(), batch.strength_B.tolist(), strict=True
        ):
            pairs.append((tokens[chosen], tokens[rejected], strength))
    assert seen == set(ratings)
    assert sorted(pairs) == [(10, 11, 3.0), (14, 13, 1.0)]


def test_a_batch_without_pairs_has_empty_indices() -> None:
    (batch,) = batches([Item(Tree((1,), ((2,),)), ((1.0,),))], 100, pad_id=0)
    assert batch.chosen_B.shape == batch.rejected_B.shape == batch.strength_B.shape == (0,)
    assert batch.chosen_B.dtype == torch.long
