"""Control tokens belong to the chat template; a message that spells one stays text.

A tokenizer turns every `<|im_end|>` of a rendered conversation into the token that ends a turn, whoever wrote it. A
policy that spells it letter by letter could so end its turn, and add one of a user who praises it. Here the template's own
control tokens are renamed to aliases before the text is encoded, by a copy of the tokenizer that knows the aliases alone.
Everything else about the copy is the same, so that text without control tokens has the same ids either way.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.core.errors import RefusalError

REASONING_TAGS = ("<think>", "</think>")
"""Written by templates and by models alike: they mark a part of an answer, not a turn."""
SPELLED = "control tokens in the text of a message, encoded as text"
"""What a report says of a row with such a message."""
TEXT_MARK, TOKEN_MARK = "\ufdd0", "\ufdd1"
"""Unicode noncharacters: they have no meaning in any text that is interchanged."""
MARKS = re.compile(f"[{TEXT_MARK}{TOKEN_MARK}]")


class ControlTokens:
    """The control tokens of a tokenizer, told apart from text that spells them.

    Args:
        ids: id of each control token by its text.
    """

    def __init__(self, tokenizer: Any, ids: Mapping[str, int]) -> None:
        self.tokenizer, self.ids = tokenizer, dict(ids)
        self.names = list(self.ids)
        longest_first = sorted(self.names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def spelled_in(self, value: Any) -> bool:
        """Whether a text, or one inside a list or a dictionary, spells a control token."""
        if isinstance(value, str):
            return self._pattern.search(value) is not None
        if isinstance(value, Mapping):
            return any(map(self.spelled_in, value.values()))
        return isinstance(value, list | tuple) and any(map(self.spelled_in, value))

    def protect(self, value: Any) -> Any:
        """The same value with each control token that is spelled in it replaced by a mark that templates pass on."""
        if isinstance(value, str):
            place = {name: number for number, name in enumerate(self.names)}
            return self._pattern.sub(
                lambda match: f"{TEXT_MARK}{place[match[0]]}{TEXT_MARK}", MARKS.sub("\ufffd", value)
            )
        if isinstance(value, Mapping):
            return {key: self.protect(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(one) for one in value]
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered conversation whose messages were protected.

        Raises:
            RefusalError: the tokenizer has no ids for the control token's text but the control token itself.
        """
        aliased = self._pattern.sub(lambda match: self._alias(self.names.index(match[0])), rendered)
        text = re.sub(f"{TEXT_MARK}(\\d+){TEXT_MARK}", lambda match: self.names[int(match[1])], aliased)
        if not self.tokenizer.is_fast:
            raise _unsplit(self._first(text))
        inner, originals = self._with_aliases
        encoded: Sequence[int] = inner.encode(text, add_special_tokens=False).ids
        unknown = self.tokenizer.unk_token_id
        forged = set(encoded) & {one for one in self.ids.values() if one != unknown}
        if forged:
            raise _unsplit(str(self.tokenizer.convert_ids_to_tokens(min(forged))))
        return [originals.get(one, one) for one in encoded]

    @staticmethod
    def _alias(place: int) -> str:
        return f"{TOKEN_MARK}{place}{TOKEN_MARK}"

    def _first(self, text: str) -> str:
        found = self._pattern.search(text)
        return found[0] if found else ""

    @functools.cached_property
    def _with_aliases(self) -> tuple[Any, Mapping[int, int]]:
        """A copy of the tokenizer that reads control tokens as text and aliases as tokens; alias id -> control id."""
        from transformers import AddedToken

        inner = copy.deepcopy(self.tokenizer.backend_tokenizer)
        inner.no_truncation()
        inner.no_padding()
        own = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        # Only special tokens can be switched off.
        inner.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in self.names])
        inner.encode_special_tokens = True
        aliases = []
        for place, name in enumerate(self.names):
            like = own.get(name)
            aliases.append(
                AddedToken(
                    self._alias(place),
                    special=False,
                    normalized=False,
                    lstrip=like is not None and like.lstrip,
                    rstrip=like is not None and like.rstrip,
                )
            )
        inner.add_tokens(aliases)
        originals = {
            inner.token_to_id(self._alias(place)): self.ids[name] for place, name in enumerate(self.names)
        }
        return inner, originals


def _unsplit(name: str) -> RefusalError:
    return RefusalError(f"text that spells {name}, which this tokenizer can only read as the control token")
