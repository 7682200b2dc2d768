"""The one door from messages to token ids.

Everything that turns a conversation into ids goes through `Chat`: one chat template, one begin-of-text, one pinned
date, one place where a reward is read (the last token of the rendered conversation).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlhf.core.errors import DataError, ModelError, RefusalError
from rlhf.core.records import Conversation, is_unicode
from rlhf.models.embedded import resolve_base

# Ends of a turn that chat models sample without naming them in their generation config.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
# Tokens that may serve as padding where a tokenizer pads with its end of text.
FREE_FOR_PADDING = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<unk>")

TOGETHER = 32  # conversations that a thread turns into ids at a time


class Chat:
    """A tokenizer, its chat template and the few ids a run needs.

    Attributes:
        pad_id: padding; never equal to a stop id.
        stop_ids: every id that ends an answer: the generation config's, the tokenizer's, and the template's.
        template_hash: SHA-256 of the chat template with the pinned date; stored with a model, checked on use.
        notes: what was mended on loading, in sentences for people.
    """

    def __init__(
        self, tokenizer: Any, *, stop_ids: Sequence[int] = (), template_date: str = "26 Jul 2024"
    ) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template.",
                allowed="an instruct model, whose tokenizer says how messages become text",
                fix="use the -Instruct version of the model, or save a chat_template.jinja beside its tokenizer",
            )
        self.tokenizer = tokenizer
        self.template_date = template_date
        self._ids: dict[int, int] = {}
        self.notes: list[str] = []
        self.stop_ids = self._find_stop_ids(stop_ids)
        self.pad_id = self._find_pad_id()
        text = f"{tokenizer.chat_template}\n{template_date}"
        self.template_hash = hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(
        cls, base: str | Path, *, revision: str | None = None, template_date: str = "26 Jul 2024"
    ) -> Chat:
        """The chat of a model folder or Hugging Face name.

        Raises:
            ModelError: no tokenizer there, no chat template, or no token free for padding.
        """
        from transformers import AutoTokenizer, GenerationConfig

        base = resolve_base(str(base), revision)

        try:
            tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"No tokenizer could be loaded from {str(base)!r}: {str(error).splitlines()[0]}",
                allowed="`embedded`, a folder with a tokenizer, or a Hugging Face name",
                fix="check the spelling; for a gated model run `hf auth login` first",
            ) from error
        try:
            eos = GenerationConfig.from_pretrained(base, revision=revision).eos_token_id
        except OSError:  # a model need not have one
            eos = None
        stop_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return cls(tokenizer, stop_ids=stop_ids, template_date=template_date)

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Ids of a conversation that waits for the assistant's answer.

        Raises:
            RefusalError: it cannot become tokens.
        """
        return self._render([messages], add_generation_prompt=True)[0]

    def conversation_ids(self, messages: Conversation) -> list[int]:
        """Ids of a whole conversation; a reward model reads its score at the last of them.

        Raises:
            DataError: the conversation does not end with the assistant's message.
            RefusalError: it cannot become tokens.
        """
        return self._render([_answered(messages)], add_generation_prompt=False)[0]

    def conversations_ids(self, conversations: Iterable[Conversation]) -> Iterator[list[int] | RefusalError]:
        """`conversation_ids` of many, or why there are none, in their order; made on all cores while the first are in use.

        Raises:
            DataError: a conversation does not end with the assistant's message.
        """
        return self._render_many(map(_answered, conversations), add_generation_prompt=False)

    def prompts_ids(self, prompts: Iterable[Conversation]) -> Iterator[list[int] | RefusalError]:
        """`prompt_ids` of many, or why there are none, in their order; made on all cores while the first are in use."""
        return self._render_many(prompts, add_generation_prompt=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, special tokens included; bytes that are no text as the vocabulary has them."""
        alone = [str(self.tokenizer.decode([one])) for one in ids]
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [name if "\ufffd" in text else text for text, name in zip(alone, names, strict=True)]

    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no text: beginnings and ends of turns, padding and their like."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {one for one, token in added if token.special}

    def _render_many(
        self, conversations: Iterable[Conversation], *, add_generation_prompt: bool
    ) -> Iterator[list[int] | RefusalError]:
        # The tokenizer works outside Python's lock, so that threads are enough. They stay a little ahead, no more:
        # what is not used yet is held in memory.
        some = iter(conversations)
        threads = os.cpu_count() or 1
        ahead: deque[Future[list[list[int] | RefusalError]]] = deque()
        render = functools.partial(self._render_each, add_generation_prompt=add_generation_prompt)
        # The first one is rendered alone: it settles the tokenizer's state, which threads may only read.
        for first in itertools.islice(some, 1):
            yield from render([first])
        with ThreadPoolExecutor(threads) as pool:
            while chunk := list(itertools.islice(some, TOGETHER)):
                ahead.append(pool.submit(render, chunk))
                if len(ahead) > 2 * threads:
                    yield from ahead.popleft().result()
            for rendered in ahead:
                yield from rendered.result()

    def _render_each(
        self, conversations: Sequence[Conversation], *, add_generation_prompt: bool
    ) -> list[list[int] | RefusalError]:
        """Together, and only where the template refuses one of them, one by one."""
        try:
            return [*self._render(conversations, add_generation_prompt=add_generation_prompt)]
        except RefusalError as refusal:
            if len(conversations) == 1:
                return [refusal]
        return [
            found
            for one in conversations
            for found in self._render_each([one], add_generation_prompt=add_generation_prompt)
        ]

    def _render(
        self, conversations: Sequence[Conversation], *, add_generation_prompt: bool
    ) -> list[list[int]]:
        # Templates that write a date take it as `date_string`; the others ignore it.
        try:
            rendered = self.tokenizer.apply_chat_template(
                [
                    [{"role": message.role, "content": message.content} for message in conversation]
                    for conversation in conversations
                ],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=add_generation_prompt,
                tokenizer_kwargs={"return_attention_mask": False},
                date_string=self.template_date,
            )
        except TemplateError as error:
            why = error.message or type(error).__name__
            raise RefusalError(f"refused by the chat template: {why}") from None
        except (TypeError, UnicodeEncodeError):  # what tokenizers say of it
            if all(map(is_unicode, conversations)):
                raise
            raise RefusalError("not Unicode: half of a surrogate pair in a text") from None
        # An id is one object, however often it stands in the data: a token then takes 8 bytes instead of 40.
        shared = self._ids.setdefault
        return [[shared(one, one) for one in ids] for ids in rendered["input_ids"]]

    def _find_stop_ids(self, named: Sequence[int]) -> tuple[int, ...]:
        found = list(named)
        if self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        vocabulary = self.tokenizer.get_vocab()
        found += [
            vocabulary[token]
            for token in TURN_ENDS
            if token in vocabulary and token in self.tokenizer.chat_template
        ]
        if not found:
            raise ModelError(
                "Neither the generation config, the tokenizer nor the template names a token that ends an answer.",
                fix="set eos_token_id in the model's generation_config.json",
            )
        return tuple(dict.fromkeys(found))

    def _find_pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        if pad is not None and pad not in self.stop_ids:
            return int(pad)
        vocabulary = self.tokenizer.get_vocab()
        for token in FREE_FOR_PADDING:
            if token in vocabulary and vocabulary[token] not in self.stop_ids:
                was = (
                    "none" if pad is None else repr(self.tokenizer.pad_token) + ", which also ends an answer"
                )
                self.notes.append(f"The tokenizer's padding token was {was}; {token!r} is used instead.")
                self.tokenizer.pad_token = token
                return int(vocabulary[token])
        raise ModelError(
            "The tokenizer pads with the token that ends an answer, and has no free special token.",
            allowed=f"a padding token that is not one of the stop ids {self.stop_ids}",
            fix=f"add one of {', '.join(FREE_FOR_PADDING)} to the tokenizer and save it beside the model",
        )


def _answered(messages: Conversation) -> Conversation:
    if not messages or messages[-1].role != "assistant":
        raise DataError(
            "A conversation to be scored does not end with the assistant's message.",
            allowed="messages that end with {'role': 'assistant', 'content': …}",
        )
    return messages
