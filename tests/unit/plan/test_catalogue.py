"""The plans in the heads of the configs are what `rlhf plan` says today."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config.reading.either import load_either
from rlhf.plan.catalogue import BEGIN, END, PLANNED, Catalogue, between, files

CONFIGS = Path(__file__).parents[3] / "configs"
REMEDY = "python -m rlhf.plan.catalogue"


def test_what_stands_between_the_markers_is_replaced() -> None:
    block = f"# {BEGIN} old\n# a plan\n# {END}\n"
    text = between(f"# head\n{block}output: x\n", iter([f"# {BEGIN} new", f"# {END}"]))
    assert text == f"# head\n# {BEGIN} new\n# {END}\noutput: x\n"
    # A config without markers gets them after the comment at its top.
    assert between("# head\noutput: x  # y\n", iter(["# new"])) == "# head\n# new\noutput: x  # y\n"


@pytest.mark.parametrize("command", ["reward", "policy"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "nemotron-70b"])
@pytest.mark.parametrize(
    "cards", [("1xRTX4090", 1), ("2xRTX4090", 1), ("1xL40S", 1), ("1xH100", 1), ("8xH100", 2)]
)
def test_every_machine_has_a_config(command: str, model: str, cards: tuple[str, int]) -> None:
    name, halves = cards
    split = f"{int(name[0]) // halves}{name[1:]}"
    known = {planned.gpus for planned in PLANNED if planned.config.startswith(f"{command}/{model}")}
    assert name in known or split in known


@pytest.mark.parametrize("name", sorted({planned.config for planned in PLANNED}))
def test_a_planned_config_is_complete(name: str) -> None:
    config = load_either(CONFIGS / f"{name}.yaml")
    assert config.model.base.startswith("meta-llama/Llama-3.")
    assert config.model.gradient_checkpointing


def test_reward_and_policy_of_a_machine_have_the_same_weights() -> None:
    formats: dict[str, set[str]] = {}
    for planned in PLANNED:
        config = load_either(CONFIGS / f"{planned.config}.yaml")
        machine = f"{config.model.base} {planned.gpus}"
        formats.setdefault(machine, set()).add(config.model.quantization)
    assert all(len(result) == 1 for result in formats.values()), formats


def test_the_head_of_a_small_config_is_up_to_date() -> None:
    name = "reward/llama-3.1-8b-24gb"
    head = "\n".join(Catalogue(CONFIGS).head(name))
    assert head in (CONFIGS / f"{name}.yaml").read_text("utf-8"), REMEDY
    assert head.count("fits. GiB of 23.5") == 2


@pytest.mark.slow
def test_every_plan_is_up_to_date_and_fits() -> None:
    for file, text in files(CONFIGS):
        assert file.read_text("utf-8") == text, REMEDY
        assert "DOES NOT FIT" not in text and "| NO |" not in text
