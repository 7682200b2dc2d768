from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from rlhf.config.policy import PolicyConfig
from rlhf.config.reading.either import schema_of
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message
from rlhf.inspection.tables import show_targets
from rlhf.models.chat import Chat

Run = Callable[..., Result]
NAMES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def pair(prompt: str, strength: int, annotations: list[int], **other: Any) -> dict[str, Any]:
    raw = [{"strength": annotation, "justification": "so"} for annotation in annotations]
    row = {"split": "train", "prompt": prompt, "response_1": "no", "response_2": "yes, it is"}
    return {**row, "preference_strength": strength, "all_preferences_unprocessed": raw, **other}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs with annotations, and ratings of the responses to one of them, in HelpSteer2's layout."""
    rated = {"prompt": "Is it?", **dict.fromkeys(NAMES, 2)}
    files = {
        "train.jsonl": [
            {**rated, "response": "no", "helpfulness": 1},
            {**rated, "response": "yes, it is", "helpfulness": 4},
            {**rated, "prompt": "Alone?", "response": "yes"},
        ],
        "preference/preference.jsonl": [
            pair("Is it?", 2, [2, 2, 3]),
            pair("Was it?", -1, [-1, -1, 1, -2]),
            pair("Will it be?", 0, [-1, 1, 1]),
            pair("Might it be? " + "It might. " * 60, 1, [3, 3, 3, -100]),
        ],
        "disagreements/disagreements.jsonl": [
            {**rated, "response": "no", **{key: [1, 1, 2] for key in NAMES}},
            {**rated, "response": "yes, it is", **{key: [4, 3, 3, 0] for key in NAMES}},
        ],
    }
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def config(folder: Path, tiny_base: Path) -> Path:
    file = folder / "reward.yaml"
    file.write_text(f"""
output: unused
model: {{base: {tiny_base}, max_length: 100}}
data:
  ratings: [{{path: {folder}, format: helpsteer2}}]
  preferences: [{{path: {folder}, format: helpsteer2-preference}}]
stages: [{{name: both, regression_weight: 1, preference_weight: 1}}]
""")
    return file


def as_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_figures_of_a_reward_config(rlhf_command: Run, config: Path, folder: Path) -> None:
    result = as_json(rlhf_command("inspect", config, "--json"))
    assert {name: (part["read"], part["kept"]) for name, part in result["sources"].items()} == {
        f"preferences of {folder} (train)": (4, 3),
        f"ratings of {folder} (train)": (3, 3),
    }
    dropped = result["sources"][f"preferences of {folder} (train)"]["dropped"]
    place = f"{folder}/preference/preference.jsonl:3"
    assert dropped == {"tie (strength 0)": {"count": 1, "examples": [place]}}
    targets = result["targets"]
    assert [
        targets[name] for name in ("pairs", "pairs with both responses rated", "pairs without ratings")
    ] == [
        3,
        1,
        2,
    ]
    assert targets["single rated responses"] == 1
    assert targets["ratings by attribute"] == dict.fromkeys(NAMES, 3)
    assert targets["strengths"] == {"-1": 1, "1": 1, "2": 1}
    assert targets["longer response preferred"] == pytest.approx(2 / 3)
    (report,) = result["agreement"].values()
    assert (report["pairs"], report["kept"], report["compared"], report["equal"]) == (4, 3, 4, 3)
    assert [row["place"] for row in report["differing"]] == [f"{folder}/preference/preference.jsonl:4"]


def test_lengths_are_those_of_every_conversation_that_would_be_scored(
    rlhf_command: Run, config: Path, tiny_chat: Chat
) -> None:
    result = as_json(rlhf_command("inspect", config, "--json"))
    asked = {"Is it?": ("no", "yes, it is"), "Was it?": ("no", "yes, it is"), "Alone?": ("yes",)}
    expected = [
        len(tiny_chat.conversation_ids((Message("user", prompt), Message("assistant", answer))))
        for prompt, answers in asked.items()
        for answer in answers
    ]
    lengths = result["lengths"]
    assert (lengths["count"], lengths["limit"], lengths["longer"]) == (7, 100, 2)
    assert lengths["quantiles"]["0%"] == min(expected)
    assert sum(bar["count"] for bar in lengths["histogram"]) == 7
    assert result["too_long"] == {"pairs": 1, "single ratings": 0}


def test_the_example_is_the_first_chosen_conversation_in_tokens(
    rlhf_command: Run, config: Path, tiny_chat: Chat
) -> None:
    example = as_json(rlhf_command("inspect", config, "--json"))["example"]
    ids = tiny_chat.conversation_ids((Message("user", "Is it?"), Message("assistant", "yes, it is")))
    assert example["ids"] == ids
    assert example["read_at"] == len(ids) - 1
    assert "".join(example["pieces"]) == tiny_chat.tokenizer.decode(ids)
    assert [example["pieces"][place] for place in example["special"]] == 3 * ["<|im_start|>", "<|im_end|>"]
    assert example["target"] == {"preferred by": 2, **dict.fromkeys(NAMES, 2.0), "helpfulness": 4.0}


