"""What every training command checks before it starts, in a dry run too."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.dpo import DPOConfig
from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.principle import PrincipleConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ConfigError
from rlhf.tracking import session

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "schema", "module"),
    [
        ("reward", RewardConfig, "reward.training.recipe"),
        ("principle", PrincipleConfig, "reward.principle.recipe"),
        ("justifier", JustifierConfig, "reward.justifier.recipe"),
        ("dpo", DPOConfig, "policy.dpo.recipe"),
        ("policy", PolicyConfig, "policy.training.dry_run"),
    ],
)
def test_a_dry_run_checks_trackers_and_callbacks(
    name: str, schema: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = importlib.import_module(module).dry_run
    with pytest.raises(ConfigError) as refused:
        describe(load_config(ROOT / "configs" / name / "demo.yaml", schema, ["callbacks=[no_such:Thing]"]))
    assert "no_such" in refused.value.found

    def missing(_: object) -> None:
        raise ConfigError("not installed")

    monkeypatch.setattr(session, "Trackers", missing)
    with pytest.raises(ConfigError, match="not installed"):
        describe(load_config(ROOT / "configs" / name / "demo.yaml", schema, []))
