from __future__ import annotations

import hashlib
import math

import pytest

from rlhf.core.records import Conversation, Message
from rlhf.data.split import held_out

PROMPTS: list[Conversation] = [(Message("user", f"question {number}"),) for number in range(4000)]


def test_the_side_is_the_hash_of_the_prompt_alone() -> None:
    text = '["salt", [["user", "caf\\u00e9?"]]]'
    fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    prompt = (Message("user", "café?"),)
    assert held_out(prompt, fraction + 1e-6, "salt")
    assert not held_out(prompt, fraction - 1e-6, "salt")


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_share_holds_to_four_standard_errors(share: float) -> None:
    count = sum(held_out(prompt, share, "a") for prompt in PROMPTS)
    assert abs(count / len(PROMPTS) - share) < 4 * math.sqrt(share * (1 - share) / len(PROMPTS))


def test_none_and_all() -> None:
    assert not any(held_out(prompt, 0.0, "a") for prompt in PROMPTS)
    assert all(held_out(prompt, 1.0, "a") for prompt in PROMPTS)


def test_a_larger_share_keeps_those_already_held_out() -> None:
    small = {prompt for prompt in PROMPTS if held_out(prompt, 0.05, "a")}
    assert small < {prompt for prompt in PROMPTS if held_out(prompt, 0.1, "a")}


def test_roles_and_salt_take_part() -> None:
    sides = [
        [held_out(prompt, 0.5, salt) for prompt in PROMPTS[:100]] for salt in ("validation", "evaluation")
    ]
    assert sides[0] != sides[1]
    asked = [held_out((*prompt, Message("assistant", "x")), 0.5, "validation") for prompt in PROMPTS[:100]]
    stated = [held_out((*prompt, Message("user", "x")), 0.5, "validation") for prompt in PROMPTS[:100]]
    assert asked != stated
