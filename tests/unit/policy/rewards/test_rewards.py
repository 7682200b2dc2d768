"""Sources of rewards and their sum: what an answer is worth, and what becomes of one that nobody could
judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from policy.rewards.function import FunctionReward, GoldReward
from policy.rewards.function_file import load_function
from policy.rewards.model import ModelReward
from policy.rewards.protocol import Missing, RewardResult
from policy.rewards.weighted import WeightedRewards, WeightedTerm
from reward.scorer import Score
from rlhf.core.errors import ConfigError, DataError, RewardError
from rlhf.core.records import Conversation, Message, Prompt, Rollout
from rlhf.data.checks import gold_score
from rlhf.data.demo.dataset import demo_rows

PROMPTS = [Prompt((Message("system", "S"), Message("user", f"Q{n}")), source="here") for n in range(3)]
ROLLOUTS = [Rollout((1,), (5,) * (n + 1), (), True, f"answer {n}") for n in range(3)]


class Fixed:
    """A source that says what it was caught."""

    def __init__(self, *values: float | Missing) -> None:
        self.values = list(values)

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        return self.values


def weighted(*parts: WeightedTerm, missing: Any = "error") -> RewardResult:
    return WeightedRewards(parts, missing).of(PROMPTS, ROLLOUTS)


def test_a_weighted_sum() -> None:
    given = weighted(
        WeightedTerm("a", 2.0, Fixed(1.0, -3.0, 0.5)), WeightedTerm("b", -0.5, Fixed(4.0, 2.0, 0.0))
    )
    assert given.rewards == [2.0 - 2.0, -6.0 - 1.0, 1.0]
    assert given.columns == {"a": [1.0, -3.0, 0.5], "b": [4.0, 2.0, 0.0]}  # bare, without the weight
    assert given.known == [True] * 3


def test_a_single_source_is_its_own_sum() -> None:
    given = weighted(WeightedTerm("a", 1.0, Fixed(0.1, 0.2, 0.3)))
    assert (given.rewards, given.columns) == ([0.1, 0.2, 0.3], {})


def test_a_weight_of_zero_only_logs() -> None:
    given = weighted(
        WeightedTerm("a", 1.0, Fixed(1.0, 2.0, 3.0)), WeightedTerm("b", 0.0, Fixed(Missing("no"), 9.0, 9.0))
    )
    assert given.rewards == [1.0, 2.0, 3.0] and given.missing == {}
    assert math.isnan(given.columns["b"][0]) and given.columns["b"][1:] == [9.0, 9.0]


def test_a_sum_with_a_missing_part_is_missing_and_never_the_rest() -> None:
    parts = (
        WeightedTerm("a", 1.0, Fixed(1.0, 2.0, 3.0)),
        WeightedTerm("b", 1.0, Fixed(5.0, Missing("it is ill"), 7.0)),
    )
    given = weighted(*parts, missing="drop")
    assert given.known == [True, False, True] and math.isnan(given.rewards[1])
    assert (given.rewards[0], given.rewards[2]) == (6.0, 10.0)
    assert given.missing == {1: "b: it is ill"}


def test_a_missing_reward_ends_the_run_where_it_is_an_error() -> None:
    with pytest.raises(RewardError) as caught:
        weighted(WeightedTerm("a", 1.0, Fixed(1.0, Missing("it is ill"), 3.0)))
    assert caught.value.exit_code == 1
    assert all(part in caught.value.found for part in ("1 of 3", "a: it is ill", "'Q1'", "'answer 1'"))
    assert "reward_shaping.missing=drop" in caught.value.fix


class PlusCounter:
    """Scores by the number of "+"; fails where a conversation holds "too long"."""

    model = None

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        self.calls.append(len(conversations))
        if any("too long" in conversation[-1].content for conversation in conversations):
            raise DataError("it has 900 tokens", allowed="at most 512")
        assert all(
            conversation[-1].role == "assistant" and conversation[0].role == "system"
            for conversation in conversations
        )
        return [Score(float(conversation[-1].content.count("+")), {}) for conversation in conversations]


def test_an_answer_that_cannot_be_scored_spoils_no_other() -> None:
    texts = ["+", "++", "too long", "+++", ""]
    scorer: Any = PlusCounter()
    rollouts = [Rollout((1,), (5,), (), True, text) for text in texts]
    assert ModelReward(scorer).of([PROMPTS[0]] * 5, rollouts) == [
        1.0,
        2.0,
        Missing("it has 900 tokens"),
        3.0,
        0.0,
    ]
    assert scorer.calls[0] == 5  # together, as long as that works


def function(settings: Any) -> FunctionReward:
    return FunctionReward(settings, "mine.py:f")


def test_a_function_is_called_as_trl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **rest: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, **rest)
        return [1, 2.5, True]  # type: ignore[list-item]

    assert function(reward).of(PROMPTS, ROLLOUTS) == [1.0, 2.5, 1.0]
    assert seen["prompts"][2] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Q2"}]
    assert seen["completions"][1] == [{"role": "assistant", "content": "answer 1"}]
    assert seen["completion_ids"] == [[5], [5, 5], [5, 5, 5]]
    assert (seen["source"], seen["check"]) == (["here"] * 3, [None] * 3)


def test_trls_own_functions_can_be_named() -> None:
    reward = FunctionReward(load_function("trl.rewards:think_format_reward"), "trl")
    right = [Rollout((1,), (5,), (), True, text) for text in ("<think>\nso\n</think>\nyes", "yes")]
    assert reward.of(PROMPTS[:2], right) == [1.0, 0.0]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "3", [1.0]])
def test_what_is_no_number_is_missing(value: Any) -> None:
    first, second, third = function(lambda **_: [1.0, value, 2.0]).of(PROMPTS, ROLLOUTS)
    assert (first, third) == (1.0, 2.0)
    assert isinstance(second, Missing) and second.reason.startswith("it returned ")


def test_a_function_that_fails_is_an_error_with_its_place() -> None:
    def broken(**_: Any) -> list[float]:
        return [1 / 0]

    with pytest.raises(RewardError, match=r"mine.py:f .*test_rewards.py:\d+: ZeroDivisionError"):
        function(broken).of(PROMPTS, ROLLOUTS)
    with pytest.raises(RewardError, match=r"mine.py:f .*\b2 .*\b3 "):
        function(lambda **_: [1.0, 2.0]).of(PROMPTS, ROLLOUTS)


def test_gold_is_the_check_of_a_prompt_and_missing_where_there_is_none() -> None:
    row = next(iter(demo_rows("prompts", "train")))
    checked = Prompt((Message("user", "Q"),), check=row["check"])
    judged = GoldReward().of([checked, PROMPTS[0]], ROLLOUTS[:2])
    assert judged == [gold_score(row["check"], "answer 0"), Missing("the prompt has no check")]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (None, "none.py:f", "none.py"),
        ("def f(:", "mine.py:f", "mine.py.*: SyntaxError"),
        ("import no_such_thing", "mine.py:f", "mine.py.*: ModuleNotFoundError"),
        ("def brevity(): ...", "mine.py:brevty", "'brevty'.* 'brevity'"),
        ("f = 3", "mine.py:f", "mine.py.* int"),
        (None, "no_such_package:f", "'no_such_package'"),
    ],
)
def test_a_function_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_function(place)
    assert caught.value.exit_code == 2


def test_a_function_out_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def length(completion_ids, **_):\n    return [-len(i) for i in completion_ids]"
    )
    load = load_function(f"{tmp_path}/mine.py:length")
    assert FunctionReward(load, "length").of(PROMPTS, ROLLOUTS) == [-1.0, -2.0, -3.0]
