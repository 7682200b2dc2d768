from __future__ import annotations

from typing import Any

import pytest

from policy.rollouts.overlap import assign_groups


def group(prompt: int, number: int) -> dict[str, Any]:
    return {"prompt": [prompt], "answers": [[[number], [-1.0]]]}


HELD = [group(7, 0), group(8, 1), group(7, 2), group(9, 3)]
"""Of two processes with two prompts each, of which both were asked the first."""


@pytest.mark.parametrize("prompts", [[[7, 8], [7, 9]], [[7], [8], [7], [9]], [[7, 8, 7, 9]]])
def test_a_prompt_asked_twice_has_both_answers_in_any_number_of_processes(prompts: list[list[int]]) -> None:
    result = assign_groups(HELD, [[[prompt] for prompt in values] for values in prompts])
    assert [len(values) for values in result] == [len(prompt) for prompt in prompts]
    assert [value for values in result for value in values] == HELD
