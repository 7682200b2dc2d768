"""Checks of the rewards before a model is loaded: folders, servers, gold checks, and functions by a sample
call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from policy.rewards.build import function, naming, require_room, server
from policy.rewards.function import FunctionReward
from reward.form import check_scorer
from reward.judge.client import JudgeClient
from reward.principle.question import question_tokens
from reward.principle.scorer import read_principle_model
from rlhf.adapters.storage import RewardAdapter
from rlhf.config.policy import PolicyConfig
from rlhf.config.rewards import RewardKind, RewardSourceConfig
from rlhf.core.errors import ConfigError, DataError, excerpt
from rlhf.core.records import Prompt, Rollout
from rlhf.data.checks import CONSTRAINTS
from rlhf.models.chat import Chat

SAMPLE_ANSWERS = ("A sample answer.", "Another, which is a little longer.")
SAMPLE_PROMPTS = 4
"""Prompts, of different data sources, in the sample call of a reward function at most."""


def check_sources(config: PolicyConfig, chat: Chat, prompts: Sequence[Prompt]) -> None:
    """Check every reward of a config without loading a model.

    Args:
        prompts: all prompts of the run, held-out ones included.

    Raises:
        UserError: a reward cannot be used.
    """
    held_out = [] if config.held_out_reward is None else [("held_out_reward", config.held_out_reward)]
    checks: Mapping[RewardKind, Callable[[RewardSourceConfig], None]] = {
        "adapter": lambda source: _check_adapter(source, chat, config),
        "classifier": lambda source: _check_classifier(source),
        "server": lambda source: server(source).check(),
        "function": lambda source: _check_function(source, config, chat, prompts),
        "judge": lambda source: _check_judge(source, config),
        "ensemble": lambda source: _check_ensemble(source, chat, config),
        "principle": lambda source: _check_principle(source, chat, config),
    }
    for _, source in [*(("reward", source) for source in config.reward), *held_out]:
        checks[source.kind](source)


def _check_adapter(source: RewardSourceConfig, chat: Chat, config: PolicyConfig) -> None:
    adapter = RewardAdapter.read(Path(source.place))
    adapter.lora.check_template(chat)
    require_room(config, adapter.card["max_length"])


def _check_ensemble(source: RewardSourceConfig, chat: Chat, config: PolicyConfig) -> None:
    assert source.ensemble is not None  # by its kind
    for folder in source.ensemble.adapters:
        _check_adapter(RewardSourceConfig(adapter=folder), chat, config)


def _check_principle(source: RewardSourceConfig, chat: Chat, config: PolicyConfig) -> None:
    assert source.principle is not None  # its kind says so
    adapter = read_principle_model(Path(source.principle))
    adapter.check_template(chat)
    require_room(config, adapter.card["max_length"], question_tokens(chat, source.principles))


def _check_classifier(source: RewardSourceConfig) -> None:
    with naming(source):
        check_scorer(source.place, label=source.label, reasoning=source.reasoning)


def _check_function(
    source: RewardSourceConfig, config: PolicyConfig, chat: Chat, prompts: Sequence[Prompt]
) -> None:
    reward = function(source)
    if isinstance(reward, FunctionReward):
        reward.check(*_sample(chat, prompts))
    else:
        _check_gold(prompts, some_suffice=config.reward_shaping.missing == "drop")


def _check_gold(prompts: Sequence[Prompt], *, some_suffice: bool) -> None:
    """Check that each prompt has a check of a known family; with `some_suffice`, at least one.

    Raises:
        DataError: a prompt has a check of another family, or none.
    """
    for prompt in prompts:
        custom = prompt.columns.get("check")
        if prompt.check is None and custom is not None:
            family = custom.get("family") if isinstance(custom, dict) else None
            raise DataError(
                f"The reward `gold` cannot evaluate the check {excerpt(custom, family)}: its family is "
                f"{family!r}.",
                allowed=f"family: {', '.join(CONSTRAINTS)}",
                fix="evaluate custom checks with a function: reward={function: FILE.py:NAME} gets them as "
                "`check`",
            )
    without = [prompt for prompt in prompts if prompt.check is None]
    if without and not (some_suffice and len(without) < len(prompts)):
        raise DataError(
            f"The reward `gold` needs a check in every prompt; {len(without)} of {len(prompts)} have none, "
            f"for example {excerpt(without[0].messages[-1].content)} of "
            f"{without[0].source or 'no named source'}.",
            allowed="prompts with a column `check`, as those of `path: demo`",
            fix="name the column: columns.check=COLUMN; or use another reward"
            + (
                ""
                if len(without) == len(prompts)
                else "; or leave such answers out: reward_shaping.missing=drop"
            ),
        )


def _sample(chat: Chat, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Rollout]]:
    """Two sample answers to the first prompt of each data source."""
    first = list({prompt.source: prompt for prompt in reversed(prompts)}.values())[-SAMPLE_PROMPTS:][::-1]
    repeated, rollouts = [], []
    for prompt in first:
        prompt_ids = tuple(chat.prompt_ids(prompt.messages))
        for text in SAMPLE_ANSWERS:
            ids = tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
            repeated.append(prompt)
            rollouts.append(Rollout(prompt_ids, (*ids, chat.stop_ids[0]), (), True, text))
    return repeated, rollouts


def _check_judge(source: RewardSourceConfig, config: PolicyConfig) -> None:
    """Check that the server answers, and that a pairwise judge has two answers to compare, also in the
    evaluation."""
    judge = source.judge
    assert judge is not None  # by its kind
    sizes = {
        "rollouts.samples_per_prompt": config.rollouts.samples_per_prompt,
        "evaluation.samples": config.evaluation.samples,
    }
    for key, size in sizes.items():
        if judge.pairwise and size < 2:
            raise ConfigError(
                f"judge.pairing is {judge.pairing}, and {key} is {size}.",
                allowed="at least 2 answers to compare",
                fix=f"{key}=2, or judge.pairing=single",
            )
    with closing(JudgeClient(judge)) as client:
        client.check()
