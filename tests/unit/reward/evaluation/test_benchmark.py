"""RewardBench's rule, the generic rules, ties, bad scores and the batch self-check."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.evaluation.benchmarks.aggregate import EXAMPLE_COUNTS, REWARDBENCH_PAIRS, SECTIONS
from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.self_check import self_check
from rlhf.core.errors import DataError, DivergenceError, ModelError, RefusalError
from rlhf.core.records import Comparison, Conversation, Message
from rlhf.core.statistics import wilson_interval
from rlhf.data.drops import DropReport

PROMPT = (Message("user", "Which one?"),)


@dataclass(frozen=True)
class Score:
    reward: float
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass
class TextScorer:
    """Rewards the last message by a function of its text."""

    reward: Callable[[str], float]
    batches: list[int] = field(default_factory=list)

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        self.batches.append(len(conversations))
        return [Score(self.reward(conversation[-1].content)) for conversation in conversations]


def pair(chosen: str, rejected: str, subset: str = "one", section: str = "") -> Comparison:
    """A pair with a prompt of its own."""
    prompt = (Message("user", f"Which one, {chosen} or {rejected}?"),)
    return Comparison(prompt, chosen, rejected, subset, section)


def test_rows_sections_and_baseline_by_hand() -> None:
    # The scorer rewards the number of "+".
    comparisons = [
        pair("++", "+", "a", "Left"),  # right; the chosen answer is longer
        pair("+", "++", "a", "Left"),  # wrong; shorter
        pair("+..", "+", "a", "Left"),  # a tie: wrong; longer
        pair("+", "", "b", "Left"),  # right; longer
        pair("+", "....", "c", "Right"),  # right; shorter
    ]
    result, rows = evaluate(comparisons, TextScorer(lambda text: text.count("+")))
    assert rows[2] == {
        "id": 3,
        "prompt": 3,
        "subset": "a",
        "reward_chosen": 1.0,
        "reward_rejected": 1.0,
        "correct": False,
        "length_chosen": 3,
        "length_rejected": 1,
    }
    assert [row["correct"] for row in rows] == [True, False, False, True, True]
    subsets = {
        name: (row["accuracy"], row["count"], row["ties"], row["length_baseline"])
        for name, row in result["subsets"].items()
    }
    assert subsets == {"a": (1 / 3, 3, 1, 2 / 3), "b": (1.0, 1, 0, 1.0), "c": (1.0, 1, 0, 0.0)}
    # Left: 2 of 4 pairs (not the mean of 1/3 and 1); overall: the mean of 1/2 and 1; baseline: of 3/4 and 0.
    assert result["sections"] == {"Left": 0.5, "Right": 1.0}
    assert result["overall"] == 0.75
    assert result["length_baseline"] == 0.375
    assert (result["aggregation"], result["count"]) == ("sections", 5)
    # Differences of reward 1 -1 0 1 1, of length 1 -1 2 1 -3: (1 + 1 + 0 + 1 - 3) / ... = 0.
    assert result["length_correlation"] == 0
    assert result["intervals"]["sections"]["Left"] == pytest.approx(wilson_interval(0.5, 4))
    # Left has q = (2 + 1/2) / 5 = 1/2, Right (1 + 1/2) / 2 = 3/4: a variance of (1/4 / 4 + 3/16) / 4 = 1/16
    # about 5/8: (5/8)(3/8) 16 = 3.75 effective pairs.
    assert result["intervals"]["overall"] == pytest.approx(wilson_interval(0.75, 3.75))


def test_pairs_of_one_prompt_are_not_independent() -> None:
    plus, dots = pair("+", "."), pair(".", "+")
    same = [replace(item, prompt=PROMPT) for item in (plus, dots, plus, dots)]
    result, rows = evaluate(same, TextScorer(lambda text: text.count("+")))
    assert [row["prompt"] for row in rows] == [1, 1, 1, 1]
    one = pytest.approx(wilson_interval(0.5, 1))
    assert result["intervals"]["overall"] == one and result["subsets"]["one"]["ci95"] == one


def test_the_details_by_hand() -> None:
    comparisons = [
        Comparison(PROMPT, "++", "+", "a", strength=3),  # right, margin 1; longer
        Comparison(PROMPT, "+", "+++", "a", strength=1),  # wrong, margin -2; shorter
        Comparison(PROMPT, "+", "+.", "a", strength=1),  # a tie: wrong, margin 0; shorter
        Comparison(PROMPT, "++", ".", "a"),  # right, margin 2; longer
    ]
    result, rows = evaluate(comparisons, TextScorer(lambda text: text.count("+")))
    assert [row.get("strength") for row in rows] == [3, 1, 1, None] and "strength" not in rows[3]
    assert {level: part["accuracy"] for level, part in result["strengths"].items()} == {"1": 0.0, "3": 1.0}
    assert (result["lengths"]["shorter"]["accuracy"], result["lengths"]["longer"]["accuracy"]) == (0.0, 1.0)
    assert result["lengths"]["controlled"] == 0.5
    wrong = [1 - 1 / (1 + math.exp(-margin)) for margin in (1, -2, 0, 2)]
    assert result["calibration"]["brier"] == pytest.approx(sum(x * x for x in wrong) / 4)
    assert (result["scores"]["chosen"]["mean"], result["scores"]["rejected"]["mean"]) == (1.5, 1.25)
    assert sum(result["scores"]["histogram"]["chosen"]) == 4
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("subsets", "notes"),
    [
        (["mine", "hers"], []),
        (["hep-go", "mine"], ["1 of RewardBench's 23 subsets were judged: this is not a RewardBench score."]),
        (
            [*EXAMPLE_COUNTS][:22],
            ["22 of RewardBench's 23 subsets were judged: this is not a RewardBench score."],
        ),
        ([*EXAMPLE_COUNTS], ["23 pairs were judged, RewardBench has 2,985: each subset keeps"]),
        (
            [name for name, n in EXAMPLE_COUNTS.items() for _ in range(447 if name == "math-prm" else n)],
            [],
        ),
    ],
)
def test_half_of_rewardbench_is_called_so(subsets: list[str], notes: list[str]) -> None:
    result, _ = evaluate([pair("+", "", subset) for subset in subsets], TextScorer(len), chunk=1000)
    assert len(result["notes"]) == len(notes)
    assert all(note.startswith(start) for note, start in zip(result["notes"], notes, strict=True))
    assert result["aggregation"] == ("rewardbench" if len(set(subsets)) == 23 else "pairs")
    assert (len(subsets) == REWARDBENCH_PAIRS) == (len(subsets) > 1000)


def test_without_sections_the_overall_is_the_mean_over_pairs() -> None:
    comparisons = [pair("++", "+", "a"), pair("+++", "+", "a"), pair("+", "++", "b")]
    result, _ = evaluate(comparisons, TextScorer(lambda text: text.count("+")))
    assert result["sections"] == {} and result["intervals"]["sections"] == {}
    assert (result["overall"], result["aggregation"]) == (2 / 3, "pairs")
    assert result["intervals"]["overall"] == pytest.approx(wilson_interval(2 / 3, 3))


def test_a_file_of_rewardbenchs_subsets_follows_rewardbenchs_rule() -> None:
    # One to three pairs a subset, whatever its true size: the weights are RewardBench's, not the file's.
    comparisons = [
        pair(*(("+", "") if (i + j) % 3 else ("", "+")), subset)
        for i, subset in enumerate(EXAMPLE_COUNTS)
        for j in range(1 + i % 3)
    ]
    result, _ = evaluate(comparisons, TextScorer(len))
    expected = {
        section: sum(result["subsets"][name]["accuracy"] * EXAMPLE_COUNTS[name] for name in subsets)
        / sum(EXAMPLE_COUNTS[name] for name in subsets)
        for section, subsets in SECTIONS.items()
    }
    overall = sum(expected.values()) / 4
    assert result["aggregation"] == "rewardbench"
    assert result["sections"] == pytest.approx(expected)
    assert result["overall"] == pytest.approx(overall)
    assert result["length_baseline"] == pytest.approx(overall)  # this scorer is the baseline


def test_sections_on_some_rows_only_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 2 .* 2 \(subset 'b'\)"):
        evaluate([pair("x", "y", "a", "Left"), pair("x", "y", "b")], TextScorer(len))


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="comparison"):
        evaluate([], TextScorer(len))


def test_the_chunk_changes_nothing_but_the_batches() -> None:
    comparisons = [pair("x" * i, "x" * (7 * i % 5)) for i in range(10)]
    scorer = TextScorer(len)
    heard: list[int] = []
    whole = evaluate(comparisons, scorer, chunk=100)
    scorer.batches.clear()
    assert evaluate(comparisons, scorer, chunk=4, on_progress=heard.append) == whole
    # Two conversations a pair; the self-check (8 alone, 8 together, 8 reversed) follows the first chunk.
    assert scorer.batches == [8, *[1] * 8, 8, 8, 8, 4]
    assert heard == [4, 8, 10]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_names_its_row(bad: float) -> None:
    comparisons = [pair("x" * (2 * i + 2), "x" * (2 * i + 1), f"s{i}") for i in range(40)]
    with pytest.raises(
        DivergenceError, match=rf"comparison 10 \(subset 's9'\): .*rejected.* {bad}"
    ) as caught:
        evaluate(comparisons, TextScorer(lambda text: bad if len(text) == 19 else len(text)))
    assert caught.value.exit_code == 1


def test_the_self_check_also_refuses_what_is_no_number() -> None:
    with pytest.raises(DivergenceError, match="self-check .*nan"):
        self_check(TextScorer(lambda text: math.nan), [PROMPT])


@dataclass
class ShortScorer(TextScorer):
    """Refuses answers of more than four characters."""

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        for conversation in conversations:
            if len(conversation[-1].content) > 4:
                raise DataError("5 tokens", allowed="at most 4")
        return super().score(conversations)


def test_pairs_the_scorer_refuses_are_left_out_and_counted() -> None:
    comparisons = [
        pair("++", "+"),
        pair("+++++", "+"),
        pair("+", "++"),
        pair("+", "....."),
    ]
    drops = DropReport(read=4)
    result, rows = evaluate(comparisons, ShortScorer(len), drops=drops)
    assert [row["id"] for row in rows] == [1, 3]
    assert (result["overall"], result["count"]) == (0.5, 2)
    reason = "refused by the reward model; allowed: at most 4"
    assert drops.examples == {reason: ["comparison 2 (subset 'one')", "comparison 4 (subset 'one')"]}
    assert drops.kept == 2


def test_what_the_template_does_not_render_is_the_reason() -> None:
    class NoTools(TextScorer):
        def score(self, conversations: Sequence[Conversation]) -> list[Score]:
            if any(conversation[-1].content == "call" for conversation in conversations):
                raise RefusalError("with 'tool_calls', which the chat template does not render")
            return super().score(conversations)

    drops = DropReport(read=2)
    evaluate([pair("++", "+"), pair("call", "+")], NoTools(len), drops=drops)
    (reason,) = drops.reasons
    assert "tool_calls" in reason


def test_without_a_drop_report_a_refused_pair_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"comparison 2 \(subset 'one'\): 5 tokens") as caught:
        evaluate([pair("++", "+"), pair("+++++", "+")], ShortScorer(len))
    assert "4" in caught.value.allowed


def test_a_subset_of_rewardbench_refused_as_a_whole_is_an_error() -> None:
    comparisons = [pair("+" * (5 if name == "hep-go" else 1), "", name) for name in EXAMPLE_COUNTS]
    with pytest.raises(DataError, match="hep-go"):
        evaluate(comparisons, ShortScorer(len), drops=DropReport())


def test_everything_refused_is_an_error_with_the_reasons() -> None:
    drops = DropReport(read=1)
    with pytest.raises(DataError) as caught:
        evaluate([pair("+++++", "")], ShortScorer(len), drops=drops)
    assert drops.lines()[-1] in caught.value.found


def test_a_scorer_that_diverges_names_its_comparisons() -> None:
    def explode(text: str) -> float:
        raise DivergenceError("The score of conversation 1 is not a finite number.")

    with pytest.raises(DivergenceError, match="comparisons 1 to 2: The score of conversation 1"):
        evaluate([pair("a", "b"), pair("a", "b")], TextScorer(explode))


@dataclass
class PaddedScorer:
    """A scorer with the padding bug: the longest neighbour leaks into every score."""

    leak: float
    attribute_only: bool = False

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        longest = max(len(conversation[-1].content) for conversation in conversations)
        leak = [self.leak * (longest - len(conversation[-1].content)) for conversation in conversations]
        return [Score(0.0 if self.attribute_only else x, {"coherence": x}) for x in leak]


@dataclass
class PositionScorer:
    """A scorer that adds an item's place in the batch: alone and reversed differ, lengths do not matter."""

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        return [Score(float(i)) for i, _ in enumerate(conversations)]