def test_what_the_chat_template_refuses_is_counted_apart(
    rlhf_command: Run, config: Path, folder: Path, refusing_base: Path
) -> None:
    with (folder / "preference" / "preference.jsonl").open("a") as file:
        file.write(json.dumps(pair("Was it a war?", 1, [1, 1, 1])) + "\n")
    result = as_json(rlhf_command("inspect", config, "--json", f"model.base={refusing_base}"))
    reason = "refused by the chat template: No war"
    assert result["dropped_later"][reason]["count"] == 1
    assert result["lengths"]["count"] == 7 and result["targets"]["strengths"] == {"-1": 1, "1": 1, "2": 1}


def test_what_a_person_sees(rlhf_command: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    result = rlhf_command("inspect", config)
    assert result.exit_code == 0, result.output
    for line in (
        "(train): 4 read, 3 kept, 1 dropped",
        "tie (strength 0): ",
        "The computed aggregate is the published strength in 75.00% of 4 pairs:",
        "[3, 3, 3, -100] is +1 published, +3 computed",
        "2 are longer than model.max_length = 100; dropped: 1 pairs.",
        "The score is read at the last of",
    ):
        assert line in result.stdout
    pieces = next(line for line in result.stdout.splitlines() if line.startswith("<|im_start|>"))
    assert pieces.startswith("<|im_start|> system ⏎ ")


def test_raw_ratings_show_their_agreement(rlhf_command: Run, config: Path) -> None:
    words = ("data.ratings.0.split=disagreements", "data.max_spread=1")
    result = as_json(rlhf_command("inspect", config, *words, "--json"))
    (by_attribute,) = result["rating_agreement"].values()
    assert list(by_attribute) == list(NAMES)
    # 1, 1, 2 and 4, 3, 3 of the two: ordered pairs (1,1) 2, (1,2) 4, (3,3) 2, (3,4) 4; linear: observed 8/12;
    # values 1: 4, 2: 2, 3: 4, 4: 2; expected 2 * (8*1 + 16*2 + 8*3 + 8*1 + 4*2 + 8*1)/144 = 176/144.
    assert by_attribute["helpfulness"]["after"]["linear"] == pytest.approx(1 - (8 / 12) / (176 / 144))
    assert "helpfulness" in rlhf_command("inspect", config, *words).stdout


def test_the_prompts_of_a_policy_config(
    rlhf_command: Run, policy_config: Path, tiny_chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = as_json(rlhf_command("inspect", policy_config, "--json", "data.max_prompt_tokens=60"))
    assert result["command"] == "align-policy"
    assert result["targets"]["prompts"] == result["lengths"]["count"] == 60
    assert result["too_long"]["prompts"] == result["lengths"]["longer"] > 0
    example = result["example"]
    assert "".join(example["pieces"]).endswith("<|im_start|>assistant\n")
    assert "read_at" not in example and example["check"]["family"]
    monkeypatch.setenv("COLUMNS", "100")
    output = rlhf_command("inspect", policy_config).stdout
    assert f"The answer is sampled from here, until one of the stop ids {list(tiny_chat.stop_ids)}" in output


def test_an_example_longer_than_a_screen_is_shown_at_both_ends(rlhf_command: Run, config: Path) -> None:
    output = rlhf_command(
        "inspect", config, "model.max_length=400", "data.ratings=[]", "stages.0.regression_weight=0"
    )
    assert "more tokens ..." not in output.stdout  # the first pair is short
    long_first = f'data.preferences.0.where={{prompt: ["{"Might it be? " + "It might. " * 60}"]}}'
    output = rlhf_command(
        "inspect",
        config,
        "model.max_length=400",
        "data.ratings=[]",
        "stages.0.regression_weight=0",
        long_first,
    )
    assert output.exit_code == 0, output.output
    assert "more tokens ..." in output.stdout


def test_no_weights_are_loaded(rlhf_command: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    assert rlhf_command("inspect", config).exit_code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.preferences.0.limt=3", "'data.preferences.0.limt'"),
        ("data.ratings.0.path=/nowhere/at/all.jsonl", "/nowhere/at/all.jsonl"),
        ("model.base=/nowhere/at/all", "'/nowhere/at/all'"),
        ("data.preferences.0.annotations=mine", "annotations"),
    ],
)
def test_a_mistake_is_one_message(rlhf_command: Run, config: Path, change: str, message: str) -> None:
    result = rlhf_command("inspect", config, change)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.output


def test_a_config_says_which_command_it_is_for(tmp_path: Path) -> None:
    def of(text: str) -> type:
        (tmp_path / "c.yaml").write_text(text)
        return schema_of(tmp_path / "c.yaml")

    assert of("output: x\nreward: runs/x\n") is PolicyConfig
    assert of("output: x\nstages: []\n") is RewardConfig
    # What cannot be read is refused by `load_config`, in its own words.
    assert of("a: [") is schema_of(tmp_path / "missing.yaml") is RewardConfig


def test_shares_of_pairs_are_percentages() -> None:
    page = io.StringIO()
    show_targets({"pairs": 3, "longer response preferred": 1.0}, Console(file=page, width=80))
    assert "100.0%" in page.getvalue() and "pairs" in page.getvalue()
