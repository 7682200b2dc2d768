"""The snippets in docs/rewards.md are configs, and its function is one that a run can use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import KINDS, RESERVED

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
REST = {"output": "runs/x", "reward": "runs/r/final", "data": {"prompts": [{"path": "demo"}]}}


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 8


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_part_of_a_config(snippet: str) -> None:
    PolicyConfig.model_validate({**REST, **yaml.safe_load(snippet)})


def test_every_kind_and_every_figure_is_explained() -> None:
    assert all(f"| `{kind}` |" in PAGE for kind in KINDS)
    assert all(f"`reward/{name}`" in PAGE for name in RESERVED)


def test_the_function_works() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    space: dict[str, object] = {}
    exec(source, space)
    assert space["brevity"](completions=[], completion_ids=[[1], [1, 2]], check=[None] * 2) == [1.0, 0.5]  # type: ignore[operator]