def test_the_self_check_reports_the_largest_difference() -> None:
    # Answers of 1 and 5 characters: the short one moves by 4 * 0.01 in company.
    conversations = [(*PROMPT, Message("assistant", "x" * n)) for n in (1, 5)]
    checked = self_check(PaddedScorer(0.01), conversations, tolerance=0.05)
    assert checked == {"largest_difference": pytest.approx(0.04), "tolerance": 0.05, "count": 2}


@pytest.mark.parametrize(
    "scorer", [PaddedScorer(1.0), PaddedScorer(1.0, attribute_only=True), PositionScorer()]
)
def test_scores_that_depend_on_the_batch_are_an_error(scorer: PaddedScorer | PositionScorer) -> None:
    comparisons = [pair("x" * i, "x" * (i + 3)) for i in range(1, 5)]
    with pytest.raises(ModelError, match="conversation .* self-check") as caught:
        evaluate(comparisons, scorer)
    assert caught.value.exit_code == 2


def test_large_scores_are_compared_in_proportion() -> None:
    # 100 alone and 104 in company is 4 %, though 4 in absolute terms.
    class Coarse:
        def score(self, conversations: Sequence[Conversation]) -> list[Score]:
            return [Score(100.0 if len(conversations) == 1 else 104.0) for _ in conversations]

    assert self_check(Coarse(), [PROMPT, PROMPT])["largest_difference"] == pytest.approx(0.04)


