"""`rlhf search` through the real command, with real trials on the tiny base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

Rlhf = Callable[..., Result]


@pytest.mark.slow
def test_two_trials_of_train_reward(rlhf_command: Rlhf, reward_config: Path, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    settings = {
        "command": "train-reward",
        "config": str(reward_config),
        "overrides": ["stages.0.max_steps=1", "stages.1.max_steps=2"],
        "parameters": {
            "stages.1.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "adapter.rank": {"low": 2, "high": 4},
        },
        "objective": {"metric": "overall"},
        "pruning": {"metric": "validation/accuracy"},
        "trials": 2,
        "output": str(tmp_path / "search"),
    }
    file.write_text(yaml.safe_dump(settings))
    result = rlhf_command("search", file)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "search" / "search.json").read_text())
    assert len(content["trials"]) == 2
    for trial in content["trials"]:
        run = tmp_path / "search" / "trials" / str(trial["number"])
        evaluation = json.loads((run / "eval.json").read_text())
        assert (trial["state"], trial["value"]) == ("complete", evaluation["overall"])
        assert trial["ci95"] == evaluation["intervals"]["overall"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["adapter"]["rank"] == trial["parameters"]["adapter.rank"]
        rate = config["stages"][1]["optimizer"]["learning_rate"]
        assert rate == trial["parameters"]["stages.1.optimizer.learning_rate"]
        assert [stage["max_steps"] for stage in config["stages"]] == [1, 2]
        assert trial["updates"] == 3  # compared at the last validation
    # The printed command is one that runs.
    words = result.stdout.split("only shorten trials:\n")[1].splitlines()[0].split()
    assert words[0] == "rlhf"
    again = rlhf_command(*words[1:], "--dry-run")
    assert again.exit_code == 0, again.output
