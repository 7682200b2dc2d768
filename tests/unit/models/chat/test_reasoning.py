"""One rule for reasoning wherever a reward model scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers_of_kinds import CHATML, KINDS, make_tokenizer, write_base

from policy.rewards.model import ModelReward
from policy.rewards.protocol import Missing
from reward.save import save_final
from reward.scorer import Scorer
from reward.training.build import build_model
from rlhf.adapters.storage import read_role
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import RefusalError
from rlhf.core.records import Message, Prompt, Rollout
from rlhf.models.chat import Chat
from rlhf.models.chat.reasoning import without_reasoning

ASKED = (Message("user", "Tea?"),)
OPENS = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
STRIPS = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
ADDS = CHATML.replace(
    "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
)


def chat(rule: Any, template: str = CHATML) -> Chat:
    return Chat(make_tokenizer(**{**KINDS["chatml"], "template": template}), reasoning=rule)


def answered(text: str, fields: str = "") -> tuple[Message, ...]:
    return (*ASKED, Message("assistant", text, fields))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>why</think>\n\nYes", "Yes"),
        ("why</think>Yes", "Yes"),  # the prompt opened it
        ("<think>why, and cut off", ""),
        ("A <think>x</think>B<think>y</think> C", "A BC"),
        ("Yes", "Yes"),
    ],
)
def test_strip(text: str, rest: str) -> None:
    assert without_reasoning(text) == rest
    assert chat("strip").conversation_ids(answered(text)) == chat("keep").conversation_ids(answered(rest))


def test_keep_sees_all_of_it() -> None:
    keep = chat("keep")
    assert "<think>why</think>Yes" in keep.tokenizer.decode(
        keep.conversation_ids(answered("<think>why</think>Yes"))
    )


def test_keep_puts_back_what_the_prompt_opened() -> None:
    opened = chat("keep", OPENS)
    expected = opened.conversation_ids(answered("<think>\nwhy</think>Yes"))
    assert opened.conversation_ids(answered("why</think>Yes")) == expected
    prompt = opened.prompt_ids(ASKED)
    assert expected[: len(prompt)] == prompt


def test_refuse() -> None:
    refusing = chat("refuse")
    with pytest.raises(RefusalError) as caught:
        refusing.conversation_ids(answered("<think>why</think>Yes"))
    assert "reasoning" in caught.value.reason
    assert refusing.conversation_ids(answered("Yes")) == chat("keep").conversation_ids(answered("Yes"))
    several = list(refusing.conversations_ids([answered("Yes"), answered("x</think>Yes"), answered("No")]))
    assert [isinstance(ids, RefusalError) for ids in several] == [False, True, False]


def test_users_may_write_of_the_tags() -> None:
    spoken = (Message("user", "What is <think>?"), Message("assistant", "A tag."))
    assert chat("refuse").conversation_ids(spoken) == chat("keep").conversation_ids(spoken)


def test_reasoning_in_a_field_is_stripped_too() -> None:
    fields = json.dumps({"reasoning_content": "why"})
    assert chat("strip").conversation_ids(answered("Yes", fields)) == chat("keep").conversation_ids(
        answered("Yes")
    )


@pytest.mark.parametrize(
    ("template", "effects"),
    [(CHATML, []), (OPENS, ["opens"]), (STRIPS, ["removes"]), (ADDS, ["adds"])],
)
def test_what_a_template_does_is_found(template: str, effects: list[str]) -> None:
    assert [effect.split()[0] for effect in chat("keep", template).reasoning_effects()] == effects


@pytest.mark.parametrize("rule", ["keep", "strip", "refuse"])
def test_the_rule_is_saved_and_followed_at_every_door(rule: Any, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", make_tokenizer(**KINDS["chatml"]))
    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base), "dtype": "float32", "max_length": 256},
            "adapter": {"rank": 2},
            "reasoning": rule,
            "data": {"ratings": [{"path": "demo", "format": "helpsteer2"}]},
            "stages": [{"name": "regression", "regression_weight": 1}],
        }
    )
    trained = Chat.of(config.model, reasoning=config.reasoning)
    save_final(config, build_model(config, trained), trained, tmp_path / "final")
    assert json.loads((tmp_path / "final" / "reward.json").read_text())["reasoning"] == rule
    assert read_role(tmp_path / "final")
    loaded = Scorer.load(tmp_path / "final")
    shared = Scorer.share(
        tmp_path / "final", loaded.model, Chat.of(config.model)
    )  # a policy's chat has no rule
    for scorer in (loaded, shared):
        assert scorer.chat.reasoning == rule
    rollout = Rollout((), (), (), True, "<think>why</think>Yes")
    (reward,) = ModelReward(loaded).of([Prompt(ASKED)], [rollout])
    assert isinstance(reward, Missing) == (rule == "refuse")


def test_doctor_warns_where_the_template_breaks_the_rule() -> None:
    from rlhf.doctor.checks_run import _reasoning

    effects = tuple(chat("keep", STRIPS).reasoning_effects())
    tokens: Any = SimpleNamespace(reasoning=effects)
    (kept,), (stripped,) = _reasoning("keep", tokens), _reasoning("strip", tokens)
    assert (kept.verdict, stripped.verdict) == ("warning", "ok")
    assert "reasoning=strip" in kept.fix
    assert list(_reasoning("keep", SimpleNamespace(reasoning=()))) == []  # type: ignore[arg-type]
