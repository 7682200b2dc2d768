"""Padding, ends of an answer, and ids without an embedding; the tokenizer itself stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers_of_kinds import CHATML, KINDS, PLAIN, make_tokenizer, write_base
from transformers import AutoTokenizer, GenerationConfig

from rlhf.core.errors import ModelError
from rlhf.core.records import Message
from rlhf.models.chat import Chat

CONVERSATION = (Message("user", "Is <unk> bread?"), Message("assistant", "No, a token: <unk>."))
PADS = {  # (padding, padding of a classifier): names of the tokens; worked out by hand
    "chatml": ("<|endoftext|>", "<|endoftext|>"),
    "llama3, no pad": ("<|finetune_right_pad_id|>", "<|finetune_right_pad_id|>"),
    "mistral, no pad": ("<unk>", "<unk>"),
    "gpt2, one special": ("<|endoftext|>", "<|endoftext|>"),  # ends answers, but no conversation
    "gpt2, pad is eos and closes": ("<|endoftext|>", None),
    "r1, turns not special": ("<|begin|>", "<|begin|>"),
    "qwen, <unk> is a word": ("<|endoftext|>", "<|endoftext|>"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_a_token_that_exists_and_the_tokenizer_is_not_changed(kind: str) -> None:
    tokenizer = make_tokenizer(**KINDS[kind])
    before = tokenizer.backend_tokenizer.to_str(), dict(tokenizer.special_tokens_map)
    chat = Chat(tokenizer, rows=len(tokenizer))
    pad, scoring = PADS[kind]
    assert tokenizer.convert_ids_to_tokens(chat.pad_id) == pad
    expected = None if scoring is None else tokenizer.convert_tokens_to_ids(scoring)
    assert chat.scoring_pad_id == expected
    assert chat.trainers_tokenizer().pad_token_id == chat.pad_id
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map) == before


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_gives_the_ids_that_were_trained_on(kind: str, pad: bool, tmp_path: Path) -> None:
    chat = Chat(make_tokenizer(**KINDS[kind]))
    ids = chat.conversation_ids(CONVERSATION), chat.prompt_ids(CONVERSATION[:1])
    chat.trainers_tokenizer()
    chat.save_tokenizer(tmp_path, pad=pad)
    again = Chat(AutoTokenizer.from_pretrained(tmp_path))
    assert (again.conversation_ids(CONVERSATION), again.prompt_ids(CONVERSATION[:1])) == ids
    assert again.template_hash == chat.template_hash
    if pad and chat.scoring_pad_id is not None:
        assert again.tokenizer.pad_token_id == chat.scoring_pad_id
    else:
        assert again.tokenizer.pad_token == chat.tokenizer.pad_token


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_an_answer_has_no_end_of_a_turn_even_where_it_is_not_special(kind: str) -> None:
    chat = Chat(make_tokenizer(**KINDS[kind]))
    text = chat.decode(chat.prompt_ids(CONVERSATION[:1])[-3:])
    for stop in chat.stop_ids:
        assert chat.decode([*chat.prompt_ids(CONVERSATION[:1])[-3:], stop]) == text


def test_padding_beyond_the_embedding_is_passed_over() -> None:
    tokenizer = make_tokenizer(**KINDS["gpt2, one special"])
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    chat = Chat(tokenizer, rows=rows)
    assert chat.pad_id == 0
    assert max(chat.conversation_ids((*CONVERSATION[:1], Message("assistant", "[PAD]")))) < rows


def test_a_template_that_writes_ids_beyond_the_embedding_is_refused_at_once() -> None:
    tokenizer = make_tokenizer(**{**KINDS["gpt2, one special"], "template": "<|new|>" + PLAIN})
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    with pytest.raises(ModelError) as caught:
        Chat(tokenizer, rows=rows)
    assert str(rows) in caught.value.found
    assert "<|new|>" in caught.value.found


def base(folder: Path, *, generation: Any = None, model: Any = None, eos: str = "<|endoftext|>") -> Path:
    """A ChatML base with the named ids in its two configs; both leave out the end of turn."""
    write_base(folder, make_tokenizer(**{**KINDS["chatml"], "eos": eos, "pad": "<|im_start|>"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": model}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        GenerationConfig(eos_token_id=generation).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("generation", "model", "stops"),
    [
        (None, None, (0, 2)),  # the tokenizer's and the template's
        (7, None, (7, 0, 2)),
        ([7, 8], 9, (7, 8, 9, 0, 2)),
        (None, [9, 2], (9, 2, 0)),
        ([7, 99_999], [2], (7, 2, 0)),  # an id without an embedding
    ],
)
def test_stop_ids_are_all_that_anything_names(
    generation: Any, model: Any, stops: tuple[int, ...], tmp_path: Path
) -> None:
    chat = Chat.load(base(tmp_path / "base", generation=generation, model=model))
    assert chat.stop_ids == stops
    ignored = generation == [7, 99_999]
    assert any("99999" in note for note in chat.notes) == ignored


def test_the_template_shows_an_end_of_turn_of_any_name() -> None:
    template = CHATML.replace("<|im_end|>", "<|over|>")
    tokenizer = make_tokenizer(special=["<|e|>", "<|im_start|>", "<|over|>"], eos="<|e|>", template=template)
    assert Chat(tokenizer).stop_ids == (0, 2)


def test_beside_an_adapter_the_ids_are_those_of_its_base(tmp_path: Path) -> None:
    """The folder of an adapter has no config, so nothing there names the base's ends of an answer."""
    trained = Chat.load(base(tmp_path / "base", generation=[7, 8], model=9))
    trained.save_tokenizer(tmp_path / "final")
    again = Chat.beside(tmp_path / "final", {"base": str(tmp_path / "base"), **trained.card()})
    assert (again.stop_ids, again.rows, again.pad_id) == (trained.stop_ids, trained.rows, trained.pad_id)
    assert again.template_hash == trained.template_hash


def test_a_corrupt_generation_config_is_not_passed_over(tmp_path: Path) -> None:
    base = write_base(tmp_path, make_tokenizer(**KINDS["chatml"]))
    (base / "generation_config.json").write_text("{ not json")
    with pytest.raises(ModelError) as caught:
        Chat.load(base)
    assert "generation_config.json" in caught.value.found


def test_a_syntax_error_of_the_template_is_found_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        Chat(make_tokenizer(**{**KINDS["chatml"], "template": "a\n{% for m in messages %}{{ m }"}))
    assert "line 2" in caught.value.found
