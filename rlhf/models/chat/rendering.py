"""Render conversations by the chat template and encode them, with messages as text only."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from rlhf.core.errors import ModelError, RefusalError
from rlhf.core.records import Conversation, is_unicode, tools_of
from rlhf.models.chat.control_tokens import ControlTokens
from rlhf.models.chat.template import ChatTemplate
from rlhf.models.chat.template_support import TemplateSupport


class Renderer:
    """A tokenizer and its chat template.

    Args:
        tokenizer: of transformers.
        rows: rows of the model's embedding; None if unknown.
        control: texts and ids of the control tokens.
    """

    def __init__(
        self, tokenizer: Any, template: ChatTemplate, rows: int | None, control: Mapping[str, int]
    ) -> None:
        self.tokenizer, self.template, self.rows = tokenizer, template, rows
        self.control = ControlTokens(tokenizer, control)
        self._ids: dict[int, int] = {}
        self._support = TemplateSupport(
            lambda messages, tools: self.texts([messages], tools=tools, add_generation_prompt=False)[0]
        )

    def with_control_tokens(self, control: Mapping[str, int]) -> Renderer:
        """The same renderer with other control tokens."""
        other = copy.copy(self)
        other.control = ControlTokens(self.tokenizer, control)
        return other

    def ids(self, conversations: Sequence[Conversation], *, add_generation_prompt: bool) -> list[list[int]]:
        """The ids of conversations.

        Raises:
            RefusalError: a conversation cannot be rendered or encoded.
            ModelError: the tokenizer produces an id without a row in the model's embedding, or the template
                has a syntax error.
        """
        for conversation in conversations:
            if name := self._support.unrendered(conversation):
                raise RefusalError(f"with {name!r}, which the chat template does not render")
        if len(conversations) > 1 and any(map(tools_of, conversations)):
            # apply_chat_template takes the tools of one conversation only.
            single = [self.ids([c], add_generation_prompt=add_generation_prompt) for c in conversations]
            return [ids for (ids,) in single]
        tools = tools_of(conversations[0]) if len(conversations) == 1 else None
        messages = [[message.as_dict() for message in conversation] for conversation in conversations]
        spelled = [i for i, plain in enumerate(messages) if self.control.spelled_in([plain, tools])]
        try:
            texts = self.texts(
                [self.control.protect(m) if i in spelled else m for i, m in enumerate(messages)],
                tools=self.control.protect(tools) if spelled else tools,
                add_generation_prompt=add_generation_prompt,
            )
            encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
            sequences = encoded["input_ids"]
            for i in spelled:
                sequences[i] = self.control.encode(texts[i])
        except TemplateSyntaxError as error:
            raise ModelError(
                f"The chat template has a syntax error in its line {error.lineno}: {error.message}.",
                allowed="a Jinja template",
                fix="correct it, or set model.chat_template=FILE.jinja",
            ) from None
        except TemplateError as error:
            reason = error.message or type(error).__name__
            raise RefusalError(f"refused by the chat template: {reason}") from None
        except (TypeError, UnicodeEncodeError):  # raised by tokenizers for a lone surrogate
            if all(map(is_unicode, conversations)):
                raise
            raise RefusalError("not Unicode: half of a surrogate pair in a text") from None
        for ids in sequences:
            self._require_rows(ids)
        # Share one int object per id: a token then takes 8 bytes instead of 40.
        shared = self._ids.setdefault
        return [[shared(token, token) for token in ids] for ids in sequences]

    def texts(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool,
        tools: list[Any] | None = None,
        date: str | None = None,
    ) -> list[str]:
        """The rendered texts of conversations.

        Args:
            date: instead of the template's date.
        """
        template = self.template if date is None else replace(self.template, date=date)
        rendered: list[str] = self.tokenizer.apply_chat_template(
            conversations,
            tools=tools,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template.variables(),
        )
        return rendered

    def _require_rows(self, ids: Sequence[int]) -> None:
        """Require a row of the embedding for each id; checked if the tokenizer has more tokens than rows."""
        if self.rows is None or self._tokens <= self.rows or not ids or max(ids) < self.rows:
            return
        token = self.tokenizer.convert_ids_to_tokens(max(ids))
        raise ModelError(
            f"The tokenizer encodes {token!r} as id {max(ids)}, but the model's embedding has {self.rows} "
            "rows.",
            allowed=f"ids 0 to {self.rows - 1}",
            fix="use the tokenizer the model was trained with; or add rows for its tokens, train them, and "
            "save the model",
        )

    @functools.cached_property
    def _tokens(self) -> int:
        return len(self.tokenizer)
