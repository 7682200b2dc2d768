from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reward.evaluation.after_training import evaluate_final
from reward.scorer import Score, Scorer, as_scores, default_budget, score_each, score_in_step
from rlhf.core.errors import DataError, DivergenceError, ModelError
from rlhf.core.records import HELPSTEER_ATTRIBUTES, Conversation, Message
from rlhf.models.chat import Chat
from rlhf.models.loading import load_causal
from rlhf.runs.after import AfterTraining

PROMPTS = ["Name a colour.", "What is the capital of France, and why?", "Count to three."]
ANSWERS = ["Blue.", "One, two, three, four, five.", "I do not know.", "Paris " * 30]


def conversation(prompt: str, answer: str) -> Conversation:
    return Message("user", prompt), Message("assistant", answer)


ALL = [conversation(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]


def values(scores: list[Score]) -> torch.Tensor:
    return torch.tensor([list(score.attributes.values()) for score in scores])


@pytest.fixture(scope="module")
def scorer(tiny_reward: Path) -> Scorer:
    return Scorer.load(tiny_reward)


@pytest.fixture(scope="module")
def alone(scorer: Scorer) -> torch.Tensor:
    """Each conversation scored by itself."""
    return torch.cat([values(scorer.score([item])) for item in ALL])


@pytest.fixture
def final(tiny_reward: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_reward, tmp_path / "final"))


def test_the_first_attribute_is_the_reward(scorer: Scorer) -> None:
    (score,) = scorer.score(ALL[:1])
    assert tuple(score.attributes) == HELPSTEER_ATTRIBUTES == scorer.attributes
    assert score.reward == score.attributes["helpfulness"]
    assert scorer.score([]) == []


def test_outputs_that_were_not_trained_have_no_scores(final: Path, alone: torch.Tensor) -> None:
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "untrained": ["correctness", "verbosity"]}))
    scorer = Scorer.load(final)
    assert scorer.attributes == ("helpfulness", "coherence", "complexity")
    scores = scorer.score(ALL)
    assert torch.allclose(values(scores), alone[:, [0, 2, 3]], atol=1e-4)
    assert [score.reward for score in scores] == pytest.approx(alone[:, 0].tolist(), abs=1e-4)


def test_scores_are_far_apart(alone: torch.Tensor) -> None:
    """Or the tests below could not fail."""
    distance = (alone[:, None] - alone[None]).abs().amax(dim=2)
    assert distance[~torch.eye(len(ALL), dtype=torch.bool)].min() > 0.05


@pytest.mark.parametrize("budget", [1, 64, 200, 4096])
def test_a_score_does_not_depend_on_the_budget(tiny_reward: Path, alone: torch.Tensor, budget: int) -> None:
    together = values(Scorer.load(tiny_reward, tokens_per_batch=budget).score(ALL))
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_score_does_not_depend_on_order_and_neighbours(
    scorer: Scorer, alone: torch.Tensor, seed: int
) -> None:
    order = torch.randperm(len(ALL), generator=torch.Generator().manual_seed(seed))
    some = order[: 4 + seed * 3].tolist()
    assert torch.allclose(values(scorer.score([ALL[place] for place in some])), alone[some], atol=1e-4)


def test_the_same_conversation_twice_has_the_same_score(scorer: Scorer, alone: torch.Tensor) -> None:
    first, second = values(scorer.score([ALL[0], ALL[0]]))
    assert torch.allclose(first, second, atol=1e-5) and torch.allclose(first, alone[0], atol=1e-4)


