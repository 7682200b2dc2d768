from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reward.training.batches import TOO_LONG, Item
from reward.training.data import IN_BENCHMARK, items_of, load_data, trained_attributes, untrained_lines
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.core.records import Message
from rlhf.data.split import held_out
from rlhf.kernels.packing import Tree
from rlhf.models.chat import Chat
from rlhf.training.schedule import draw_order, steps_of

TREE = Tree((1,), ((2,),))
PAIR = Item(Tree((1,), ((2,), (3,))), ((None,), (None,)), 2)
RATED = Item(TREE, ((1.0,),))
BOTH = Item(Tree((1,), ((2,), (3,))), ((1.0,), (None,)), -1)
BARE = Item(Tree((1,), ((2,), (3,))), ((None,), (None,)), 0)


def stage(**values: Any) -> StageConfig:
    return StageConfig.model_validate({"name": "one", **values})


def test_a_stage_takes_the_items_that_carry_one_of_its_targets() -> None:
    items = [PAIR, RATED, BOTH, BARE]
    single = Item(Tree((1,), ((2,),)), ((1.0,),))  # of the pair, the response that is rated
    assert items_of(stage(regression_weight=1), items) == [RATED, single]
    assert items_of(stage(preference_weight=1), items) == [PAIR, BOTH]
    assert items_of(stage(regression_weight=1, preference_weight=1), items) == [PAIR, RATED, BOTH]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1, None, 3), (2, None, 6), (0.5, None, 1), (0.01, None, 1), (1, 2, 2), (1, 9, 3)],
)
def test_updates_of_a_stage(epochs: float, max_steps: int | None, expected: int) -> None:
    settings = stage(regression_weight=1, epochs=epochs, max_steps=max_steps, batch_size=4)
    assert steps_of(settings, items=13) == expected  # 13 / 4 = 3 whole batches an epoch


def test_every_item_is_drawn_once_an_epoch_and_more_draws_only_add() -> None:
    order = draw_order(5, 12, seed=3)
    assert len(order) == 12 and sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert draw_order(5, 7, seed=3) == order[:7]
    assert draw_order(5, 12, seed=4) != order


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> RewardConfig:
    rows = [
        {"prompt": f"Question {n}?", "response_1": "yes", "response_2": "no no no", "preference_strength": 2}
        for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = [
        {"prompt": f"Question {n}?", "chosen": "a", "rejected": "b", "subset": "s"} for n in (0, 1, 2, 99)
    ]
    (tmp_path / "benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benchmark))
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(tiny_base), "max_length": 100},
            "data": {"preferences": [{"path": str(tmp_path / "pairs.jsonl")}], "validation_share": 0.3},
            "stages": [{"name": "pairs", "preference_weight": 1}],
            "benchmark": str(tmp_path / "benchmark.jsonl"),
        }
    )


def test_sides_are_decided_by_the_prompt_and_the_benchmark_is_kept_out(
    config: RewardConfig, tiny_chat: Chat
) -> None:
    data = load_data(config, tiny_chat)
    assert data.drops.reasons == {IN_BENCHMARK: 3}
    path = config.data.preferences[0].path
    assert data.drops.examples == {IN_BENCHMARK: [f"{path}:1", f"{path}:2", f"{path}:3"]}
    assert len(data.training) + len(data.validation) == 57
    prompts = [(Message("user", f"Question {n}?"),) for n in range(3, 60)]
    held = [prompt for prompt in prompts if held_out(prompt, 0.3, "validation")]
    assert 5 < len(held) == len(data.validation) < 30
    assert [pair.prompt for pair in data.held_out] == held
    assert {(pair.chosen, pair.rejected, pair.strength) for pair in data.held_out} == {("no no no", "yes", 2)}
    trained = {item.tree.trunk for item in data.training}
    assert not trained & {item.tree.trunk for item in data.validation}


def test_the_held_out_pairs_are_the_validation_pairs(config: RewardConfig, tiny_chat: Chat) -> None:
    """What is too long to be validated on is not evaluated either."""
    length = len(
        tiny_chat.conversation_ids((Message("user", "Question 3?"), Message("assistant", "no no no")))
    )
    short = config.model_copy(update={"model": config.model.model_copy(update={"max_length": length})})
    data = load_data(short, tiny_chat)  # one token a digit: questions from 10 on are one longer
    assert 0 < len(data.training) + len(data.validation) <= 7
    assert len(data.held_out) == len(data.validation)


