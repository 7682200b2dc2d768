from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from typing import Any, get_args

import pytest

from rlhf.core.errors import DataError
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from rlhf.data.checks import gold_score, relevance, words_of
from rlhf.data.demo.annotators import quality
from rlhf.data.demo.dataset import PARTS, SIZES, DemoKind, demo_rows
from rlhf.data.demo.prompts import FAMILIES, WORDINGS, all_requests
from rlhf.data.demo.responses import MAKERS, respond
from rlhf.data.demo.topics import TOPICS

EVERY = [(kind, split) for kind, splits in PARTS.items() for split in splits]


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {(kind, split): list(demo_rows(kind, split)) for kind, split in EVERY}


def test_every_kind_has_rows_of_the_size_it_says(rows: Any) -> None:
    assert set(PARTS) == set(get_args(DemoKind))
    for kind, split in EVERY:
        responses = {"helpsteer2": 2, "helpsteer3-principle": 4}.get(kind, 1)
        assert len(rows[kind, split]) == responses * SIZES[PARTS[kind][split]]


DIGEST = """
import hashlib, json, sys
from rlhf.data.demo.dataset import PARTS, demo_rows
made = [list(demo_rows(kind, split, int(sys.argv[1]))) for kind in PARTS for split in PARTS[kind]]
sys.stdout.write(hashlib.sha256(json.dumps(made).encode()).hexdigest())
"""


