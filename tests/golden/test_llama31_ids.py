"""Llama-3.1 to the id: what `Chat` makes of a conversation against Meta's own encoder and turns written out
by hand.

llama31_ids.json keeps the ids. To add a conversation, write its messages there, and take its ids from the
failure of the first test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers.utils import chat_template_utils

from rlhf.core.records import Message
from rlhf.kernels.packing import Tree, pack
from rlhf.models.chat import Chat

BOS, PAD, HEADER, END_OF_HEADER, EOT = 128_000, 128_004, 128_006, 128_007, 128_009
STOPS = (128_001, 128_008, 128_009)
GOLDEN = json.loads((Path(__file__).parent / "llama31_ids.json").read_text(encoding="utf-8"))
CONVERSATIONS = {conversation["name"]: conversation for conversation in GOLDEN["conversations"]}
QUESTION = (Message("user", "What is 2 + 2?"),)

Oracle = Callable[..., list[int]]
named = pytest.mark.parametrize("name", CONVERSATIONS)


def messages(name: str) -> tuple[Message, ...]:
    return tuple(Message(message["role"], message["content"]) for message in CONVERSATIONS[name]["messages"])


@named
def test_kept_ids_are_those_of_metas_encoder(name: str, ids_by_hand: Oracle) -> None:
    assert CONVERSATIONS[name]["ids"] == ids_by_hand(CONVERSATIONS[name]["messages"])


@named
def test_a_conversation(name: str, llama31_chat: Chat) -> None:
    assert llama31_chat.conversation_ids(messages(name)) == CONVERSATIONS[name]["ids"]


@named
def test_a_prompt(name: str, llama31_chat: Chat, ids_by_hand: Oracle) -> None:
    asked = CONVERSATIONS[name]["messages"][:-1]
    prompt = llama31_chat.prompt_ids(messages(name)[:-1])
    assert prompt == ids_by_hand(asked, prompt=True)
    assert CONVERSATIONS[name]["ids"][: len(prompt)] == prompt


def test_many_at_once_are_the_same(llama31_chat: Chat) -> None:
    names = [*CONVERSATIONS] * 8
    made = llama31_chat.conversations_ids(messages(name) for name in names)
    assert list(made) == [CONVERSATIONS[name]["ids"] for name in names]


def test_one_begin_of_text_though_the_tokenizer_adds_its_own(llama31_chat: Chat) -> None:
    assert llama31_chat.tokenizer("2")["input_ids"] == [BOS, 17]
    for conversation in CONVERSATIONS:
        ids = llama31_chat.conversation_ids(messages(conversation))
        assert ids[0] == BOS
        assert ids.count(BOS) == 1


def test_special_ids(llama31_chat: Chat) -> None:
    vocabulary = llama31_chat.tokenizer.get_vocab()
    assert len(llama31_chat.tokenizer) == len(vocabulary) == 128_256
    assert set(llama31_chat.stop_ids) == set(STOPS)
    assert llama31_chat.pad_id == PAD
    assert llama31_chat.tokenizer.pad_token_id is None  # as Meta's is
    assert PAD not in llama31_chat.stop_ids
    assert vocabulary["<|python_tag|>"] == 128_010
    assert vocabulary["<|reserved_special_token_2|>"] == 128_005
    assert vocabulary["<|reserved_special_token_247|>"] == 128_255
    assert llama31_chat.notes == []


def test_stop_ids_without_a_generation_config(llama31_chat: Chat) -> None:
    # The end of a message stands in the template alone, the end of the text nowhere: it is the config's to
    # name.
    assert set(Chat(llama31_chat.tokenizer).stop_ids) == {128_008, 128_009}


@named
def test_the_reward_is_read_at_the_end_of_the_answer(name: str, llama31_chat: Chat) -> None:
    ids = llama31_chat.conversation_ids(messages(name))
    assert ids[-1] == EOT
    neighbour = llama31_chat.conversation_ids(messages("one turn"))
    trees = [Tree.of_sequences([ids]), Tree.of_sequences([neighbour])]
    (batch,) = pack(trees, 2 * (len(ids) + len(neighbour)), pad_id=llama31_chat.pad_id)
    rows_N, columns_N = batch.last_tokens_N
    assert torch.equal(batch.ids_RT[rows_N, columns_N], torch.tensor([EOT, EOT]))
    # The header is in the row once, for both; a position is that in the conversation alone.
    assert batch.positions_RT[rows_N, columns_N].tolist() == [len(ids) - 1, len(neighbour) - 1]
    turns = len(messages(name)) + (messages(name)[0].role != "system")  # a system turn is written in any case
    assert ids.count(EOT) == turns
    assert batch.branch_RT[rows_N, columns_N].tolist() == [0, 1]


def test_an_answer_is_decoded_as_it_was_sampled(llama31_chat: Chat) -> None:
    ids = llama31_chat.conversation_ids(messages("one turn"))
    start = len(llama31_chat.prompt_ids(QUESTION))
    assert (
        llama31_chat.decode(ids[start:]) == "4, I think ."
    )  # with the space, though the tokenizer would clean up


@pytest.fixture
def in_2031(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 5, 17, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.usefixtures("in_2031")
@pytest.mark.parametrize("template", ["llama3_1.jinja", "llama3_2.jinja"])
def test_the_day_changes_nothing(
    template: str, llama31_chat: Chat, ids_by_hand: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = llama31_chat.tokenizer
    source = Path(trl.__file__).parent / "chat_templates" / template
    monkeypatch.setattr(tokenizer, "chat_template", source.read_text(encoding="utf-8"))
    asked = [{"role": "user", "content": "What is 2 + 2?"}]
    # Left to itself, the later template writes the day: the clock here is the one it reads.
    alone = tokenizer.apply_chat_template(asked, tokenize=False)
    assert ("Today Date: 17 May 2031" in alone) == (template == "llama3_2.jinja")
    for date in ("26 Jul 2024", "01 Jan 2025"):
        chat = Chat(tokenizer, stop_ids=STOPS, template_date=date)
        assert chat.prompt_ids(QUESTION) == ids_by_hand(asked, date=date, prompt=True)


def test_the_template_hash_is_kept(llama31_chat: Chat, tmp_path: Path) -> None:
    assert llama31_chat.template_hash == GOLDEN["template_hash"]
    llama31_chat.tokenizer.save_pretrained(tmp_path)  # as a run does into `final/`
    again = Chat.load(tmp_path)
    assert again.template_hash == GOLDEN["template_hash"]
    assert again.pad_id == PAD
    assert again.notes == []
    assert Chat(again.tokenizer, template_date="27 Jul 2024").template_hash != GOLDEN["template_hash"]
