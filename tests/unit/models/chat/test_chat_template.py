from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers_of_kinds import CHATML, KINDS, make_tokenizer
from transformers import AutoTokenizer

from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.records import Message
from rlhf.models.chat import Chat
from rlhf.models.chat.template import ChatTemplate, choose_template, keys_to_set

QUESTION = (Message("user", "Tea?"),)
TODAY = "{{ '<|im_start|>system\\nToday is ' + strftime_now('%Y/%m/%d') + '.<|im_end|>\\n' }}" + CHATML
LIKE_LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}{{ date_string }}\n" + CHATML
)
OPTION = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)


def chatml(template: str | dict[str, str]) -> Any:
    return make_tokenizer(**{**KINDS["chatml"], "template": template})


def loaded_plainly(folder: Path, messages: tuple[Message, ...], **kwargs: Any) -> list[int]:
    """The ids that anybody gets who loads the folder's tokenizer with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], tokenize=True, return_dict=True, **kwargs
    )
    return list(encoded["input_ids"])


@pytest.mark.parametrize(
    ("template", "written"), [(TODAY, "Today is 2003/02/01."), (LIKE_LLAMA, "1 Feb 2003\n")]
)
def test_every_date_is_pinned(template: str, written: str, tmp_path: Path) -> None:
    chat = Chat(chatml(template), template_date="1 Feb 2003")
    ids = chat.prompt_ids(QUESTION)
    text = chat.tokenizer.decode(ids)
    assert written in text
    assert datetime.now().strftime("%Y/%m/%d") not in text
    assert chat.writes_date()
    chat.save_tokenizer(tmp_path)
    assert loaded_plainly(tmp_path, QUESTION, add_generation_prompt=True) == ids
    again = Chat(AutoTokenizer.from_pretrained(tmp_path), template_date="1 Feb 2003")
    assert again.template_hash == chat.template_hash


def test_a_template_without_a_date_writes_none() -> None:
    assert not Chat(chatml(CHATML)).writes_date()


def test_a_date_that_cannot_be_formatted_is_an_error_where_one_is_formatted() -> None:
    assert Chat(chatml(CHATML), template_date="some day").prompt_ids(QUESTION)
    with pytest.raises(ModelError) as caught:
        Chat(chatml(TODAY), template_date="some day")
    assert "model.template_date=" in caught.value.fix


def test_options_reach_the_template_and_are_saved_with_it(tmp_path: Path) -> None:
    off = Chat(chatml(OPTION), chat_template_kwargs={"enable_thinking": False})
    on = Chat(chatml(OPTION))
    assert off.tokenizer.decode(off.prompt_ids(QUESTION)).endswith("<think>\n\n</think>\n\n")
    assert "think" not in on.tokenizer.decode(on.prompt_ids(QUESTION))
    assert off.template_hash != on.template_hash
    off.save_tokenizer(tmp_path)
    assert loaded_plainly(tmp_path, QUESTION, add_generation_prompt=True) == off.prompt_ids(QUESTION)
    # Whoever sets the option himself gets what he sets.
    assert loaded_plainly(
        tmp_path, QUESTION, add_generation_prompt=True, enable_thinking=True
    ) == on.prompt_ids(QUESTION)


@pytest.mark.parametrize("name", ["date_string", "messages", "add_generation_prompt", "strftime_now"])
def test_an_option_hides_no_name_of_ours(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Chat(chatml(CHATML), chat_template_kwargs={name: "x"})
    assert name in caught.value.found


@pytest.mark.parametrize(
    "value", [None, True, 3, 1.5, 'quote " and \\ and\nline', "naïve 🙂", ["a", None, False], {"k": ["v"]}]
)
def test_options_are_written_as_jinja_reads_them(value: Any, tmp_path: Path) -> None:
    template = "{{ option | tojson }}" + CHATML
    chat = Chat(chatml(template), chat_template_kwargs={"option": value})
    chat.save_tokenizer(tmp_path)
    ids = loaded_plainly(tmp_path, QUESTION)
    assert chat.tokenizer.decode(ids).startswith(json.dumps(value, ensure_ascii=False) + "<|im_start|>")


def test_leading_white_space_of_a_template_is_kept(tmp_path: Path) -> None:
    template = "\n  {% set x = 1 %}\n{{ date_string }}" + CHATML
    chat = Chat(chatml(template))
    chat.save_tokenizer(tmp_path)
    assert loaded_plainly(tmp_path, QUESTION, add_generation_prompt=True) == chat.prompt_ids(QUESTION)


NAMED = {"default": CHATML, "tool_use": CHATML.replace("\n", "\n\n")}


def test_of_named_templates_the_default_is_used_and_saved(tmp_path: Path) -> None:
    chat = Chat(chatml(NAMED))
    assert chat.template.text == CHATML
    assert any("'default'" in note for note in chat.notes)
    assert chat.stop_ids == Chat(chatml(CHATML)).stop_ids
    chat.save_tokenizer(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML


def test_another_one_is_named_by_a_key() -> None:
    assert Chat(chatml(NAMED), chat_template="tool_use").template.text == NAMED["tool_use"]


def test_without_a_default_the_key_must_name_one() -> None:
    with pytest.raises(ModelError) as caught:
        Chat(chatml({"rag": CHATML, "tool_use": CHATML}))
    assert (caught.value.allowed, caught.value.fix) == ("rag, tool_use", "model.chat_template=rag")
    assert caught.value.exit_code == 2
    assert Chat(chatml({"rag": CHATML, "tool_use": CHATML}), chat_template="rag").template.text == CHATML
    assert Chat(chatml({"rag": CHATML})).template.text == CHATML  # there is no choice


def test_a_template_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "other.jinja"
    file.write_text(TODAY)
    assert Chat(chatml(CHATML), chat_template=str(file)).template.text == TODAY
    file.write_text(ChatTemplate(TODAY).pinned())
    assert choose_template(chatml(CHATML), str(file))[0] == TODAY


def test_a_template_that_is_neither_file_nor_name() -> None:
    with pytest.raises(ModelError) as caught:
        Chat(chatml(NAMED), chat_template="tool_us")
    assert "tool_use" in f"{caught.value.found} {caught.value.allowed}"
    assert "model.chat_template=" in caught.value.fix


def test_the_keys_that_make_two_templates_one(tmp_path: Path) -> None:
    """Each fix is tried: with the keys set, the digests are the same."""
    there = Chat(chatml(OPTION), template_date="1 Feb 2003", chat_template_kwargs={"enable_thinking": False})
    here = ChatTemplate(CHATML)
    keys = keys_to_set(here, there.card(), tmp_path)
    assert keys == [
        "model.template_date='1 Feb 2003'",
        "model.chat_template_kwargs='{\"enable_thinking\": false}'",
        f"model.chat_template={tmp_path}/chat_template.jinja",
    ]
    there.save_tokenizer(tmp_path)
    again = Chat(
        chatml(CHATML),
        template_date="1 Feb 2003",
        chat_template=str(tmp_path / "chat_template.jinja"),
        chat_template_kwargs={"enable_thinking": False},
    )
    assert again.template_hash == there.template_hash
    assert keys_to_set(again.template, there.card(), tmp_path) == []