def test_the_dropout_of_training_does_not_reach_a_score(scorer: Scorer, alone: torch.Tensor) -> None:
    assert (
        json.loads((Path(scorer_folder(scorer)) / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    )
    scorer.model.train()
    try:
        assert torch.allclose(values(scorer.score(ALL)), alone, atol=1e-4)
    finally:
        scorer.model.eval()


def scorer_folder(scorer: Scorer) -> str:
    return str(scorer.chat.tokenizer.name_or_path)


def test_scores_on_a_shared_base_are_those_on_an_own_one(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, alone: torch.Tensor
) -> None:
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    shared = Scorer.share(tiny_reward, base, tiny_chat)
    assert shared.model.get_base_model() is base  # not a copy
    assert torch.allclose(values(shared.score(ALL)), alone, atol=1e-4)


def test_two_reward_models_on_one_base_keep_apart(
    tiny_base: Path, tiny_chat: Chat, tiny_reward: Path, alone: torch.Tensor, tmp_path: Path
) -> None:
    """The second is the first with a head of the other sign."""
    turned = tmp_path / "turned"
    shutil.copytree(tiny_reward, turned)
    weights = load_file(turned / "adapter_model.safetensors")
    (head,) = [name for name in weights if name.endswith("score.weight")]
    weights[head] = -weights[head]
    save_file(weights, turned / "adapter_model.safetensors")
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    first = Scorer.share(tiny_reward, base, tiny_chat)
    second = Scorer.share(turned, first.model, tiny_chat, name="held_out")
    assert second.model.get_base_model() is base
    assert set(second.model.peft_config) == {"reward", "held_out"}
    for _ in range(2):
        assert torch.allclose(values(first.score(ALL)), alone, atol=1e-4)
        assert torch.allclose(values(second.score(ALL)), -alone, atol=1e-4)


def test_what_cannot_be_scored_spoils_no_other() -> None:
    """Five conversations, of which the second and the last are at fault: halves, down to the two."""
    calls: list[int] = []

    def score(some: Sequence[int]) -> list[str]:
        calls.append(len(some))
        for item in some:
            if item < 0:
                raise DataError(f"{item} is too long")
        return [str(item) for item in some]

    numbers: Any = [1, -2, 3, 4, -5]
    result = score_each(score, numbers)  # type: ignore[arg-type]
    assert [item for item in result if isinstance(item, str)] == ["1", "3", "4"]
    assert [str(result[1]), str(result[4])] == ["-2 is too long", "-5 is too long"]
    calls.clear()
    assert score_each(score, [1, 2, 3]) == ["1", "2", "3"] and calls == [3]  # type: ignore[arg-type,list-item]
    assert score_each(score, []) == [] and calls == [3]  # type: ignore[arg-type]


class Counting:
    """Counts its calls of `score`; conversations of one turn are at fault, a text of `nan` diverges."""

    def __init__(self) -> None:
        self.model, self.calls = nn.Linear(1, 1), list[int]()

    def fault(self, conversation: Conversation) -> DataError | None:
        return DataError("too short") if len(conversation) < 2 else None

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        self.calls.append(len(conversations))
        rows = [[math.nan if each[-1].content == "nan" else 1.0] for each in conversations]
        return as_scores(torch.tensor(rows), ["r"])


@pytest.mark.parametrize("good", [0, 2])
def test_sharded_weights_are_used_in_one_call_whatever_is_at_fault(
    good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further calls, or none at all, would leave the other processes waiting in a pass."""
    monkeypatch.setattr("reward.scorer.is_sharded", lambda model: True)
    scorer, at_fault = Counting(), (Message("user", "q"),)
    whole = (*at_fault, Message("assistant", "a"))
    result = score_in_step(scorer, [at_fault, *[whole] * good, at_fault])
    assert [str(result[0]), str(result[-1])] == ["too short"] * 2
    assert result[1:-1] == [Score(1.0, {"r": 1.0})] * good
    assert scorer.calls == [max(good, 1)]
    with pytest.raises(DivergenceError):
        score_in_step(scorer, [(*at_fault, Message("assistant", "nan")), whole])


def test_weights_of_ones_own_are_used_again_for_a_score_that_is_not_finite() -> None:
    scorer, question = Counting(), Message("user", "q")
    first, second = score_in_step(
        scorer, [(question, Message("assistant", "nan")), (question, Message("assistant", "a"))]
    )
    assert isinstance(first, DivergenceError) and second == Score(1.0, {"r": 1.0})
    assert scorer.calls == [2, 1, 1]


def test_a_scorer_finds_a_fault_before_a_pass(tiny_reward: Path) -> None:
    scorer = Scorer.load(tiny_reward)
    assert scorer.fault(ALL[0]) is None
    assert "has" in str(scorer.fault((Message("user", "x " * 5000), Message("assistant", "y"))))
    assert scorer.fault(ALL[0][:-1]) is not None, "does not end with the assistant"


def test_plain_transformers_and_peft_give_the_same_scores(
    tiny_base: Path, tiny_reward: Path, tiny_chat: Chat, alone: torch.Tensor
) -> None:
    """What the model card tells others to do."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=5)
    model = PeftModel.from_pretrained(base, tiny_reward).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    for item, expected in zip(ALL, alone, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in item],
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            assert torch.allclose(model(**ids).logits[0], expected, atol=1e-4)


def test_a_bfloat16_base_gives_nearly_the_same(final: Path, alone: torch.Tensor) -> None:
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "dtype": "bfloat16"}))
    scores = values(Scorer.load(final).score(ALL))
    assert (scores - alone).abs().mean() < 0.1 * alone.std()


