from __future__ import annotations

from math import sqrt
from typing import Any

import pytest

from rlhf.core.errors import DataError
from rlhf.data.checks import CONSTRAINTS, gold_score, mentions, relevance, words_of

TEA = {
    "key": "tea",
    "related": ["drink", "leaf", "hot", "water"],
    "request": "Tell me about tea in some words, please.",
}


def check(family: str, **more: Any) -> dict[str, Any]:
    return {**TEA, "family": family, "limit": 6, **more}


GOOD = {
    "words": (check("words"), "Tea is a hot drink."),
    "shorten": (check("shorten"), "Tea is a hot drink."),
    "sentence": (check("sentence"), "Tea is a hot drink."),
    "opening": (check("opening", start="Tea is"), "Tea is a hot drink."),
    "include": (check("include", wanted=["hot", "drink"]), "Tea is a hot drink."),
    "list": (check("list", count=2), "1. Tea is a hot drink.\n2. People like tea with water."),
}


@pytest.mark.parametrize("family", CONSTRAINTS)
def test_a_good_answer_gets_everything(family: str) -> None:
    assert gold_score(*GOOD[family]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "...",
        "It is a good thing.",
        "I'm sorry, but I can't help with that.",
        "tea tea tea tea tea tea",
        "Tea, water, hot drink!",
        "Tell me about tea in some words, please.",
    ],
    ids=["empty", "blank", "dots", "constant", "refusal", "one word", "topic words", "the request"],
)
@pytest.mark.parametrize("family", CONSTRAINTS)
def test_an_answer_that_says_nothing_gets_a_fifth_at_most(family: str, answer: str) -> None:
    assert gold_score(GOOD[family][0], answer) <= 0.2


def test_relevance_is_the_name_and_two_related_words() -> None:
    assert relevance(TEA, "Nothing of it.") == 0.0
    assert relevance(TEA, "A leaf.") == pytest.approx(0.3)
    assert relevance(TEA, "Tea, that is all.") == pytest.approx(0.4)
    assert relevance(TEA, "Tea is hot, hot, hot.") == pytest.approx(0.7)  # a repeated word counts once
    assert relevance(TEA, "Tea is a hot drink of leaf and water.") == pytest.approx(1.0)


def test_a_word_is_found_in_regular_inflections_and_not_inside_others() -> None:
    assert mentions("bake", {"baking"})
    assert mentions("bake", {"baked"})
    assert mentions("city", {"cities"})
    assert mentions("dish", {"dishes"})
    assert not mentions("tea", {"team"})
    assert not mentions("bee", {"beer", "been"})


def test_brevity_falls_linearly_to_three_times_the_limit() -> None:
    # 12 distinct words where 6 are allowed: (12 - 6) / (2 * 6) = 1/2 of the credit, under the root.
    twelve = "Tea is a hot drink that people near me like very much."
    assert len(words_of(twelve)) == 12
    assert gold_score(check("words"), twelve) == pytest.approx(sqrt(1 / 2))
    eighteen = twelve[:-1] + " on days when it rains outside."
    assert len(words_of(eighteen)) == 18
    assert gold_score(check("words"), eighteen) == 0.0


def test_each_further_sentence_divides_the_credit() -> None:
    answer = "Tea is hot. I drink it!"
    assert gold_score(check("sentence"), answer) == pytest.approx(sqrt(1 / 2))
    assert gold_score(check("words"), answer) == 1.0


def test_an_answer_without_an_end_gets_half() -> None:
    assert gold_score(check("words"), "Tea is a hot drink") == 0.5
    assert gold_score(check("words"), 'Tea is a "hot drink."') == 1.0


def test_a_beginning_counts_word_by_word_and_in_order() -> None:
    opening = check("opening", start="Tea is")
    assert gold_score(opening, "Tea can be a hot drink.") == pytest.approx(sqrt(0.2 + 0.8 / 2))
    assert gold_score(opening, "Yes, tea is a hot drink.") == pytest.approx(sqrt(0.2))


def test_wanted_words_count_by_their_share_and_as_they_stand() -> None:
    include = check("include", wanted=["hot", "drink"])
    assert gold_score(include, "Tea is a hot water.") == pytest.approx(sqrt(0.2 + 0.8 / 2))
    assert gold_score(include, "People are drinking tea near water.") == pytest.approx(sqrt(0.2))


@pytest.mark.parametrize("mark", ["1. ", "1) ", "- ", "* ", "• "])
def test_a_list_may_have_numbers_or_bullets(mark: str) -> None:
    answer = f"{mark}Tea is a hot drink\n\n{mark}People like tea with water"
    assert gold_score(check("list", count=2), answer) == 1.0


def test_a_list_is_judged_by_its_lines() -> None:
    two = check("list", count=2)
    assert gold_score(two, "- Tea is a hot drink") == pytest.approx(sqrt(1 / 2))  # one line short of two
    # A line of preamble: a third line (half the count credit), and one of three without a bullet.
    preamble = "Here you are:\n- Tea is a hot drink\n- People like tea with water"
    assert gold_score(two, preamble) == pytest.approx(sqrt(0.5 * (0.2 + 1 + 1) / 3))
    assert gold_score(two, "- Tea\n- is\n- hot\n- water") == 0.0


def test_repetition_costs() -> None:
    # 4 different words of 8, where 60 % different ones would be enough.
    assert gold_score(check("words", limit=8), "Tea is hot water, tea is hot water.") == pytest.approx(
        0.5 / 0.6
    )


def test_topic_words_need_others_around_them() -> None:
    # 6 words, one of them no topic word: 0.2 + 4 * 1/6.
    assert gold_score(check("words"), "Hot tea, leaf, drink and water.") == pytest.approx(0.2 + 4 / 6)


@pytest.mark.parametrize("family", CONSTRAINTS)
@pytest.mark.parametrize(
    "answer", ["a" * 5000, "1.\n2.\n", "🌞 ☕", "\x00", "Tea " * 3000, "é ü 茶", "(((***"]
)
def test_any_text_has_a_score_between_0_and_1(family: str, answer: str) -> None:
    assert 0.0 <= gold_score(GOOD[family][0], answer) <= 1.0


def test_an_unknown_family_is_named_with_those_that_exist() -> None:
    with pytest.raises(DataError, match="'sonnet'") as caught:
        gold_score({"family": "sonnet"}, "Tea.")
    assert "words, shorten" in caught.value.allowed
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="None"):
        gold_score({}, "Tea.")
