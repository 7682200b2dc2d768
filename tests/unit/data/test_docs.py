"""The config snippets in docs/data.md are configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlhf.config.reward import RewardDataConfig
from rlhf.data.readers.columns import check_columns

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_a_data_section(snippet: str) -> None:
    data = RewardDataConfig.model_validate(yaml.safe_load(snippet))
    for source in data.ratings:
        check_columns(source, "ratings")
    for source in data.preferences:
        check_columns(source, "preferences")