def test_no_head(final: Path) -> None:
    file = final / "adapter_model.safetensors"
    save_file({name: w for name, w in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(ModelError, match="reward heads") as caught:
        Scorer.load(final)
    assert caught.value.exit_code == 2


def test_another_base(final: Path, other_base: Path) -> None:
    card = json.loads((final / "reward.json").read_text())
    (final / "reward.json").write_text(json.dumps({**card, "base": str(other_base)}))
    with pytest.raises(ModelError, match="reward model .*fingerprint") as caught:
        Scorer.load(final)
    assert "base" in caught.value.allowed


def test_another_template(final: Path, tiny_base: Path) -> None:
    base = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    with pytest.raises(ModelError, match="chat template .*reward model") as caught:
        Scorer.share(final, base, Chat.load(tiny_base, template_date="1 Jan 2030"))
    assert "model.template_date='26 Jul 2024'" in caught.value.fix
    template = final / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ModelError, match="chat template .*reward model"):
        Scorer.load(final)


def test_a_conversation_that_is_too_long(scorer: Scorer) -> None:
    long = conversation("Count.", "one " * 600)
    with pytest.raises(DataError, match=r"2 of 2 .*6\d\d tokens") as caught:
        scorer.score([ALL[0], long])
    assert "512" in caught.value.allowed


def test_a_conversation_without_an_answer(scorer: Scorer) -> None:
    with pytest.raises(DataError, match="assistant"):
        scorer.score([ALL[0], (Message("user", "And?"),)])


def test_a_score_that_is_not_a_number_is_never_passed_on(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight: Any = scorer.head.weight.clone()
    weight[1, 0] = float("nan")  # one attribute, not the reward
    monkeypatch.setattr(scorer.head, "weight", torch.nn.Parameter(weight, requires_grad=False))
    with pytest.raises(DivergenceError, match="score of conversation 1 of 2") as caught:
        scorer.score(ALL[:2])
    assert caught.value.exit_code == 1


def test_a_gpu_scores_with_longer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_budget() == 1024
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_budget() == 8192


def test_the_final_scoring_has_the_token_budget_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(Scorer, "load", lambda _, **settings: taken.update(settings))
    config: Any = SimpleNamespace(tokens_per_batch=16_384)
    data: Any = SimpleNamespace(held_out=[])
    run: Any = SimpleNamespace(final=Path("final"))
    assert evaluate_final(config, data, run, AfterTraining()) == ({}, [])
    assert taken == {"tokens_per_batch": 16_384}
