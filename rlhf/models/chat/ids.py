"""Find the special ids of a chat: stop ids, padding and control tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.core.errors import ModelError
from rlhf.models.chat.control_tokens import REASONING_TAGS

# Ends of a turn that a template may write only in other conversations than plain answers.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
# Padding tokens, by preference.
PADDING = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>")


@dataclass(frozen=True)
class ChatIds:
    """Ids by their role.

    Attributes:
        stops: ids that end an answer.
        closing: the last id of every conversation; None if the template refuses an answered question.
        pad: the padding id.
        control: ids of tokens that only a template may write, by text.
        beyond: stop ids without a row in the embedding, which are not in `stops`.
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
        stop_ids: ids that end an answer, from the model's configuration.
        rows: rows of the model's embedding, if known.
        probes: ids of two conversations that differ only in the answer; may be empty.

    Raises:
        ModelError: there is no stop id.
    """
    closing = probes[0][-1] if probes else None
    added = tokenizer.added_tokens_decoder
    candidates = [*stop_ids, *_template_stops(tokenizer, template, probes)]
    beyond = sorted({token for token in candidates if rows is not None and token >= rows})
    stops = tuple(token for token in dict.fromkeys(candidates) if token not in beyond)
    if not stops:
        raise ModelError(
            "Neither the generation config, the model's config, the tokenizer nor the template names a "
            "token that ends an answer.",
            fix="set eos_token_id in the model's generation_config.json",
        )
    written = {token for ids in probes for token in ids if token in added}
    special = special_ids(tokenizer) | written | {token for token in stops if token in added}
    names = {str(tokenizer.convert_ids_to_tokens(token)): token for token in sorted(special)}
    control = {name: token for name, token in names.items() if name and name not in REASONING_TAGS}
    return ChatIds(stops, closing, _padding(tokenizer, stops, closing, rows), control, beyond)


def _template_stops(tokenizer: Any, template: str, probes: Sequence[Sequence[int]]) -> list[int]:
    """The tokenizer's EOS, and the end-of-turn tokens that the template writes."""
    vocabulary = tokenizer.get_vocab()
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    named = [vocabulary[name] for name in TURN_ENDS if name in vocabulary and name in template]
    # The template's text after any answer starts with the end of the turn.
    suffix = _common_suffix(*probes) if probes else []
    tail = [token for token in suffix if token in tokenizer.added_tokens_decoder]
    return [*eos, *named, *tail[:1]]


def _padding(tokenizer: Any, stops: Sequence[int], closing: int | None, rows: int | None) -> int:
    """The tokenizer's padding id, or another special id that is no stop id.

    A stop id if there is no other.
    """
    special, vocabulary = special_ids(tokenizer), tokenizer.get_vocab()
    pad = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    named = [vocabulary[name] for name in PADDING if name in vocabulary and vocabulary[name] in special]
    usable = [token for token in (*pad, *named, *sorted(special)) if rows is None or token < rows]
    free = [token for token in usable if token not in stops and token != closing]
    return int((free or usable or stops)[0])


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that a tokenizer marks as special."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.all_special_ids) | added


def model_ids(base: str, revision: str | None) -> tuple[list[int], int | None]:
    """Stop ids of generation_config.json and config.json, and the embedding's rows (None: unknown).

    Raises:
        ModelError: generation_config.json is corrupt.
    """
    from transformers import AutoConfig, GenerationConfig

    stop_ids: list[int] = []
    rows: int | None = None
    try:
        stop_ids += _as_list(GenerationConfig.from_pretrained(base, revision=revision).eos_token_id)
    except OSError as error:
        if "valid JSON" in str(error):
            raise ModelError(
                f"The generation_config.json of {base!r} is not valid JSON.",
                allowed="a file that names the tokens that end an answer, or none",
                fix="copy or download it again",
            ) from error
        # The file is optional.
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    except (
        OSError,
        ValueError,
    ):  # a tokenizer without a model; other errors are raised when the model is loaded
        return stop_ids, rows
    text = config.get_text_config()
    for part in (config, text):
        stop_ids += _as_list(getattr(part, "eos_token_id", None))
    return list(dict.fromkeys(stop_ids)), getattr(text, "vocab_size", None)


def _as_list(ids: int | Sequence[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _common_suffix(first: Sequence[int], second: Sequence[int]) -> list[int]:
    pairs = zip(reversed(first), reversed(second), strict=False)
    suffix = [token for token, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return suffix[::-1]
