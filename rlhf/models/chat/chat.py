"""Convert messages to token ids.

Everything that turns a conversation into ids goes through `Chat`: one chat template, one begin-of-text token,
one pinned date, one position where a reward is read (the last token of the rendered conversation). The text
of a message never becomes a control token, see `rlhf.models.chat.control_tokens`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.schema import ModelConfig, ReasoningRule
from rlhf.core.errors import DataError, ModelError, RefusalError
from rlhf.core.hub import CARDS
from rlhf.core.records import Conversation, Message
from rlhf.models.chat.control_tokens import ControlTokens
from rlhf.models.chat.ids import find_ids, model_ids, special_ids
from rlhf.models.chat.reasoning import apply_rule, prompt_opening, template_effects
from rlhf.models.chat.rendering import Renderer
from rlhf.models.chat.template import DATE, ChatTemplate, check_options, choose_template
from rlhf.models.chat.threads import ahead, each
from rlhf.models.embedded import resolve_base

QUESTION = Message("user", "a")
ANSWERED = tuple((QUESTION, Message("assistant", answer)) for answer in ("b", "c d"))
"""Two conversations that differ only in the answer: their common suffix comes from the template."""


class Chat:
    """A tokenizer, its chat template and the ids a run needs. The tokenizer is not modified.

    Args:
        tokenizer: of transformers.
        stop_ids: ids that end an answer, from the model's configuration.
        rows: rows of the model's embedding; None if the model is unknown.
        chat_template: a file, or the name of a template of the tokenizer; None: its default template.
        chat_template_kwargs: options of the template.
        reasoning: the rule for reasoning in conversations, see `rlhf.models.chat.reasoning`; prompts are
            unchanged.

    Attributes:
        pad_id: the padding id. Not a stop id if the tokenizer has such a token; masked tokens may have any
            id.
        closing_id: the last id of every conversation, where a reward is read.
        stop_ids: every id that ends an answer: of the model, the tokenizer and the template.
        template: the chat template with its date and options.
        template_hash: the digest of the template; stored with a model, checked on use.
        notes: messages for the user about differences from the tokenizer's settings.
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
        reasoning: ReasoningRule = "keep",
    ) -> None:
        check_options(chat_template_kwargs or {}, tokenizer)
        text, name = choose_template(tokenizer, chat_template)
        self.notes: list[str] = []
        if name is not None:
            self.notes.append(f"The chat template {name!r} of the tokenizer's templates is used.")
        self.tokenizer, self.rows, self.reasoning = tokenizer, rows, reasoning
        self.template = ChatTemplate(text, template_date, dict(chat_template_kwargs or {}))
        self.template_hash = self.template.digest
        renderer = Renderer(tokenizer, self.template, rows, control={})
        ids = find_ids(tokenizer, text, stop_ids, rows, _probes(renderer))
        self.closing_id, self.stop_ids, self.pad_id = ids.closing, ids.stops, ids.pad
        self._renderer = renderer.with_control_tokens(ids.control)
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
        reasoning: ReasoningRule = "keep",
    ) -> Chat:
        """The chat of a model folder or Hugging Face name.

        Args:
            tokenizer: folder of another tokenizer, such as one saved with an adapter.

        Raises:
            ModelError: there is no tokenizer, chat template or stop token, or a token has no embedding.
        """
        from transformers import AutoTokenizer

        from rlhf.models.checkpoint_folder import model_folder  # imports torch

        base = resolve_base(str(model_folder(base)), revision)
        source, version = (base, revision) if tokenizer is None else (str(model_folder(tokenizer)), None)
        try:
            loaded = AutoTokenizer.from_pretrained(source, revision=version, trust_remote_code=False)
        except Exception as error:  # the Rust tokenizers raise no narrower class
            from rlhf.models.loading_errors import cannot_load  # imports torch

            cause = cannot_load(source, error)
            raise ModelError(
                f"No tokenizer could be loaded from {source!r}: {cause.found}",
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
    def of(cls, model: ModelConfig, *, reasoning: ReasoningRule = "keep") -> Chat:
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
        """The chat an adapter was trained with.

        Its folder's tokenizer, its card's template options, its base's ids.

        Raises:
            ModelError: see `load`.
        """
        try:
            resolve_base(card["base"], card.get("revision"))
        except ModelError as error:
            fix = error.fix
            if folder.is_dir():
                name = next((name for name in CARDS if (folder / name).exists()), "its card")
                fix += f"; or write the base's path as `base` into {folder / name}"
            raise ModelError(
                f"The base of {folder}, {card['base']!r}, could not be found: {error.found}",
                allowed=error.allowed,
                fix=fix,
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
        """The fields of an adapter's card that `beside` reads."""
        return {
            "template_date": self.template.date,
            "template_hash": self.template_hash,
            "chat_template_kwargs": dict(self.template.kwargs),
        }

    def with_reasoning(self, rule: ReasoningRule) -> Chat:
        """The same chat with another rule for reasoning, such as a reward model's."""
        other = copy.copy(self)
        other.reasoning = rule
        return other

    @property
    def control(self) -> ControlTokens:
        """The control tokens: only the template may write them."""
        return self._renderer.control

    @property
    def template_date(self) -> str:
        """The pinned date of the template."""
        return self.template.date

    @property
    def scoring_pad_id(self) -> int | None:
        """The padding id of a sequence classifier, which reads its score at the last unpadded token.

        None if padding could be confused with the end of a conversation; transformers then refuses padded
        batches.
        """
        return None if self.pad_id == self.closing_id else self.pad_id

    def trainers_tokenizer(self) -> Any:
        """A copy of the tokenizer with the padding token set, for trainers that modify it."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.pad_id)
        return tokenizer

    def save_tokenizer(self, folder: Path, *, pad: bool = False) -> None:
        """Write the tokenizer with the pinned template, so that others who load it get the same ids.

        Args:
            pad: also set the padding token, if that changes no ids; for classifiers.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self.template.pinned()
        if pad and self.scoring_pad_id in self._special_ids:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.scoring_pad_id)
        tokenizer.save_pretrained(folder)

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Ids of a prompt, up to where the assistant's answer begins.

        Raises:
            RefusalError: it cannot be rendered or encoded.
        """
        return self._renderer.ids([messages], add_generation_prompt=True)[0]

    def conversation_ids(self, messages: Conversation) -> list[int]:
        """Ids of a complete conversation; a reward model reads its score at the last one.

        Raises:
            DataError: the conversation does not end with the assistant's message.
            RefusalError: it cannot be rendered or encoded.
        """
        return self._renderer.ids([self._scored(messages)], add_generation_prompt=False)[0]

    def conversations_ids(self, conversations: Iterable[Conversation]) -> Iterator[list[int] | RefusalError]:
        """`conversation_ids` of many, or the refusal, in order; computed ahead on all cores.

        Raises:
            DataError: a conversation does not end with the assistant's message.
        """
        return self._render_many(map(_answered, conversations), add_generation_prompt=False, scored=True)

    def prompts_ids(self, prompts: Iterable[Conversation]) -> Iterator[list[int] | RefusalError]:
        """`prompt_ids` of many, or the refusal, in order; computed ahead on all cores."""
        return self._render_many(prompts, add_generation_prompt=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer without special tokens, and without ids that end an answer.

        A tokenizer may have the template's end of a turn as an added token that is not special.
        """
        kept = [token for token in ids if token not in self.stop_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, special tokens included; incomplete UTF-8 as the vocabulary spells it."""
        texts = [str(self.tokenizer.decode([token])) for token in ids]
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [name if "\ufffd" in text else text for text, name in zip(texts, names, strict=True)]

    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that are not text: start and end of turns, padding and the like."""
        return self._special_ids | frozenset(self.control.ids.values())

    def spells_control_tokens(self, texts: Conversation | str) -> bool:
        """Whether a message contains the text of a control token, which is encoded as text."""
        return self.control.spelled_in(
            texts if isinstance(texts, str) else [message.as_dict() for message in texts]
        )

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return special_ids(self.tokenizer)

    def writes_date(self) -> bool:
        """Whether the template writes a date: whether another date changes a prompt."""

        def prompt(conversation: Conversation, date: str | None = None) -> list[str]:
            messages = [message.as_dict() for message in conversation]
            return self._renderer.texts([messages], add_generation_prompt=True, date=date)

        return any(
            prompt(conversation) != prompt(conversation, date="1 Jan 2001")
            for conversation in ((QUESTION,), (Message("system", "s"), QUESTION))
            if self._accepts(conversation)
        )

    def _accepts(self, messages: Conversation) -> bool:
        try:
            self.prompt_ids(messages)
        except RefusalError:
            return False
        return True

    def _render_many(
        self, conversations: Iterable[Conversation], *, add_generation_prompt: bool, scored: bool = False
    ) -> Iterator[list[int] | RefusalError]:
        def render(chunk: Sequence[Conversation]) -> list[list[int]]:
            inputs = [self._scored(conversation) for conversation in chunk] if scored else chunk
            return self._renderer.ids(inputs, add_generation_prompt=add_generation_prompt)

        return ahead(conversations, lambda chunk: each(chunk, render, RefusalError))

    def _scored(self, conversation: Conversation) -> Conversation:
        """The conversation after the rule for reasoning."""
        return apply_rule(_answered(conversation), self.reasoning, self._opening)

    @functools.cached_property
    def _opening(self) -> str:
        return prompt_opening(self._render_text)

    def reasoning_effects(self) -> list[str]:
        """What the template does with reasoning, see `template_effects`."""
        return list(template_effects(self._render_text))

    def _render_text(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        return self._renderer.texts([messages], add_generation_prompt=prompt)[0]


def _probes(renderer: Renderer) -> list[list[int]]:
    """Ids of a question with two answers; none if the template refuses it."""
    try:
        return renderer.ids(ANSWERED, add_generation_prompt=False)
    except RefusalError:
        return []


def _answered(messages: Conversation) -> Conversation:
    if not messages or messages[-1].role != "assistant":
        raise DataError(
            "A conversation to score does not end with the assistant's message.",
            allowed="conversations that end with {'role': 'assistant', 'content': …}",
        )
    return messages
