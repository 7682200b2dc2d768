"""The ids that a chat needs besides those of its text: ends of an answer, padding, and control tokens."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.core.errors import ModelError
from rlhf.models.chat.control_tokens import REASONING_TAGS

# Ends of a turn that a template may write where a conversation with plain answers does not show them.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
# Tokens made for padding, the best first.
PADDING = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>")


@dataclass(frozen=True)
class ChatIds:
    """Ids by what they do.

    Attributes:
        stops: end an answer.
        closing: the last id of every conversation; None where the template refuses an answered question.
        pad: fills masked places.
        control: what only a template may write, by its text.
        beyond: stop ids without a row in the embedding, which are left out.
    """

    stops: tuple[int, ...]
    closing: int | None
    pad: int
    control: dict[str, int]
    beyond: list[int]


def find_ids(
    tokenizer: Any,
    template: str,
    stop_ids: Sequence[int],
    rows: int | None,
    probes: Sequence[Sequence[int]],
) -> ChatIds:
    """The ids of a tokenizer and a template.

    Args:
        stop_ids: ids that end an answer by the model's own configuration.
        rows: of the model's embedding, where that is known.
        probes: ids of two conversations that differ in the answer alone; or none.

    Raises:
        ModelError: nothing ends an answer.
    """
    closing = probes[0][-1] if probes else None
    added = tokenizer.added_tokens_decoder
    found = [*stop_ids, *_template_stops(tokenizer, template, probes)]
    beyond = sorted({one for one in found if rows is not None and one >= rows})
    stops = tuple(one for one in dict.fromkeys(found) if one not in beyond)
    if not stops:
        raise ModelError(
            "Neither the generation config, the model's config, the tokenizer nor the template names a token that "
            "ends an answer.",
            fix="set eos_token_id in the model's generation_config.json",
        )
    written = {one for ids in probes for one in ids if one in added}
    marks = special_ids(tokenizer) | written | {one for one in stops if one in added}
    names = {str(tokenizer.convert_ids_to_tokens(one)): one for one in sorted(marks)}
    control = {name: one for name, one in names.items() if name and name not in REASONING_TAGS}
    return ChatIds(stops, closing, _padding(tokenizer, stops, closing, rows), control, beyond)


def _template_stops(tokenizer: Any, template: str, probes: Sequence[Sequence[int]]) -> list[int]:
    """The tokenizer's end of text, and the ends of a turn that the template writes."""
    vocabulary = tokenizer.get_vocab()
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    named = [vocabulary[one] for one in TURN_ENDS if one in vocabulary and one in template]
    # What the template writes after any answer begins with the end of its turn.
    tail = [one for one in _common_end(*probes) if one in tokenizer.added_tokens_decoder] if probes else []
    return [*own, *named, *tail[:1]]


def _padding(tokenizer: Any, stops: Sequence[int], closing: int | None, rows: int | None) -> int:
    """The tokenizer's own padding, or another token that exists and ends nothing; where there is none, an end of text."""
    special, vocabulary = special_ids(tokenizer), tokenizer.get_vocab()
    own = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    named = [vocabulary[one] for one in PADDING if one in vocabulary and vocabulary[one] in special]
    usable = [one for one in (*own, *named, *sorted(special)) if rows is None or one < rows]
    free = [one for one in usable if one not in stops and one != closing]
    return int((free or usable or stops)[0])


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that a tokenizer marks as special."""
    added = {one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def model_ids(base: str, revision: str | None) -> tuple[list[int], int | None]:
    """Ids that end an answer by generation_config.json and config.json, and the rows of the embedding; of a tokenizer alone none."""
    from transformers import AutoConfig, GenerationConfig

    found: list[int] = []
    rows: int | None = None
    with contextlib.suppress(OSError):  # a model need not have one
        found += _as_list(GenerationConfig.from_pretrained(base, revision=revision).eos_token_id)
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    except (
        OSError,
        ValueError,
    ):  # a tokenizer by itself, or an architecture that the loading of the model names
        return found, rows
    text = config.get_text_config()
    for part in (config, text):
        found += _as_list(getattr(part, "eos_token_id", None))
    return list(dict.fromkeys(found)), getattr(text, "vocab_size", None)


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _common_end(first: Sequence[int], second: Sequence[int]) -> list[int]:
    pairs = zip(reversed(first), reversed(second), strict=False)
    end = [one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return end[::-1]