def test_test_prompts_are_neither_trained_nor_validated_on(config: RewardConfig, tiny_chat: Chat) -> None:
    data_config = config.data.model_copy(update={"test_share": 0.4})
    data = load_data(config.model_copy(update={"data": data_config}), tiny_chat)
    prompts = [(Message("user", f"Question {n}?"),) for n in range(3, 60)]
    test = [prompt for prompt in prompts if held_out(prompt, 0.4, "test")]
    assert 10 < len(test) < 40
    assert [pair.prompt for pair in data.held_out] == test
    assert len(data.training) + len(data.validation) + len(test) == 57
    rest = [prompt for prompt in prompts if prompt not in test]
    assert len(data.validation) == sum(held_out(prompt, 0.3, "validation") for prompt in rest) > 0


def test_test_pairs_that_are_too_long_are_counted(config: RewardConfig, tiny_chat: Chat) -> None:
    everything = config.data.model_copy(update={"test_share": 1.0, "validation_share": 0.0})
    shorter = config.model.model_copy(update={"max_length": 1})
    settings = config.model_copy(update={"data": everything, "model": shorter})
    with pytest.raises(DataError, match=TOO_LONG):
        load_data(settings, tiny_chat)  # nothing is left to learn from, and the message holds the drop report


@pytest.mark.parametrize("share", ["validation_share", "test_share"])
def test_rows_that_are_all_held_out_are_named_with_their_share(
    config: RewardConfig, tiny_chat: Chat, share: str
) -> None:
    shares = {"validation_share": 0.0, "test_share": 0.0} | {share: 1.0}
    everything = config.data.model_copy(update=shares)
    with pytest.raises(DataError) as caught:
        load_data(config.model_copy(update={"data": everything}), tiny_chat)
    assert f"57  held out by data.{share}" in caught.value.found
    assert (caught.value.fix or "").startswith(f"data.{share}=0 ")


def test_attributes_that_no_row_rates_are_untrained(config: RewardConfig, tiny_chat: Chat) -> None:
    assert list(load_data(config, tiny_chat).untrained) == []  # the reward alone, which pairs train
    wider = config.model_copy(update={"attributes": ["helpfulness", "wit"]})
    data = load_data(wider, tiny_chat)
    assert list(data.untrained) == ["wit"]
    (note,) = untrained_lines(wider, data)
    assert "wit" in note and "attributes=[helpfulness]" in note
    assert untrained_lines(config, load_data(config, tiny_chat)) == []


def test_ratings_of_an_attribute_that_the_head_lacks(
    config: RewardConfig, tmp_path: Path, tiny_chat: Chat
) -> None:
    rows = [{"prompt": f"Question {n}?", "response": "yes", "helpfullness": n % 5} for n in range(9)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "prompt", "response": "response", "helpfullness": "helpfullness"}
    source = {"path": str(tmp_path / "rated.jsonl"), "columns": columns}
    data = config.data.model_copy(update={"ratings": [DataSource.model_validate(source)]})
    rated = config.model_copy(update={"data": data})
    load_data(rated, tiny_chat)  # of no use for the stage, which learns from pairs
    hybrid = [stage(regression_weight=1, preference_weight=1)]
    with pytest.raises(DataError) as caught:
        load_data(rated.model_copy(update={"stages": hybrid}), tiny_chat)
    assert "The ratings are of helpfullness" in caught.value.found
    assert "Did you mean 'helpfulness'?" in caught.value.found


def test_stages_train_what_their_terms_reach(config: RewardConfig) -> None:
    two = config.model_copy(update={"attributes": ["helpfulness", "wit"]})
    rated = Item(TREE, ((None, 1.0),))

    def trained(*weights: tuple[float, float]) -> set[str]:
        stages = [
            stage(name=str(number), regression_weight=regression, preference_weight=preference)
            for number, (regression, preference) in enumerate(weights)
        ]
        return trained_attributes(two.model_copy(update={"stages": stages}), [rated, PAIR])

    assert trained((1, 0)) == {"wit"}
    assert trained((0, 1)) == {"helpfulness"}  # ratings are there, and no term uses them
    assert trained((1, 0), (0, 1)) == {"helpfulness", "wit"}


def test_a_reward_that_nothing_trains_is_refused(
    config: RewardConfig, tmp_path: Path, tiny_chat: Chat
) -> None:
    rows = [{"prompt": f"Question {n}?", "response": "yes", "ratings": {"wit": n % 5}} for n in range(9)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RewardConfig.model_validate(
        {
            **config.model_dump(mode="json", exclude={"benchmark"}),
            "data": {"ratings": [{"path": str(tmp_path / "rated.jsonl")}], "validation_share": 0},
            "stages": [{"name": "ratings", "regression_weight": 1}],
            "attributes": ["helpfulness", "wit"],
        }
    )
    with pytest.raises(DataError) as caught:
        load_data(settings, tiny_chat)
    assert caught.value.fix == "attributes=[wit]"
