"""The one door from messages to token ids.

Everything that turns a conversation into ids goes through `Chat`: one chat template, one begin-of-text, one pinned
date, one place where a reward is read (the last token of the rendered conversation). Messages are text: a control token
that one of them spells is not read as one, see `rlhf.models.control_tokens`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlhf.config.schema import ModelConfig
from rlhf.core.errors import DataError, ModelError, RefusalError
from rlhf.core.records import Conversation, Message, is_unicode, tools_of
from rlhf.models.chat_ids import find_ids, model_ids, special_ids
from rlhf.models.chat_template import DATE, ChatTemplate, check_options, choose_template
from rlhf.models.control_tokens import ControlTokens
from rlhf.models.embedded import resolve_base
from rlhf.models.in_threads import ahead, each
from rlhf.models.reasoning import Rule, apply_rule, prompt_opening, template_effects
from rlhf.models.template_support import TemplateSupport

QUESTION = Message("user", "a")
ANSWERED = tuple((QUESTION, Message("assistant", answer)) for answer in ("b", "c d"))
"""Two conversations that differ in the answer alone: what both end with is the template's."""


class Chat:
    """A tokenizer, its chat template and the few ids a run needs. The tokenizer itself is not changed.

    Args:
        tokenizer: of transformers.
        stop_ids: ids that end an answer by the model's own configuration.
        rows: rows of the model's embedding; None where no model is known.
        chat_template: a file, or the name of one of the tokenizer's templates; None: the tokenizer's default one.
        chat_template_kwargs: options that the template is rendered with.
        reasoning: what conversations keep of reasoning, see `rlhf.models.reasoning`; prompts are as they are.

    Attributes:
        pad_id: fills masked places. It ends no answer where the tokenizer has such a token; where a mask decides, any id serves.
        closing_id: the last id of every conversation, where a reward is read.
        stop_ids: every id that ends an answer: the model's, the tokenizer's, and the template's.
        template: the chat template with its date and options.
        template_hash: the template's digest; stored with a model, checked on use.
        notes: what differs from the tokenizer's own settings, in sentences for people.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_ids: Sequence[int] = (),
        rows: int | None = None,
        template_date: str = DATE,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Rule = "keep",
    ) -> None:
        check_options(chat_template_kwargs or {}, tokenizer)
        text, name = choose_template(tokenizer, chat_template)
        self.notes: list[str] = []
        if name is not None:
            self.notes.append(f"Of the tokenizer's chat templates, {name!r} is used.")
        self.tokenizer, self.rows, self.reasoning = tokenizer, rows, reasoning
        self.template = ChatTemplate(text, template_date, dict(chat_template_kwargs or {}))
        self.template_hash = self.template.digest
        self._ids: dict[int, int] = {}
        self._support = TemplateSupport(self._probe)
        self.control = ControlTokens(tokenizer, {})
        ids = find_ids(tokenizer, text, stop_ids, rows, self._probes())
        self.closing_id, self.stop_ids, self.pad_id = ids.closing, ids.stops, ids.pad
        self.control = ControlTokens(tokenizer, ids.control)
        if ids.beyond:
            self.notes.append(f"Stop ids {ids.beyond} are ignored: the model's embedding has {rows} rows.")

    @classmethod
    def load(
        cls,
        base: str | Path,
        *,
        revision: str | None = None,
        tokenizer: Path | None = None,
        template_date: str = DATE,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Rule = "keep",
    ) -> Chat:
        """The chat of a model folder or Hugging Face name.

        Args:
            tokenizer: folder of a tokenizer that is used in place of the model's own, such as one saved beside an adapter.

        Raises:
            ModelError: no tokenizer there, no chat template, no token that ends an answer, or a token without an embedding.
        """
        from transformers import AutoTokenizer

        from rlhf.models.checkpoint_folder import model_folder  # torch

        base = resolve_base(str(model_folder(base)), revision)
        place, version = (base, revision) if tokenizer is None else (str(model_folder(tokenizer)), None)
        try:
            loaded = AutoTokenizer.from_pretrained(place, revision=version, trust_remote_code=False)
        except (OSError, ValueError) as error:
            from rlhf.models.bases import cannot_load  # torch

            cause = cannot_load(place, error)
            raise ModelError(
                f"No tokenizer could be loaded from {place!r}: {cause.found}",
                allowed="`embedded`, a folder with a tokenizer, or a Hugging Face name",
                fix=cause.fix,
            ) from error
        stop_ids, rows = model_ids(base, revision)
        return cls(
            loaded,
            stop_ids=stop_ids,
            rows=rows,
            template_date=template_date,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            reasoning=reasoning,
        )

    @classmethod
    def of(cls, model: ModelConfig, *, reasoning: Rule = "keep") -> Chat:
        """The chat of a configured base.

        Raises:
            ModelError: see `load`.
        """
        return cls.load(
            model.base,
            revision=model.revision,
            template_date=model.template_date,
            chat_template=model.chat_template,
            chat_template_kwargs=model.chat_template_kwargs,
            reasoning=reasoning,
        )

    @classmethod
    def beside(cls, folder: Path, card: Mapping[str, Any]) -> Chat:
        """The chat that an adapter was trained with: the tokenizer in its folder, the template's values on its card, the ids of its base.

        Raises:
            ModelError: see `load`.
        """
        try:
            resolve_base(card["base"], card.get("revision"))
        except ModelError as error:
            raise ModelError(
                f"The base {card['base']!r} of the adapter in {folder} could not be found: {error.found}",
                allowed=error.allowed,
                fix="put the base where it was, or change `base` in the adapter's reward.json or policy.json",
            ) from error
        return cls.load(
            card["base"],
            revision=card.get("revision"),
            tokenizer=folder,
            template_date=card["template_date"],
            chat_template_kwargs=card.get("chat_template_kwargs"),
            reasoning=card.get("reasoning", "keep"),
        )

    def card(self) -> dict[str, Any]:
        """What an adapter's card keeps, for `beside`."""
        return {
            "template_date": self.template.date,
            "template_hash": self.template_hash,
            "chat_template_kwargs": dict(self.template.kwargs),
        }

    def with_reasoning(self, rule: Rule) -> Chat:
        """The same chat with another rule for reasoning, such as that of a reward model on the base."""
        other = copy.copy(self)
        other.reasoning = rule
        return other

    @property
    def template_date(self) -> str:
        """The date that the template may write."""
        return self.template.date

    @property
    def scoring_pad_id(self) -> int | None:
        """The padding id of a sequence classifier, which reads its score at the last token that is another.

        None where padding could be confused with the end of a conversation: then transformers refuses a padded batch.
        """
        return None if self.pad_id == self.closing_id else self.pad_id

    def trainers_tokenizer(self) -> Any:
        """A copy of the tokenizer that names the padding id, for trainers of other libraries, which change what they get."""
        theirs = copy.deepcopy(self.tokenizer)
        theirs.pad_token = theirs.convert_ids_to_tokens(self.pad_id)
        return theirs

    def save_tokenizer(self, folder: Path, *, pad: bool = False) -> None:
        """Write the tokenizer with the template in use, so that whoever loads it gets the ids of this chat.

        Args:
            pad: name the padding id as the tokenizer's padding token, where that changes no id: for a classifier.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self.template.pinned()
        if pad and self.scoring_pad_id in self._special_ids:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.scoring_pad_id)
        tokenizer.save_pretrained(folder)

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
        return self._render([self._scored(messages)], add_generation_prompt=False)[0]

    def conversations_ids(self, conversations: Iterable[Conversation]) -> Iterator[list[int] | RefusalError]:
        """`conversation_ids` of many, or why there are none, in their order; made on all cores while the first are in use.

        Raises:
            DataError: a conversation does not end with the assistant's message.
        """
        return self._render_many(map(_answered, conversations), add_generation_prompt=False, scored=True)

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
        return self._special_ids | frozenset(self.control.ids.values())

    def spells_control_tokens(self, texts: Conversation | str) -> bool:
        """Whether a message spells a token that only the template may write; it is encoded as text."""
        return self.control.spelled_in(
            texts if isinstance(texts, str) else [message.as_dict() for message in texts]
        )

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return special_ids(self.tokenizer)

    def writes_date(self) -> bool:
        """Whether the template writes a date: whether another pinned date gives another prompt."""
        other = replace(self.template, date="1 Jan 2001")
        return any(
            self._text([[m.as_dict() for m in one]], add_generation_prompt=True)
            != self._text([[m.as_dict() for m in one]], add_generation_prompt=True, template=other)
            for one in ((QUESTION,), (Message("system", "s"), QUESTION))
            if self._takes(one)
        )

    def _takes(self, messages: Conversation) -> bool:
        try:
            self.prompt_ids(messages)
        except RefusalError:
            return False
        return True

    def _render_many(
        self, conversations: Iterable[Conversation], *, add_generation_prompt: bool, scored: bool = False
    ) -> Iterator[list[int] | RefusalError]:
        def render(some: Sequence[Conversation]) -> list[list[int]]:
            seen = [self._scored(one) for one in some] if scored else some
            return self._render(seen, add_generation_prompt=add_generation_prompt)

        return ahead(conversations, lambda some: each(some, render, RefusalError))

    def _scored(self, conversation: Conversation) -> Conversation:
        """A conversation as a reward model sees it."""
        return apply_rule(_answered(conversation), self.reasoning, self._opening)

    @functools.cached_property
    def _opening(self) -> str:
        return prompt_opening(self._render_text)

    def reasoning_effects(self) -> list[str]:
        """What the template does with reasoning."""
        return list(template_effects(self._render_text))

    def _render_text(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        return self._text([messages], add_generation_prompt=prompt)[0]

    def _render(
        self, conversations: Sequence[Conversation], *, add_generation_prompt: bool
    ) -> list[list[int]]:
        for conversation in conversations:
            if name := self._support.unrendered(conversation):
                raise RefusalError(f"with {name!r}, which the chat template does not render")
        tools = tools_of(conversations[0]) if len(conversations) == 1 else None
        if len(conversations) > 1 and any(
            map(tools_of, conversations)
        ):  # a template takes those of one at a time
            alone = [
                self._render([one], add_generation_prompt=add_generation_prompt) for one in conversations
            ]
            return [ids for rendered_ids in alone for ids in rendered_ids]
        plain = [[message.as_dict() for message in conversation] for conversation in conversations]
        spelled = [
            place for place, messages in enumerate(plain) if self.control.spelled_in([messages, tools])
        ]
        try:
            rendered = self._text(
                [self.control.protect(m) if p in spelled else m for p, m in enumerate(plain)],
                tools=self.control.protect(tools) if spelled else tools,
                add_generation_prompt=add_generation_prompt,
            )
            sequences = self.tokenizer(rendered, add_special_tokens=False, return_attention_mask=False)[
                "input_ids"
            ]
            for place in spelled:
                sequences[place] = self.control.encode(rendered[place])
        except TemplateError as error:
            why = error.message or type(error).__name__
            raise RefusalError(f"refused by the chat template: {why}") from None
        except (TypeError, UnicodeEncodeError):  # what tokenizers say of it
            if all(map(is_unicode, conversations)):
                raise
            raise RefusalError("not Unicode: half of a surrogate pair in a text") from None
        for ids in sequences:
            self._require_embedded(ids)
        # An id is one object, however often it stands in the data: a token then takes 8 bytes instead of 40.
        shared = self._ids.setdefault
        return [[shared(one, one) for one in ids] for ids in sequences]

    def _text(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool,
        template: ChatTemplate | None = None,
        tools: list[Any] | None = None,
    ) -> list[str]:
        template = template or self.template
        rendered: list[str] = self.tokenizer.apply_chat_template(
            conversations,
            tools=tools,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template.variables(),
        )
        return rendered

    def _probe(self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None) -> str:
        return self._text([messages], tools=tools, add_generation_prompt=False)[0]

    def _require_embedded(self, ids: Sequence[int]) -> None:
        """Make sure that the model has a row for each id; checked where the tokenizer has more tokens than that."""
        if self.rows is None or self._tokens <= self.rows or not ids or max(ids) < self.rows:
            return
        token = self.tokenizer.convert_ids_to_tokens(max(ids))
        raise ModelError(
            f"The tokenizer writes {token!r} as id {max(ids)}, and the model's embedding has {self.rows} rows.",
            allowed=f"ids 0 to {self.rows - 1}",
            fix="use the tokenizer the model was trained with; or add rows for its tokens, train them, and save the model",
        )

    def _probes(self) -> list[list[int]]:
        """Ids of an answered question, for two answers; none where the template refuses it."""
        try:
            return self._render(ANSWERED, add_generation_prompt=False)
        except RefusalError:
            return []

    @functools.cached_property
    def _tokens(self) -> int:
        return len(self.tokenizer)


def _answered(messages: Conversation) -> Conversation:
    if not messages or messages[-1].role != "assistant":
        raise DataError(
            "A conversation to be scored does not end with the assistant's message.",
            allowed="messages that end with {'role': 'assistant', 'content': …}",
        )
    return messages
