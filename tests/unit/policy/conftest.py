"""Rollouts that several tests of a policy's training share."""

from __future__ import annotations

import pytest

from rlhf.core.records import Rollout
from rlhf.models.chat import Chat


@pytest.fixture(scope="module")
def groups(tiny_chat: Chat, request: pytest.FixtureRequest) -> list[list[Rollout]]:
    """Two answers to each of the module's two `PROMPTS`; the last is cut off."""
    stop = tiny_chat.stop_ids[0]
    answers = [[(301, 302, stop), (303, stop)], [(304, stop), (305, 306, 307)]]
    return [
        [
            Rollout(tuple(tiny_chat.prompt_ids(prompt)), ids, (), ids[-1] == stop, tiny_chat.decode(ids))
            for ids in group
        ]
        for prompt, group in zip(request.module.PROMPTS, answers, strict=True)
    ]
