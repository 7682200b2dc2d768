"""A justifier on the demo's data gives verdicts that are better than chance."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward.justifier.recipe import train_justifier
from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "justifier" / "demo.yaml"


@pytest.mark.slow
def test_verdicts_on_held_out_pairs_beat_chance(tmp_path: Path) -> None:
    """Run once by its command, 47 minutes on a busy core: 71.7 % of 60 pairs, interval 63.3 to 80.0."""
    result = train_justifier(load_config(CONFIG, JustifierConfig, [], tmp_path / "run"))
    judge = result["judge"]
    assert judge["requests"] == 2 * result["count"] > 100
    assert judge["unparsed"] == 0
    assert judge["one_order"]["ci95"][0] > 0.5
