"""What a search's config refuses, and says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.load import load_config
from rlhf.config.search import SearchConfig
from rlhf.core.errors import ConfigError

GOOD = """
command: train-reward
config: base.yaml
parameters: {adapter.rank: {low: 2, high: 8}}
objective: {metric: overall}
output: out
"""


def load(tmp_path: Path, *overrides: str) -> SearchConfig:
    file = tmp_path / "search.yaml"
    file.write_text(GOOD)
    return load_config(file, SearchConfig, overrides)


def test_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert (loaded.trials, loaded.pruning, loaded.storage, loaded.objective.direction) == (
        20,
        None,
        None,
        "maximize",
    )


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("trials=0", "trials", "a whole number of at least 1"),
        ("timeout=0", "timeout", "a number above 0"),
        ("parameters={}", "parameters", ""),
        ("parameters={adapter.rank: {low: 8, high: 2}}", "low", ""),
        ("parameters={adapter.rank: {low: 8}}", "high", ""),
        ("parameters={adapter.rank: {low: 0, high: 1, log: true}}", "low", ""),
        ("parameters={adapter.rank: {low: 1, high: 9, log: true, step: 2}}", "step", ""),
        ("parameters={adapter.rank: {choices: [1], low: 1}}", "choices", ""),
        ("parameters={adapter.rank: {choices: []}}", "parameters.adapter.rank.choices", ""),
        ("parameters={adapter.rank: {low: 1, hihg: 2}}", "parameters.adapter.rank.hihg", "high"),
        ("parameters={output: {choices: [a, b]}}", "output", ""),
        ("overrides=[output=x]", "output", ""),
        ("command=train", "command", "'train-reward', 'align-policy'"),
        ("objective={metric: overall, direction: max}", "direction", "'maximize', 'minimize'"),
        ("pruning={metric: loss/total, method: hyperband}", "method", "'median', 'halving'"),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(
    tmp_path: Path, override: str, key: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, override)
    assert key in raised.value.found
    assert allowed in raised.value.allowed
