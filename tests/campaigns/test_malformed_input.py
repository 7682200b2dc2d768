"""Malformed input, drawn by hypothesis: every door answers with one of our errors, and never with a stack
trace.

A draw takes a valid example (a config, a row, a server's answer), replaces, deletes or adds a few of its
values, and hands it to the code that reads it. What is allowed: success, or a `UserError` (exit code 2).
`EXAMPLES` draws per door; a failing one is shrunk and printed.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward.judge.forms import read_pair, read_single
from rlhf.annotate.exchange import from_argilla, from_label_studio
from rlhf.annotate.tasks import read_tasks
from rlhf.config.load import load_config
from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import DataSource
from rlhf.core.errors import UserError
from rlhf.data.comparisons import load_comparisons
from rlhf.data.evaluation.benchmarks import load_benchmark
from rlhf.data.load import load_preferences, load_principles, load_prompts, load_ratings

ROOT = Path(__file__).parents[2]
EXAMPLES = 60
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\ud800", "<|im_end|>", "-1", "1e999", "~/x", "$NOT_SET", "../..", "\x00", "a" * 5000]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
RATING = {
    "prompt": "P",
    "response": "R",
    **dict.fromkeys(["helpfulness", "correctness", "coherence", "complexity", "verbosity"], 3),
}
FIELDS = {"prompt": MESSAGES[:1], "response_1": "A", "response_2": "B"}
LABEL_STUDIO = [
    {
        "data": FIELDS,
        "annotations": [
            {
                "completed_by": 1,
                "result": [
                    {"from_name": "preference", "type": "pairwise", "value": {"selected": "left"}},
                    {"from_name": "strength", "type": "choices", "value": {"choices": ["-3"]}},
                    {"from_name": "reason", "type": "textarea", "value": {"text": ["x"]}},
                ],
            }
        ],
    }
]
ARGILLA = [
    {
        "fields": FIELDS,
        "responses": {
            "preference": [{"value": 2, "user_id": "ana"}],
            "reason": [{"value": "x", "user_id": "ana"}],
        },
    }
]
MARKS = [{"strength": n, "justification": "x"} for n in (1, 2, 2)]


def source(path: str, format_: str = "columns", **columns: str) -> DataSource:
    return DataSource(path=path, format=format_, columns=columns)  # type: ignore[arg-type]


ROWS: Mapping[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "helpsteer2": (
        RATING,
        lambda path: load_ratings([source(path, "helpsteer2")], seed=0, max_spread=2),
    ),
    "helpsteer2 disagreements": (
        {**RATING, **{name: [1, 2, 3] for name in list(RATING)[2:]}},
        lambda path: load_ratings([source(path, "helpsteer2")], seed=0, max_spread=2),
    ),
    "helpsteer2-preference": (
        {
            "split": "train",
            "prompt": "P",
            "response_1": "A",
            "response_2": "B",
            "preference_strength": 2,
            "all_preferences_unprocessed": MARKS,
        },
        lambda path: load_preferences([source(path, "helpsteer2-preference")], seed=0, max_spread=2),
    ),
    "helpsteer3": (
        {
            "domain": "general",
            "language": "english",
            "context": MESSAGES[:1],
            "response1": "A",
            "response2": "B",
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "x"}] * 3,
        },
        lambda path: load_preferences([source(path, "helpsteer3")], seed=0, max_spread=2),
    ),
    "principles": (
        {
            "domain": "general",
            "language": "english",
            "context": MESSAGES[:1],
            "response": "A",
            "principle": "clarity",
            "fulfilment": "Yes",
        },
        lambda path: load_principles([source(path, "helpsteer3-principle")], seed=0),
    ),
    "pairs of messages": (
        {
            "chosen": MESSAGES,
            "rejected": [*MESSAGES[:1], {"role": "assistant", "content": "No"}],
            "strength": 2,
        },
        lambda path: load_preferences([source(path)], seed=0, max_spread=2),
    ),
    "pairs with a map": (
        {"question": "P", "good": "A", "bad": "B", "margin": 1.5},
        lambda path: load_preferences(
            [source(path, prompt="question", chosen="good", rejected="bad", strength="margin")],
            seed=0,
            max_spread=2,
        ),
    ),
    "prompts": (
        {
            "prompt": MESSAGES[:1],
            "check": {"family": "words", "limit": 5, "key": "tea", "related": [], "request": "x"},
            "source": "x",
        },
        lambda path: load_prompts([source(path)]),
    ),
    "comparisons": (
        {"prompt": "P", "chosen": "A", "rejected": "B", "subset": "s", "section": "t"},
        load_comparisons,
    ),
    "rewardbench 2": (
        {
            "id": "1",
            "prompt": "P",
            "chosen": ["A"],
            "rejected": ["B", "C", "D"],
            "num_correct": 1,
            "num_incorrect": 3,
            "total_completions": 4,
            "models": ["m"] * 4,
            "subset": "Math",
            "additional_metadata": {},
        },
        load_benchmark,
    ),
    "judgebench": (
        {
            "pair_id": "1",
            "original_id": "1",
            "source": "mmlu-pro-math",
            "question": "P",
            "response_model": "m",
            "response_A": "A",
            "response_B": "B",
            "label": "A>B",
        },
        load_benchmark,
    ),
    "best of n": ({"prompt": "P", "responses": ["A", "B"], "scores": [1.0, 0.0]}, load_benchmark),
    "annotation tasks": ({"prompt": "P", "response_1": "A", "response_2": "B"}, read_tasks),
}


@st.composite
def mutated(draw: st.DrawFn, valid: Any) -> Any:
    """The example with one to three of its values replaced, removed or added."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        value = _mutate(draw, value)
    return value


