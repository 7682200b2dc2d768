"""The config of `rlhf policy-table`, and the config of each of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from rlhf.config.algorithm import AlgorithmConfig
from rlhf.config.dpo import DPOConfig, DPOTraining
from rlhf.config.policy import PolicyConfig, PolicyOptimizerConfig
from rlhf.config.rollouts import RolloutConfig
from rlhf.config.schema import (
    AdapterConfig,
    Count,
    DataSource,
    ModelConfig,
    Place,
    Positive,
    RunConfig,
    Strict,
)

DPO_ROWS = {"dpo-regular": "regular", "dpo-margin": "margin", "dpo-scaled": "scaled"}
"""The rows that `rlhf train-dpo` trains: its loss by row."""
RL_ROWS = ("ppo", "reinforce")
"""The rows that `rlhf align-policy` trains; each has a section of the config."""


class TableDataConfig(Strict):
    """The data that all rows share."""

    preferences: list[DataSource] = Field(min_length=1)
    """DPO's pairs. Pairs of the prompts of the evaluation are left out."""
    prompts: list[DataSource] = Field(default_factory=list)
    """Prompts of PPO, REINFORCE and the evaluation; empty: those of `preferences`, as in the paper."""
    max_prompt_tokens: Count = 512
    """Longer prompts are dropped and counted."""


class RLTraining(Strict):
    """How PPO or REINFORCE trains."""

    algorithm: AlgorithmConfig
    """As in a config of align-policy."""
    optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    """AdamW."""
    steps: Count = 100
    """Number of updates."""


class TableEvaluation(Strict):
    """The evaluation of all rows, on the same prompts."""

    prompts: Count = 64
    """Prompts of the evaluation, on which no row is trained."""
    samples: Count = 2
    """Answers per prompt; as many of the base are the opponents of the win rate."""
    best_of: Count = 16
    """Answers of the base per prompt from which best of n picks, for n = 1, 2, 4, ... up to this."""
    kl: Positive = 1.0
    """The KL to the base, in nats per answer, at which the rows are compared."""
    tolerance: Positive = 0.15
    """How close to `kl` a scaled adapter has to be, as a share of it; else another scale is tried."""
    tries: Count = 4
    """The most scales that are tried for one policy, the trained one included."""
    max_scale: Positive = 2.0
    """The largest factor on a policy's adapter; a row that needs more did not reach `kl`."""


class PolicyTableConfig(RunConfig):
    """The paper's policy table: DPO in three forms, PPO, REINFORCE and best of n, on the same data."""

    model: ModelConfig = ModelConfig()
    """The frozen base of all rows, their reference, and the opponent of the win rate."""
    adapter: AdapterConfig = AdapterConfig()
    """The LoRA adapter of each row."""
    reward: Place
    """The reward model that PPO and REINFORCE are trained on and best of n picks by: the `final/` folder of a
    `train-reward` run on the same base."""
    held_out_reward: Place
    """The judge: a reward model trained on other data, by which answers win or lose against the base's."""
    data: TableDataConfig
    """Preferences and prompts."""
    dpo: DPOTraining = DPOTraining()
    """The training of the three DPO rows."""
    ppo: RLTraining
    """The training of the PPO row."""
    reinforce: RLTraining
    """The training of the REINFORCE row."""
    rollouts: RolloutConfig = RolloutConfig()
    """How answers are sampled, in training and in the evaluation."""
    tokens_per_batch: Count = 2048
    """Token budget of one packed forward pass."""
    evaluation: TableEvaluation = TableEvaluation()
    """The evaluation."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        for name in RL_ROWS:
            section: RLTraining = getattr(self, name)
            if section.algorithm.name != name:
                raise ValueError(
                    f"{name}.algorithm.name is {section.algorithm.name!r}; the row {name} needs name: {name}"
                )
        if self.reward == self.held_out_reward:
            raise ValueError(
                "held_out_reward is the reward that the rows are trained on; name a model that was trained "
                "on other data"
            )
        return self

    @model_validator(mode="after")
    def _rows_are_valid(self) -> Self:
        files = {"training": Path("training.jsonl"), "evaluation": Path("evaluation.jsonl")}
        for row in (*DPO_ROWS, *RL_ROWS):
            try:
                row_config(self, row, files, self.seed)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise ValueError(f"the row {row}: {where}{': ' if where else ''}{first['msg']}") from None
        return self

    @property
    def prompt_sources(self) -> list[DataSource]:
        """The sources of prompts."""
        return self.data.prompts or self.data.preferences


def row_config(table: PolicyTableConfig, row: str, prompts: Mapping[str, Path], seed: int) -> BaseModel:
    """The config of a trained row, for `train-dpo` or `align-policy`.

    Args:
        prompts: files with the prompts "training" and "evaluation".

    Raises:
        ValueError: the settings do not fit together (pydantic's ValidationError).
    """
    shared: dict[str, Any] = {
        "output": str(table.output / f"seed-{seed}" / row),
        "seed": seed,
        "threads": table.threads,
        "track": table.track,
        "callbacks": table.callbacks,
        "model": _dumped(table.model),
        "adapter": _dumped(table.adapter),
        "tokens_per_batch": table.tokens_per_batch,
        "save_every": table.save_every,
    }
    if row in DPO_ROWS:
        return DPOConfig.model_validate(
            shared
            | _dumped(table.dpo)
            | {
                "loss": DPO_ROWS[row],
                "validate_every": table.save_every,
                "data": {
                    "preferences": [_dumped(source) for source in table.data.preferences],
                    "exclude": [{"path": str(prompts["evaluation"])}],
                },
            }
        )
    training: RLTraining = getattr(table, row)
    return PolicyConfig.model_validate(
        shared
        | {
            "reward": str(table.reward),
            "data": {
                "prompts": [{"path": str(prompts["training"])}],
                "max_prompt_tokens": table.data.max_prompt_tokens,
            },
            "rollouts": _dumped(table.rollouts),
            "algorithm": _dumped(training.algorithm),
            "optimizer": _dumped(training.optimizer),
            "steps": training.steps,
            "evaluation": {"prompts": OWN_PROMPTS, "samples": 1},
        }
    )


OWN_PROMPTS = 8
"""Held-out prompts of a row's own evaluation, for its report; the table's are others."""


def _dumped(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")
