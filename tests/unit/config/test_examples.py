"""Every feature that the docs name has a shipped config, and every key is set by one or listed here with its
reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.dpo import DPOConfig
from rlhf.config.judge import JudgeConfig
from rlhf.config.justifier import JustifierConfig
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.policy_table import PolicyTableConfig
from rlhf.config.principle import PrincipleConfig
from rlhf.config.reading.explain import keys
from rlhf.config.reading.files import CONFIGS, read_keys
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import Strict
from rlhf.config.search import SearchConfig

EXAMPLES = CONFIGS / "policy" / "examples"

FEATURES: dict[str, Callable[[PolicyConfig], object]] = {
    "rloo": lambda config: config.algorithm.name == "rloo",
    "ppo": lambda config: config.algorithm.critic is not None and config.algorithm.unfinished == "penalty",
    "nemo-aligner": lambda config: config.algorithm.compat and config.algorithm.kl.target,
    "classifier-reward": lambda config: config.reward[0].classifier and config.held_out_reward,
    "server-reward": lambda config: config.reward[0].server,
    "function-reward": lambda config: len(config.reward) == 2 and config.reward[1].function == "gold",
    "shaping": lambda config: config.reward_shaping.active and config.reward_shaping.missing == "drop",
    "ensemble": lambda config: config.reward[0].ensemble,
    "judge": lambda config: config.reward[0].judge,
    "principle": lambda config: config.reward[0].principle and config.reward_shaping.normalise == "each",
    "overlap": lambda config: config.rollouts.overlap and config.rollouts.importance_sampling,
    "second-round": lambda config: config.start and config.algorithm.kl.budget,
    "full-fine-tuning": lambda config: config.adapter is None,
}

TEMPLATE = "properties of a base's chat template: docs/tokens.md"
MODEL = "properties of a particular base, which the demo's defaults fit: docs/models.md"
DATA = "properties of a particular data set: docs/data.md has an example of each"
ENVIRONMENT = "properties of a machine or an account, not of an experiment"
UNSET: dict[str, str] = {
    "model.revision": MODEL,
    "model.dtype": MODEL,
    "model.template_date": TEMPLATE,
    "model.chat_template": TEMPLATE,
    "model.chat_template_kwargs": TEMPLATE,
    "model.fast_layers": "switched off only to compare with transformers' own layers",
    "model.fused_kernels": "switched off only to compare with transformers' own layers",
    "model.packing": "switched off only to compare with one sequence per row",
    "adapter.dropout": "0 for a policy; a regulariser for small sets of preferences",
    "adapter.targets": "the default fits every base; docs/models.md",
    "attributes": "set by a recipe, or by the data set",
    "reasoning": "for reasoning models: docs/tokens.md",
    "start": "a second round of training",
    "seed": "set on the command line, as are several seeds of an experiment",
    "threads": ENVIRONMENT,
    "track": ENVIRONMENT,
    "callbacks": ENVIRONMENT,
    "data.max_spread": DATA,
    "data.pair_rated": DATA,
    "expo.weak": "set by the recipe",
    "expo.strong": "set by the recipe",
    "expo.rank": "a smaller adapter for deployment",
    "stages.N.centering_weight": "for reward models that are compared across prompts",
    "reward.N.label": "for classifiers with several outputs",
    "reward.N.judge.orders": "for pairwise judges; set in configs/judge/vllm.yaml",
    "rollouts.adapter_folder": ENVIRONMENT,
    "rollouts.memory_gib": ENVIRONMENT,
    "rollouts.sleep": ENVIRONMENT,
    "rollouts.temperature": "1 is the distribution that the algorithms assume",
    "launch": ENVIRONMENT,
    "storage": ENVIRONMENT,
    "study": ENVIRONMENT,
    "timeout": ENVIRONMENT,
    "pruning.direction": "maximize fits accuracy and reward",
}
SAME_SCHEMA = (
    "held_out_reward.",
    *(f"data.{name}.N." for name in ("prompts", "preferences", "ratings", "principles", "justifications")),
    "data.exclude.N.",
)
"""Keys of a section whose schema (a source of rewards or of data) is used in several places; DATA is their
reason."""

SCHEMAS: dict[type[Strict], tuple[str, ...]] = {
    PolicyConfig: ("policy/*.yaml", "policy/examples/*.yaml"),
    RewardConfig: ("reward/*.yaml",),
    DPOConfig: ("dpo/*.yaml",),
    SearchConfig: ("search/*.yaml",),
    PrincipleConfig: ("principle/*.yaml",),
    JustifierConfig: ("justifier/*.yaml",),
    JudgeConfig: ("judge/*.yaml",),
    PolicyTableConfig: ("policy-table/*.yaml",),
}
WITH_OWN_EXAMPLES = (PolicyConfig, RewardConfig, DPOConfig, SearchConfig)
"""Schemas whose every key is looked for in their own configs; keys of the others may be set in any config."""
NOT_OURS = ("launch",)
"""Folders of configs that other programs read."""


def files_of(schema: type[Strict]) -> list[Path]:
    return [file for pattern in SCHEMAS[schema] for file in sorted(CONFIGS.glob(pattern))]


def keys_in(data: Any, prefix: str = "") -> set[str]:
    """The dotted keys of plain data, with N for the index of a list item."""
    if isinstance(data, list):
        return {key for item in data for key in keys_in(item, f"{prefix}N.")}
    if not isinstance(data, dict):
        return set()
    return {prefix + name for name in data} | {
        key for name, value in data.items() for key in keys_in(value, f"{prefix}{name}.")
    }


def test_the_configs_are_where_the_commands_look() -> None:
    """Otherwise every test of this file passes with no file."""
    assert {"reward/demo.yaml", "policy/demo.yaml"} <= {
        str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml")
    }


def test_every_feature_has_an_example() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == FEATURES.keys()


@pytest.mark.parametrize("name", FEATURES)
def test_an_example_loads_and_sets_its_feature(name: str) -> None:
    file = EXAMPLES / f"{name}.yaml"
    assert FEATURES[name](load_config(file, PolicyConfig))
    assert "extends: ../demo.yaml" in file.read_text(), "an example shows what differs from the demo"


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        pytest.param(schema, file, id=f"{file.parent.name}/{file.stem}")
        for schema in SCHEMAS
        for file in files_of(schema)
    ],
)
def test_every_shipped_config_loads(schema: type[Strict], file: Path) -> None:
    load_config(file, schema)


def test_every_shipped_config_has_a_schema() -> None:
    known = {file for schema in SCHEMAS for file in files_of(schema)}
    found = {file for file in CONFIGS.rglob("*.yaml") if file.relative_to(CONFIGS).parts[0] not in NOT_OURS}
    assert found == known


@pytest.mark.parametrize(
    "file", [file for file in sorted(CONFIGS.rglob("*.yaml")) if "../shared" in file.read_text("utf-8")]
)
def test_a_config_that_reads_files_elsewhere_says_how_to_make_them(file: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "real-data.md").read_text("utf-8")
    assert "docs/real-data.md" in file.read_text("utf-8")
    for name in re.findall(r": \.\./shared/data/([\w.]+)", file.read_text("utf-8")):
        assert f"`{name}`" in page
    for source in re.findall(r"source: \[(.*?)\]", file.read_text("utf-8")):
        assert [name for name in source.split(", ") if f"`{name}`" not in page] == []


def test_a_reason_that_names_a_page_is_on_it() -> None:
    pages = {key: re.search(r"docs/[\w-]+\.md", reason) for key, reason in UNSET.items()}
    root = Path(__file__).parents[3]
    missing = [
        f"{key}: {page[0]}"
        for key, page in pages.items()
        if page and key.rpartition(".")[2] not in (root / page[0]).read_text("utf-8")
    ]
    assert missing == []


def test_every_key_is_in_a_shipped_config_or_has_a_reason() -> None:
    used = {
        schema: {key for file in files_of(schema) for key in keys_in(read_keys(file)[0])}
        for schema in SCHEMAS
    }
    used_anywhere = set().union(*used.values())
    unset: set[str] = set()
    for schema in SCHEMAS:
        if schema not in (JudgeConfig, PolicyTableConfig):  # made of the keys of other schemas
            here = used[schema] if schema in WITH_OWN_EXAMPLES else used_anywhere
            unset |= {key.dotted for key in keys(schema) if key.dotted not in here}
    unset = {key for key in unset if not key.startswith(SAME_SCHEMA)}
    assert unset == UNSET.keys(), (
        "a new key needs an example or a reason; a key with an example needs no reason"
    )