def _mutate(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        action = draw(st.sampled_from(["deeper", "replace", "remove", "add"]))
        changed = dict(value)
        if action == "deeper":
            changed[key] = _mutate(draw, value[key])
        elif action == "replace":
            changed[key] = draw(VALUES)
        elif action == "remove":
            del changed[key]
        else:
            changed[draw(st.text(max_size=8))] = draw(VALUES)
        return changed
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _mutate(draw, value[place]), *value[place + 1 :]]
    return draw(VALUES)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_every_reader(name: str, tmp_path: Path) -> None:
    valid, read = ROWS[name]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(valid) + "\n")
    read(str(file))  # the example itself is valid

    @FUZZ
    @given(mutated(valid))
    def fuzz(row: Any) -> None:
        file.write_text(json.dumps(valid) + "\n" + json.dumps(row) + "\n")
        expect_our_errors(lambda: read(str(file)))

    fuzz()


@pytest.mark.parametrize(
    ("schema", "file"),
    [(RewardConfig, "configs/reward/demo.yaml"), (PolicyConfig, "configs/policy/demo.yaml")],
)
def test_configs(schema: type[RewardConfig] | type[PolicyConfig], file: str, tmp_path: Path) -> None:
    valid = yaml.safe_load((ROOT / file).read_text())
    path = tmp_path / "config.yaml"

    @FUZZ
    @given(mutated(valid))
    def fuzz(content: Any) -> None:
        path.write_text(json.dumps(content))  # JSON is YAML
        expect_our_errors(lambda: load_config(path, schema))

    fuzz()


@FUZZ
@given(st.binary(max_size=200))
def test_bytes_in_place_of_a_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("x.jsonl", "x.json", "x.csv", "x.parquet", "x.jsonl.gz", "x.arrow"):
        (folder / name).write_bytes(content)
        expect_our_errors(lambda name=name: load_comparisons(str(folder / name)))
    (folder / "x.yaml").write_bytes(content)
    expect_our_errors(lambda: load_config(folder / "x.yaml", RewardConfig))


@FUZZ
@given(st.text(max_size=300))
def test_texts_of_a_judge(text: str) -> None:
    for form in ("boxed", "json", "yes-no", "rubric"):
        score = read_single(form, text, 2)
        assert score is None or 0 <= score <= 5
    for form in ("boxed", "json"):
        read_pair(form, text)


@FUZZ
@given(VALUES)
def test_exports_of_other_tools(content: Any) -> None:
    for read in (from_label_studio, from_argilla):
        for given_content in (content, [content], [{"data": content}], [{"fields": content}]):
            expect_our_errors(lambda read=read, given_content=given_content: read(given_content))


@FUZZ
@given(mutated(LABEL_STUDIO), mutated(ARGILLA))
def test_damaged_exports_of_other_tools(label_studio: Any, argilla: Any) -> None:
    expect_our_errors(lambda: from_label_studio(label_studio))
    expect_our_errors(lambda: from_argilla(argilla))


def expect_our_errors(read: Callable[[], object]) -> None:
    """Run a reader; success and a `UserError` are fine, anything else fails the test."""
    message = "success"
    with contextlib.suppress(UserError):
        try:
            read()
        except UserError as error:
            message = str(error)
            raise
    assert message.strip()