ANSWERS = st.text(alphabet="ab.", max_size=6)
COMPARISONS = st.lists(
    st.builds(Comparison, st.just(PROMPT), ANSWERS, ANSWERS, st.sampled_from(("s", "t"))),
    min_size=1,
    max_size=12,
)


@given(COMPARISONS)
def test_flipping_the_sign_turns_right_into_wrong_and_leaves_ties_wrong(
    comparisons: list[Comparison],
) -> None:
    def taste(text: str) -> float:
        return text.count("a") - 2 * text.count("b")

    there, _ = evaluate(comparisons, TextScorer(taste))
    back, _ = evaluate(comparisons, TextScorer(lambda text: -taste(text)))
    for name, subset in there["subsets"].items():
        shares = subset["accuracy"] + back["subsets"][name]["accuracy"] + subset["ties"] / subset["count"]
        assert shares == pytest.approx(1)
        assert subset["ties"] == back["subsets"][name]["ties"]
    ties = sum(subset["ties"] for subset in there["subsets"].values())
    assert there["overall"] + back["overall"] == pytest.approx(1 - ties / len(comparisons))
    if there["length_correlation"] is None:
        assert back["length_correlation"] is None
    else:
        assert back["length_correlation"] == pytest.approx(-there["length_correlation"])


@given(COMPARISONS)
def test_a_scorer_without_an_opinion_is_never_right(comparisons: list[Comparison]) -> None:
    result, rows = evaluate(comparisons, TextScorer(lambda text: 1.0))
    assert result["overall"] == 0 and not any(row["correct"] for row in rows)
    assert result["length_correlation"] is None


@given(COMPARISONS)
def test_a_scorer_of_length_is_the_length_baseline(comparisons: list[Comparison]) -> None:
    result, _ = evaluate(comparisons, TextScorer(len))
    assert result["overall"] == result["length_baseline"]
    assert all(subset["accuracy"] == subset["length_baseline"] for subset in result["subsets"].values())
    assert result["length_correlation"] in (None, pytest.approx(1))


def test_torch_is_not_imported() -> None:
    code = "import sys, reward.evaluation.benchmarks.benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
