"""What of a config leaves the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.tracking.allowed import allowed_config, redacted

POLICY = {
    "output": "/home/alice/secret-run",
    "model": {
        "base": "/home/alice/models/base-8b",
        "chat_template": "/home/alice/template.jinja",
        "chat_template_kwargs": {"pin": 1234},
    },
    "reward": [
        {
            "server": "https://alice.example/score",
            "token_env": "ALICE_TOKEN",
            "name": "alice",
            "weight": 0.5,
        },
        {"function": "/home/alice/reward.py:score", "name": "code"},
        {"judge": {"url": "http://alice", "model": "m", "extra_body": {"account": 4711}}, "name": "judge"},
    ],
    "data": {"prompts": [{"path": "/home/alice/alice.jsonl", "where": {"owner": ["alice"]}}]},
    "rollouts": {
        "engine": "servers",
        "servers": ["http://alice.example:8000"],
        "adapter_folder": "/home/alice/a",
    },
    "callbacks": ["alice:Callback"],
}


def test_numbers_and_choices_are_sent_and_nothing_of_the_machine_or_its_people() -> None:
    sent = allowed_config(PolicyConfig.model_validate(POLICY))
    assert sent["optimizer.learning_rate"] == 3e-5
    assert sent["algorithm.name"] == "reinforce"
    assert sent["rollouts.engine"] == "servers"
    assert sent["model.base"] == "base-8b"
    assert sent["reward.0.weight"] == 0.5
    assert not [key for key in sent if "extra_body" in key]
    everything = str(sent).replace("alice.jsonl", "")  # the name of a data file is sent, without its folder
    for private in ("alice", "TOKEN", "http", "/home", "1234"):
        assert private not in everything


def test_a_hub_name_is_sent_whole_and_a_new_text_key_is_not_sent(tmp_path: Path) -> None:
    stage = {"name": "pairs", "preference_weight": 1.0}
    config = RewardConfig.model_validate(
        {
            "output": str(tmp_path),
            "model": {"base": "meta-llama/Llama-3.1-8B-Instruct"},
            "data": {"preferences": [{"path": "nvidia/HelpSteer2", "format": "helpsteer2-preference"}]},
            "stages": [stage],
            "benchmark": "/home/alice/bench.jsonl",
        }
    )
    sent = allowed_config(config)
    assert sent["model.base"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert sent["data.preferences.0.path"] == "nvidia/HelpSteer2"
    assert sent["stages.0.name"] == "pairs" and sent["attributes.0"] == "helpfulness"
    assert "benchmark" not in sent and "output" not in sent


def test_secrets_are_cut_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    assert redacted("GET https://u:p@h/x?t=hf_abcdefgh") == "GET https://***@h/x?t=***"
