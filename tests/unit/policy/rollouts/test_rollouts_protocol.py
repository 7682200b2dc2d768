from __future__ import annotations

import hashlib

from policy.rollouts.protocol import as_rollout, seed_of
from rlhf.core.records import Rollout
from rlhf.models.chat import Chat


def test_a_seed_belongs_to_its_coordinates() -> None:
    seeds = {seed_of(run, step, place) for run in range(3) for step in range(20) for place in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)  # not the digits run together
    assert seed_of(0, -1) == seed_of(0, -1)
    # The first 31 bits of a hash: the same on every machine and day.
    assert seed_of(3, 14) == int(hashlib.sha256(b"3:14").hexdigest()[:8], 16) // 2


def test_an_answer_is_finished_when_it_ends_with_a_stop_id(tiny_chat: Chat) -> None:
    (stop,) = tiny_chat.stop_ids
    words = tiny_chat.tokenizer("a short answer")["input_ids"]
    finished = as_rollout([5, 6], [*words, stop], [-1.0] * (len(words) + 1), tiny_chat.stop_ids, tiny_chat)
    assert finished == Rollout(
        (5, 6), (*words, stop), (-1.0,) * (len(words) + 1), finished=True, text="a short answer"
    )
    cut = as_rollout([5, 6], words, [], tiny_chat.stop_ids, tiny_chat)
    assert (cut.finished, cut.text, cut.logprobs) == (False, "a short answer", ())
    assert not as_rollout([5], [], [], tiny_chat.stop_ids, tiny_chat).finished