def test_the_same_seed_makes_the_same_bytes_in_any_process(rows: Any) -> None:
    def digest(seed: int, hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST, str(seed)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    here = hashlib.sha256(json.dumps([rows[part] for part in EVERY]).encode()).hexdigest()
    assert digest(0, "1") == digest(0, "2") == here
    assert digest(1, "1") != here


def test_a_prompt_ends_with_the_request_that_its_check_is_about(rows: Any) -> None:
    for row in rows["prompts", "train"]:
        assert row["prompt"][-1] == {"role": "user", "content": row["check"]["request"]}


def test_parts_share_no_wording_of_a_topic() -> None:
    requests = all_requests(seed=0)
    combinations = [(request.family, request.wording, request.topic.name) for request in requests]
    assert len(set(combinations)) == len(combinations)
    assert sum(SIZES.values()) <= len(combinations)


def test_prompts_of_different_parts_differ(rows: Any) -> None:
    def texts(kind: str, split: str) -> set[str]:
        return {json.dumps(row["prompt"]) for row in rows[kind, split]}

    assert texts("prompts", "train").isdisjoint(texts("prompts", "test"))
    assert texts("helpsteer2", "train").isdisjoint(texts("helpsteer2", "validation"))
    assert texts("benchmark", "validation").isdisjoint(texts("prompts", "train") | texts("prompts", "test"))


def test_ratings_are_rows_of_helpsteer2(rows: Any) -> None:
    for split in ("train", "validation"):
        made = rows["helpsteer2", split]
        pairs = zip(made[::2], made[1::2], strict=True)
        assert all(list(row) == ["prompt", "response", *HELPSTEER_ATTRIBUTES] for row in made)
        assert all(type(row[name]) is int for row in made for name in HELPSTEER_ATTRIBUTES)
        assert all(first["prompt"] == second["prompt"] for first, second in pairs)
    for name in ("helpfulness", "complexity", "verbosity"):
        assert {row[name] for row in rows["helpsteer2", "train"]} == {0, 1, 2, 3, 4}


def test_helpfulness_follows_what_code_can_check_and_length_does_not_explain_it(rows: Any) -> None:
    made = rows["helpsteer2", "train"]
    checks = [r.check for r in all_requests(0) for _ in range(2)]
    start = 2 * (SIZES["test prompts"] + SIZES["benchmark"] + SIZES["validation pairs"])
    gold = [gold_score(c, row["response"]) for c, row in zip(checks[start:], made, strict=False)]
    helpfulness = [row["helpfulness"] for row in made]
    lengths = [len(row["response"]) for row in made]
    assert statistics.correlation(gold, helpfulness) > 0.85
    assert abs(statistics.correlation(lengths, helpfulness)) < 0.3


def test_preferences_are_rows_of_helpsteer2_preference_on_the_rated_responses(rows: Any) -> None:
    for split, name in (("train", "train"), ("validation", "val")):
        made = rows["helpsteer2-preference", split]
        rated = [row["response"] for row in rows["helpsteer2", split]]
        assert [text for row in made for text in (row["response_1"], row["response_2"])] == rated
        for row in made:
            assert list(row) == [
                *(
                    "split",
                    "prompt",
                    "response_1",
                    "response_2",
                    "preference_strength",
                    "preference_statement",
                ),
                *("preference_elaboration", "three_most_similar_preferences", "all_preferences_unprocessed"),
            ]
            assert row["split"] == name
    assert rows["helpsteer2-preference", "val"] == rows["helpsteer2-preference", "validation"]


def test_strengths_come_from_three_to_five_people_by_the_papers_rule(rows: Any) -> None:
    for row in rows["helpsteer2-preference", "train"]:
        raw = [item["strength"] for item in row["all_preferences_unprocessed"]]
        similar = [
            three_most_similar_preference["strength"]
            for three_most_similar_preference in row["three_most_similar_preferences"]
        ]
        valid = [annotation for annotation in raw if annotation != -100]
        assert 3 <= len(raw) <= 5
        assert set(valid) <= {-3, -2, -1, 1, 2, 3}
        assert not Counter(similar) - Counter(valid)
        # No three lie closer together than those taken: sorted, the closest three stand side by side.
        ordered = sorted(valid)
        closest = min(high - low for low, high in zip(ordered, ordered[2:], strict=False))
        assert max(similar) - min(similar) == closest
        assert row["preference_strength"] == round(sum(similar) / 3)


def test_there_are_rows_for_every_rule_of_the_loader(rows: Any) -> None:
    made = rows["helpsteer2-preference", "train"]
    raw = [item["strength"] for row in made for item in row["all_preferences_unprocessed"]]
    spreads = [
        max(strengths) - min(strengths)
        for row in made
        if (
            strengths := [
                three_most_similar_preference["strength"]
                for three_most_similar_preference in row["three_most_similar_preferences"]
            ]
        )
    ]
    strengths = Counter(row["preference_strength"] for row in made)
    assert set(strengths) == {-3, -2, -1, 0, 1, 2, 3}
    assert 0 < raw.count(-100) < 0.03 * len(raw)
    assert 0 < sum(spread > 2 for spread in spreads) < 0.05 * len(made)
    assert strengths[0] < 0.3 * len(made)


def test_some_prompts_have_several_turns_in_helpsteer2s_form(rows: Any) -> None:
    made = rows["helpsteer2", "train"][::2]
    several = [row["prompt"] for row in made if "<extra_id_1>" in row["prompt"]]
    assert 0.2 < len(several) / len(made) < 0.5
    for prompt in several:
        user, assistant, later = prompt.split("\n<extra_id_1>")
        assert assistant.startswith("Assistant\n")
        assert later.startswith("User\n")
        assert user.strip()


def test_benchmark_is_in_rewardbenchs_columns_and_length_alone_does_not_pass_it(rows: Any) -> None:
    made = rows["benchmark", "validation"]
    columns = ["prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset", "section", "id"]
    assert all(list(row) == columns for row in made)
    assert set(FAMILIES) < {row["subset"] for row in made}
    assert {row["section"] for row in made} == {"Requests", "Adversarial"}
    by_subset = {
        name: [row for row in made if row["subset"] == name] for name in {row["subset"] for row in made}
    }
    longer = {
        name: statistics.mean(len(row["chosen"]) > len(row["rejected"]) for row in group)
        for name, group in by_subset.items()
    }
    assert all(longer[family] == 0.5 for family in FAMILIES)
    assert longer["adversarial-longer"] == 0.0
    assert longer["adversarial-terse"] > 0.5


def test_chosen_answers_of_the_benchmark_are_better_by_gold(rows: Any) -> None:
    start = SIZES["test prompts"]
    for request, row in zip(all_requests(0)[start:], rows["benchmark", "validation"], strict=False):
        chosen, rejected = (gold_score(request.check, row[side]) for side in ("chosen", "rejected"))
        assert chosen - rejected >= 0.25


def test_synthetic_rows_say_so(rows: Any) -> None:
    for split in ("train", "test"):
        sources = {row["source"] for row in rows["prompts", split]}
        assert sources == {f"synthetic: {family}" for family in FAMILIES}
    assert all(row["chosen_model"].startswith("synthetic: ") for row in rows["benchmark", "validation"])


def test_rows_go_through_json_unchanged(rows: Any) -> None:
    assert all(json.loads(json.dumps(made)) == made for made in rows.values())


def test_every_request_can_be_answered_in_full() -> None:
    rng = random.Random(0)
    for request in all_requests(seed=3):
        response = respond(request, "good", rng)
        assert response.gold == pytest.approx(1.0), (request.messages[-1].content, response.text)


def test_each_kind_of_response_is_rated_by_the_same_gold_score() -> None:
    rng = random.Random(0)
    for request in all_requests(seed=0)[:60]:
        for kind in MAKERS:
            response = respond(request, kind, rng)
            assert response.gold == gold_score(request.check, response.text)
            assert quality(response) <= response.gold


def test_facts_are_short_and_speak_of_their_topic() -> None:
    assert len({topic.key for topic in TOPICS}) == len(TOPICS) >= 60
    for topic in TOPICS:
        check = {"key": topic.key, "related": topic.related}
        assert len(topic.facts) == 4
        for fact in topic.facts:
            assert relevance(check, fact) == pytest.approx(1.0), fact
            assert 4 <= len(words_of(fact)) <= 12, fact


def test_every_family_has_several_wordings_and_one_after_a_first_exchange() -> None:
    multi_turn = Counter(r.family for r in all_requests(seed=0) if len(r.messages) == 3)
    assert all(len(wordings) >= 4 for wordings in WORDINGS.values())
    assert set(multi_turn) == set(FAMILIES) - {"words"}


def test_unknown_kinds_and_splits_are_refused() -> None:
    with pytest.raises(DataError, match="'helpsteer3'") as caught:
        demo_rows("helpsteer3", "train")  # type: ignore[arg-type]
    assert "helpsteer2, helpsteer2-preference" in caught.value.allowed
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="'dev'") as caught:
        demo_rows("prompts", "dev")
    assert caught.value.allowed == "train, test"
