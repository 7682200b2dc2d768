from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf.core.errors import DataError, ModelError, RefusalError
from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.chat.threads import CHUNK

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}" + PLAIN
)
QUESTION = (Message("user", "What is 2 + 2?"),)
ANSWERED = (*QUESTION, Message("assistant", "4, I think ."))


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def small_tokenizer(*words: str, **special: str) -> Any:
    """A tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.chat_template = PLAIN
    return made


def test_a_prompt_is_the_beginning_of_its_conversation(tiny_chat: Chat) -> None:
    prompt, conversation = tiny_chat.prompt_ids(QUESTION), tiny_chat.conversation_ids(ANSWERED)
    assert conversation[: len(prompt)] == prompt
    text = tiny_chat.tokenizer.decode(conversation)
    assert text.endswith("<|im_start|>assistant\n4, I think .<|im_end|>\n")
    # The system turn and the two of the conversation begin once each; nothing is put before them again.
    assert text.count("<|im_start|>") == 3


def test_an_answer_is_decoded_as_it_was_written(tiny_chat: Chat) -> None:
    prompt, conversation = tiny_chat.prompt_ids(QUESTION), tiny_chat.conversation_ids(ANSWERED)
    answer = conversation[len(prompt) : -1]  # without the newline that the template puts after the turn
    assert answer[-1] in tiny_chat.stop_ids
    assert tiny_chat.decode(answer) == "4, I think ."  # the space before the full stop too


@pytest.mark.parametrize("messages", [(), QUESTION])
def test_only_an_answered_conversation_can_be_scored(tiny_chat: Chat, messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="assistant"):
        tiny_chat.conversation_ids(messages)


def test_stop_ids_come_from_config_tokenizer_and_template(tokenizer: Any) -> None:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert Chat(tokenizer).stop_ids == (end,)
    assert Chat(tokenizer, stop_ids=[7, end]).stop_ids == (7, end)
    tokenizer.eos_token = "<|endoftext|>"  # the template still ends its turns with <|im_end|>
    tokenizer.pad_token = "<|im_start|>"
    assert Chat(tokenizer).stop_ids == (pad, end)


def test_no_token_ends_an_answer() -> None:
    tokenizer = small_tokenizer("hello", "<pad>", pad_token="<pad>")
    with pytest.raises(ModelError, match="token"):
        Chat(tokenizer)


def test_no_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="chat template") as caught:
        Chat.load(tmp_path)
    assert "use the -Instruct version" in caught.value.fix


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'.*nowhere'") as caught:
        Chat.load(tmp_path / "nowhere")
    assert caught.value.fix


def test_the_date_is_pinned(tokenizer: Any) -> None:
    tokenizer.chat_template = DATED
    chat = Chat(tokenizer, template_date="26 Jul 2024")
    assert chat.tokenizer.decode(chat.prompt_ids(QUESTION)).startswith("26 Jul 2024<user>What is")
    # Another date is another template: its rewards are not comparable.
    hashes = {Chat(tokenizer, template_date=date).template_hash for date in ("26 Jul 2024", "27 Jul 2024")}
    assert len(hashes) == 2
    assert chat.template_hash in hashes


def test_another_template_has_another_hash(tokenizer: Any, tiny_chat: Chat) -> None:
    assert Chat(tokenizer).template_hash == tiny_chat.template_hash
    tokenizer.chat_template += " "
    assert Chat(tokenizer).template_hash != tiny_chat.template_hash


def many(count: int) -> list[tuple[Message, ...]]:
    """Conversations of many lengths and shapes; more than the threads take at a time."""
    texts = ["Tea.", "naïve 🙂 <|im_end|>", "  spaces \n\n and lines ", "words " * 70, "12,345.678", "日本語"]
    return [
        (
            *((Message("system", f"Number {number}."),) if number % 3 == 0 else ()),
            Message("user", texts[number % 6] + str(number)),
            *((Message("assistant", "So."), Message("user", "And?")) if number % 4 == 0 else ()),
            Message("assistant", texts[number % 5]),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 33, 500])
def test_many_at_once_are_the_same_ids_in_the_same_order(tiny_chat: Chat, count: int) -> None:
    conversations = many(count)
    assert list(tiny_chat.conversations_ids(conversations)) == [
        tiny_chat.conversation_ids(conversation) for conversation in conversations
    ]
    prompts = [conversation[:-1] for conversation in conversations]
    assert list(tiny_chat.prompts_ids(prompts)) == [tiny_chat.prompt_ids(prompt) for prompt in prompts]


def test_the_ids_are_those_of_the_rendered_text(tiny_chat: Chat) -> None:
    for ids, conversation in zip(tiny_chat.conversations_ids(many(40)), many(40), strict=True):
        if tiny_chat.spells_control_tokens(conversation):  # see test_control_tokens.py
            continue
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        text = tiny_chat.tokenizer.apply_chat_template(messages, tokenize=False)
        assert ids == tiny_chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_many_are_made_a_little_ahead_and_not_all_at_once(tiny_chat: Chat) -> None:
    requested = 0

    def endless() -> Iterator[tuple[Message, ...]]:
        nonlocal requested
        while True:
            requested += 1
            yield ANSWERED

    some = tiny_chat.conversations_ids(endless())
    assert [next(some) for _ in range(3)] == 3 * [tiny_chat.conversation_ids(ANSWERED)]
    some.close()  # type: ignore[attr-defined]
    assert requested <= CHUNK * (2 * (os.cpu_count() or 1) + 2)


def test_one_that_cannot_be_scored_stops_the_many(tiny_chat: Chat) -> None:
    with pytest.raises(DataError, match="assistant"):
        list(tiny_chat.conversations_ids([*many(50), QUESTION]))


def test_a_template_that_refuses_a_conversation_says_so(refusing_base: Path) -> None:
    chat = Chat.load(refusing_base)
    for ids in (chat.prompt_ids, chat.conversation_ids):
        with pytest.raises(RefusalError, match="System role not supported"):
            ids((Message("system", "Be kind."), *ANSWERED))


def test_half_of_a_surrogate_pair_is_no_text(tiny_chat: Chat) -> None:
    """JSON can contain a lone surrogate: `"\\ud83d"`."""
    half = (Message("user", "Tea \ud83d?"), Message("assistant", "Yes."))
    with pytest.raises(RefusalError, match="Unicode"):
        tiny_chat.conversation_ids(half)
    results = list(tiny_chat.conversations_ids([*many(40), half, *many(3)]))
    assert [i for i, ids in enumerate(results) if isinstance(ids, RefusalError)] == [40]


def test_a_fault_of_ours_is_not_taken_for_the_datas(tiny_chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("broken")

    monkeypatch.setattr(type(tiny_chat.tokenizer), "apply_chat_template", broken)
    with pytest.raises(TypeError, match="broken"):
        tiny_chat.conversation_ids(ANSWERED)


@pytest.mark.parametrize("refused", [[0], [3], [0, 1, 40, 99]])
def test_one_that_is_refused_spoils_no_other(
    refusing_base: Path, tiny_chat: Chat, refused: list[int]
) -> None:
    """The first is rendered alone, and the others in chunks."""
    conversations = [
        tuple(message for message in conversation if message.role != "system") for conversation in many(100)
    ]
    for place in refused:
        conversations[place] = (Message("system", "Be kind."), *conversations[place])
    results = list(Chat.load(refusing_base).conversations_ids(conversations))
    assert [i for i, ids in enumerate(results) if isinstance(ids, RefusalError)] == refused
    for ids, conversation in zip(results, conversations, strict=True):
        assert isinstance(ids, RefusalError) or ids == tiny_chat.conversation_ids(conversation)


def test_pieces_show_each_token_and_what_is_special(tiny_chat: Chat) -> None:
    ids = tiny_chat.conversation_ids((Message("user", "Tea 𒀀"), Message("assistant", "Yes.")))
    pieces = tiny_chat.pieces(ids)
    assert len(pieces) == len(ids)
    assert pieces[0] == "<|im_start|>" and "user" in pieces and pieces[-2:] == ["<|im_end|>", "\n"]
    assert not any("\ufffd" in piece for piece in pieces)  # bytes of a rare letter, each a token
    special = tiny_chat.special_ids()
    assert [piece for piece, token in zip(pieces, ids, strict=True) if token in special] == 3 * [
        "<|im_start|>",
        "<|im_end|>",
    ]


def test_a_tokenizer_of_vocabulary_and_merges_has_the_ids_of_the_fast_one(
    tiny_base: Path, tmp_path: Path
) -> None:
    fast = json.loads((tiny_base / "tokenizer.json").read_text("utf-8"))
    folder = Path(shutil.copytree(tiny_base, tmp_path / "slow"))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(fast["model"]["vocab"]), encoding="utf-8")
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in fast["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "Qwen2Tokenizer"}))
    prompt = (Message("user", "What is tea? 12 cups, naïve"),)
    assert Chat.load(str(folder)).prompt_ids(prompt) == Chat.load(str(tiny_base)).prompt_ids(prompt)


@pytest.mark.parametrize("broken", ["none", "json", "merges"])
def test_files_of_a_tokenizer_that_cannot_be_read(tiny_base: Path, tmp_path: Path, broken: str) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    file = folder / "tokenizer.json"
    model = json.loads(file.read_text("utf-8"))["model"]
    file.unlink()
    if broken == "json":
        file.write_text('{"version": "1.0", "model": {}}')
    elif broken == "merges":  # the tokenizers raise a plain Exception
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\nq")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**settings, "tokenizer_class": "Qwen2Tokenizer"})
        )
    with pytest.raises(ModelError) as caught:
        Chat.load(str(folder))
    assert str(folder) in caught.value.found and caught.value.fix
    assert ("tokenizer.json" in caught.value.fix) == (broken == "none")
