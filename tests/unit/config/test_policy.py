"""What an algorithm implies, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.core.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "policy").glob("*.yaml"))


def resolved(**loaded: Any) -> dict[str, Any]:
    return AlgorithmConfig.model_validate(loaded).model_dump(mode="json")


KL = {"placement": "reward", "target": None, "horizon": 10_000.0, "budget": None}
ALIGNER = {
    "name": "reinforce",
    "compat": False,
    "reduction": "token_mean",
    "clip": None,
    "clip_high": None,
    "epochs": 1,
    "critic": None,
    "kl": {"estimator": "abs", "reduction": "mean", "coefficient": 0.01, **KL},
    "unfinished": "drop",
    "unfinished_reward": None,
    "flat_groups": "keep",
}
TRL = {
    "name": "rloo",
    "compat": False,
    "reduction": "sequence_sum",
    "clip": 0.2,
    "clip_high": None,
    "epochs": 1,
    "critic": None,
    "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.05, **KL},
    "unfinished": "keep",
    "unfinished_reward": None,
    "flat_groups": "keep",
}
PPO = {
    "name": "ppo",
    "compat": False,
    "reduction": "token_mean",
    "clip": 0.2,
    "clip_high": None,
    "epochs": 4,
    "critic": {
        "start": "reward",
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        "clip": 0.2,
        "discount": 1.0,
        "gae_lambda": 0.95,
        "whiten": True,
    },
    "kl": {"estimator": "k1", "reduction": "sum", "coefficient": 0.01, **KL},
    "unfinished": "drop",
    "unfinished_reward": None,
    "flat_groups": "keep",
}


def test_each_algorithm_is_as_its_authors_have_it() -> None:
    assert resolved() == resolved(name="reinforce") == ALIGNER
    assert resolved(compat=True) == ALIGNER | {"compat": True, "reduction": "sequence_mean"}
    assert resolved(name="rloo") == TRL
    assert resolved(name="ppo") == PPO


def test_explicit_keys_win() -> None:
    assert resolved(name="rloo", kl={"coefficient": 0.2}, unfinished="drop") == TRL | {
        "kl": TRL["kl"] | {"coefficient": 0.2},  # type: ignore[operator]
        "unfinished": "drop",
    }
    assert resolved(kl={"estimator": "k3"})["kl"]["reduction"] == "mean"
    critic = resolved(name="ppo", critic={"gae_lambda": 1})["critic"]
    assert critic == PPO["critic"] | {"gae_lambda": 1.0}  # type: ignore[operator]


def test_the_resolved_config_means_the_same_again() -> None:
    rloo = {"name": "rloo", "kl": {"target": 3, "budget": 9}}
    for loaded in ({}, {"compat": True}, {"name": "rloo"}, rloo, {"name": "ppo", "critic": {"clip": None}}):
        once = resolved(**loaded)
        assert resolved(**yaml.safe_load(yaml.safe_dump(once))) == once


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_projects_configs_name_what_they_use(file: Path) -> None:
    load_config(file, PolicyConfig)
    loaded = yaml.safe_load(file.read_text())
    if "extends" in loaded and "algorithm" not in loaded:
        return  # it is the other file's
    loaded = loaded["algorithm"]
    assert {"name", "reduction", "kl", "unfinished"} <= loaded.keys()
    assert {"estimator", "reduction", "placement", "coefficient"} <= loaded["kl"].keys()


MINIMAL = "output: runs/x\nreward: runs/r/final\ndata: {prompts: [{path: demo}]}\n"


def load(folder: Path, *words: str) -> PolicyConfig:
    (folder / "p.yaml").write_text(MINIMAL)
    return load_config(folder / "p.yaml", PolicyConfig, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm.compat=true", "algorithm.name=rloo"], "compat.* reinforce"),
        (["algorithm.compat=true", "algorithm.reduction=token_mean"], "compat.* sequence_mean"),
        (["algorithm.compat=true", "algorithm.unfinished=keep"], "compat.* unfinished: drop"),
        (["algorithm.clip_high=0.28"], "clip_high.* rloo or ppo"),
        (["algorithm.clip=0.1"], "clip.* rloo or ppo"),
        (["algorithm.name=rloo", "algorithm.clip=null"], "clip.* rloo or ppo"),
        (["algorithm.name=ppo", "algorithm.clip=null"], "clip.* rloo or ppo"),
        (["algorithm.name=ppo", "algorithm.critic=null"], "critic.* ppo"),
        (["algorithm.critic={}"], "critic.* ppo"),
        (["algorithm.name=ppo", "algorithm.critic.gae_lambda=1.5"], "algorithm.critic.gae_lambda.* 1.5"),
        (["algorithm.name=ppo", "algorithm.critic.lambda=1"], "'algorithm.critic.lambda'"),
        (["algorithm.name=rloo", "algorithm.reduction=token_mean"], "rloo.* sequence_sum"),
        (["algorithm.epochs=2"], "reinforce.* epochs: 1"),
        (["algorithm.kl.target=3", "algorithm.kl.coefficient=0"], "kl.target.* kl.coefficient"),
        (["algorithm.name=ppo", "algorithm.flat_groups=skip"], "flat_groups: skip.* ppo"),
        # 16 x 4 answers an update: with a horizon of 13 or less the coefficient could become negative.
        (["algorithm.kl.target=3", "algorithm.kl.horizon=63"], "algorithm.kl.horizon.* 64"),
        (["algorithm.unfinished=penalty"], "unfinished_reward.* penalty"),
        (["algorithm.name=rlo"], "'reinforce', 'rloo', 'ppo'"),
        (["algorithm=3"], "algorithm: .*3"),
        (["algorithm.kl.estimator=k4"], "algorithm.kl.estimator: .*k4"),
        (["algorithm.kl.horizont=5"], "'algorithm.kl.horizont'.* 'horizon'"),
        (["rollouts.importance_sampling.cap=0.5"], "rollouts.importance_sampling.cap"),
        (["rollouts.importance_sampling=on"], "rollouts.importance_sampling: .*true"),
        (
            ["algorithm.name=rloo", "rollouts.importance_sampling={level: token}"],
            "rollouts.importance_sampling.level: sequence",
        ),
    ],
)  # fmt: skip
def test_invalid_combinations(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, *words)
    assert caught.value.exit_code == 2


def test_importance_sampling_is_off_however_it_is_spelt(tmp_path: Path) -> None:
    for word in ("off", "'off'", "null"):
        assert load(tmp_path, f"rollouts.importance_sampling={word}").rollouts.importance_sampling is None
    on = load(tmp_path, "rollouts.importance_sampling={level: sequence}").rollouts.importance_sampling
    assert on is not None and (on.level, on.cap) == ("sequence", 2.0)
