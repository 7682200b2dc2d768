from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.save import save_final
from policy.shared_base import SharedBase
from reward.scorer import Scorer
from rlhf.config.policy import PolicyConfig
from rlhf.core import formats
from rlhf.core.errors import DataError, ModelError
from rlhf.core.records import Message
from rlhf.models import trunk
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, load_causal, lora_config, with_adapter

PROMPTS = ["Tell me about tea.", "What is the capital of France?"]
ASKED = (Message("user", PROMPTS[0]),)
ANSWERED = [
    (*ASKED, Message("assistant", text)) for text in ("A hot drink.", "I do not know", "Tea! Tea! Tea!")
]
LENGTH = 8


def test_a_gpu_gets_the_layers_of_a_training_run(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are written for CPUs."""
    chosen = list[tuple[Any, Any]]()
    monkeypatch.setattr(trunk, "choose_layers", lambda *words: chosen.append(words))
    base = SharedBase.load(str(tiny_base))
    assert chosen == [(base._model, "auto")]


@pytest.mark.parametrize("emulated", [False, True])
def test_a_base_with_larger_rounding_errors_than_the_training_is_a_warning(
    emulated: bool,
    tiny_base: Path,
    tiny_reward: Path,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tiny_reward was trained in float32. Where bfloat16 is emulated, the base is in float32, too."""
    monkeypatch.setattr(formats, "slow_bfloat16", lambda: emulated)
    SharedBase.load(str(tiny_base), dtype="float32").add_reward(tiny_reward)
    if emulated:
        SharedBase.load(str(tiny_base)).add_reward(tiny_reward)
    assert not [warning for warning in recwarn if "was trained in" in str(warning.message)]
    if not emulated:
        with pytest.warns(UserWarning, match="was trained in float32, and the base is in bfloat16"):
            SharedBase.load(str(tiny_base)).add_reward(tiny_reward)


def write_policy(
    folder: Path,
    base: Path,
    chat: Chat,
    *,
    rank: int,
    alpha: float,
    seed: int,
    targets: str | list[str] = "all-linear",
    rslora: bool = False,
) -> Path:
    """The `final/` folder of a policy whose update is large enough to be heard."""
    causal = load_causal(str(base), revision=None, dtype="float32", quantization="none")
    adapter = lora_config(rank=rank, alpha=alpha, dropout=0.0, targets=targets)
    adapter.use_rslora = rslora
    model = with_adapter(causal, adapter)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    config = PolicyConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": str(base)},
            "reward": "r",
            "data": {"prompts": [{"path": "demo"}]},
        }
    )
    save_final(config, model, chat, folder)
    return folder


@pytest.fixture(scope="module")
def final(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "final"
    return write_policy(folder, tiny_base, tiny_chat, rank=4, alpha=8, seed=2)


@pytest.fixture(scope="module")
def other_final(tiny_base: Path, tiny_chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "final"
    return write_policy(folder, tiny_base, tiny_chat, rank=2, alpha=6, seed=3)


@pytest.fixture
def base(tiny_base: Path, tiny_chat: Chat) -> SharedBase:
    causal = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    return SharedBase(causal, tiny_chat)


def greedy(base: SharedBase, policy: str | None = None) -> list[list[str]]:
    return base.answer(PROMPTS, policy=policy, max_new_tokens=LENGTH, temperature=0)


def updates(base: SharedBase, name: str) -> dict[str, Tensor]:
    """dW of every layer, as PEFT would merge it."""
    return {
        place: layer.get_delta_weight(base._roles[name]).detach().clone()
        for place, layer in base._model.named_modules()
        if base._roles[name] in getattr(layer, "lora_A", ())
    }


def test_the_likeliest_answer_is_the_argmax_of_every_step(
    base: SharedBase, tiny_base: Path, tiny_chat: Chat
) -> None:
    model = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none").eval()
    ids = tiny_chat.prompt_ids(ASKED)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + LENGTH and ids[-1] not in tiny_chat.stop_ids:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    # The second prompt is longer, so the first one is padded.
    assert greedy(base)[0] == [tiny_chat.decode(ids[start:])]


def test_draws_follow_the_seed_and_leave_the_global_one_alone(base: SharedBase) -> None:
    def draw(seed: int) -> list[list[str]]:
        return base.answer(PROMPTS, samples=3, max_new_tokens=LENGTH, seed=seed)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = draw(1)
    assert torch.equal(torch.rand(1), expected)
    assert [len(group) for group in first] == [3, 3]
    assert len(set(itertools.chain(*first))) == 6
    assert draw(1) == first != draw(2)


def test_a_text_is_what_the_user_says(base: SharedBase) -> None:
    assert base.answer([ASKED], max_new_tokens=LENGTH) == base.answer([PROMPTS[0]], max_new_tokens=LENGTH)
    assert base.answer([]) == []


def test_a_policy_answers_as_peft_loads_it(base: SharedBase, final: Path, tiny_base: Path) -> None:
    alone = greedy(base)
    base.add_policy(final)
    assert base.policies == ("policy",)
    assert greedy(base) == alone, "the base no longer answers as itself"
    causal = load_causal(str(tiny_base), revision=None, dtype="float32", quantization="none")
    peft = SharedBase(PeftModel.from_pretrained(causal, str(final)).merge_and_unload(), base.chat)
    assert greedy(base, "policy") == greedy(peft) != alone


@pytest.mark.parametrize("reward_first", [True, False])
def test_roles_do_not_disturb_each_other(
    base: SharedBase, final: Path, tiny_reward: Path, reward_first: bool
) -> None:
    expected = Scorer.load(tiny_reward).score(ANSWERED)
    base.add_policy(final)
    as_policy = greedy(base, "policy")

    shared = SharedBase.load(base._model.config.name_or_path, dtype="float32")
    adding: list[Callable[[], None]] = [
        lambda: shared.add_reward(tiny_reward),
        lambda: shared.add_policy(final),
    ]
    for add in adding if reward_first else reversed(adding):
        add()
    before = shared.score(ANSWERED)
    assert greedy(shared, "policy") == as_policy
    assert (
        shared.score(ANSWERED) == before
    )  # the reward model has dropout, and a policy has spoken in between
    for score, wanted in zip(before, expected, strict=True):
        assert score.attributes == pytest.approx(wanted.attributes, abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "nf4")]
)
def test_a_blend_is_the_weighted_sum_of_the_updates(
    tiny_base: Path, final: Path, other_final: Path, dtype: Any, quantization: Any
) -> None:
    base = SharedBase.load(str(tiny_base), dtype=dtype, quantization=quantization)
    base.add_policy(final, "one")
    base.add_policy(other_final, "two")
    base.blend("both", {"one": 0.7, "two": -0.4})
    base.blend("half", {"one": 0.5})
    first, two, both, half = (updates(base, name) for name in ("one", "two", "both", "half"))
    assert len(first) == 14  # seven linear maps in each of two layers
    for place, update in first.items():
        assert update.abs().max() > 0.1 and two[place].abs().max() > 0.1
        torch.testing.assert_close(both[place], 0.7 * update - 0.4 * two[place], atol=1e-5, rtol=0)
        torch.testing.assert_close(half[place], 0.5 * update, atol=1e-5, rtol=0)


def test_a_blend_is_what_peft_concatenates_and_not_what_it_sums(
    base: SharedBase, tiny_chat: Chat, final: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base.add_policy(final, "one")
    base.add_policy(write_policy(tmp_path / "final", tiny_base, tiny_chat, rank=4, alpha=8, seed=3), "two")
    base.blend("ours", {"one": 0.7, "two": -0.4})
    for kind in ("cat", "linear"):
        parts = [base._roles["one"], base._roles["two"]]
        base._model.add_weighted_adapter(parts, [0.7, -0.4], kind, combination_type=kind)
        base._roles[kind] = kind
    ours, cat, linear = (updates(base, name) for name in ("ours", "cat", "linear"))
    for place, update in ours.items():
        torch.testing.assert_close(update, cat[place], atol=1e-5, rtol=0)
        assert (linear[place] - update).abs().max() > 0.1


def test_policies_with_other_layers_and_scales_can_be_blended(
    base: SharedBase, tiny_base: Path, tiny_chat: Chat, final: Path, tmp_path: Path
) -> None:
    narrow = write_policy(
        tmp_path / "narrow", tiny_base, tiny_chat, rank=2, alpha=6, seed=3, targets=["q_proj"], rslora=True
    )
    base.add_policy(final)
    base.add_policy(narrow, "narrow")
    base.blend("both", {"narrow": 2.0, "policy": 1.0})
    wide, few, both = (updates(base, name) for name in ("policy", "narrow", "both"))
    assert {place.split(".")[-1] for place in few} == {"q_proj"} and len(both) == 14
    for place, update in both.items():
        expected = wide[place] + 2 * few[place] if place in few else wide[place]
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=0)
    assert len(set(map(str, (greedy(base, "both"), greedy(base, "policy"), greedy(base, "narrow"))))) == 3


def test_a_blend_with_nothing_is_the_base_and_with_all_of_it_the_policy(
    base: SharedBase, final: Path
) -> None:
    base.add_policy(final)
    base.blend("none", {"policy": 0.0})
    base.blend("all", {"policy": 1.0})
    assert greedy(base, "none") == greedy(base)
    assert greedy(base, "all") == greedy(base, "policy") != greedy(base)


def test_the_same_name_again_replaces(
    base: SharedBase, final: Path, other_final: Path, tiny_reward: Path
) -> None:
    base.add_policy(final)
    first = greedy(base, "policy")
    base.add_policy(other_final)
    assert base.policies == ("policy",) and greedy(base, "policy") != first
    base.add_policy(final)
    assert greedy(base, "policy") == first
    base.blend("blend", {"policy": 0.0})
    base.blend("blend", {"policy": 1.0})
    assert base.policies == ("policy", "blend") and greedy(base, "blend") == first
    base.add_reward(tiny_reward)
    scores = base.score(ANSWERED)
    base.add_reward(tiny_reward)
    assert base.score(ANSWERED) == scores


def test_a_folder_that_is_not_there(base: SharedBase, tmp_path: Path) -> None:
    for add, kind in ((base.add_policy, "policy"), (base.add_reward, "reward model")):
        with pytest.raises(ModelError) as caught:
            add(tmp_path / "nowhere")
        assert f"{tmp_path}/nowhere" in caught.value.found and kind in caught.value.found
        assert caught.value.exit_code == 2


def test_the_run_folder_and_the_wrong_kind(base: SharedBase, final: Path, tiny_reward: Path) -> None:
    with pytest.raises(ModelError) as caught:
        base.add_policy(final.parent)
    assert caught.value.fix == f"use {final}"
    with pytest.raises(ModelError, match="it is a reward model"):
        base.add_policy(tiny_reward)
    with pytest.raises(ModelError, match="it is a policy"):
        base.add_reward(final)


def test_a_policy_and_a_reward_model_of_another_base(
    other_base: Path, final: Path, tiny_reward: Path
) -> None:
    base = SharedBase.load(str(other_base), dtype="float32")
    alone = greedy(base)
    with pytest.raises(ModelError, match=r"policy .*'.*base' \(fingerprint"):
        base.add_policy(final)
    with pytest.raises(ModelError, match=r"reward model .*'.*base' \(fingerprint"):
        base.add_reward(tiny_reward)
    assert base.policies == () and greedy(base) == alone, "an adapter that does not fit was attached"


def test_another_chat_template(tiny_base: Path, final: Path, tiny_reward: Path) -> None:
    base = SharedBase.load(str(tiny_base), dtype="float32", template_date="1 Jan 2000")
    alone = greedy(base)
    for add, kind in ((base.add_policy, "policy"), (base.add_reward, "reward model")):
        with pytest.raises(ModelError, match=f"chat template .*{kind}") as caught:
            add(final if kind == "policy" else tiny_reward)
        assert "template_date='26 Jul 2024'" in caught.value.fix
    assert greedy(base) == alone, "an adapter that does not fit was attached"


def test_asking_what_is_not_there(base: SharedBase, final: Path) -> None:
    with pytest.raises(ModelError, match="reward model"):
        base.score(ANSWERED)
    with pytest.raises(ModelError, match="'policy'") as caught:
        base.answer(PROMPTS, policy="policy")
    assert caught.value.allowed == "none yet"
    base.add_policy(final)
    with pytest.raises(ModelError, match="'polcy'.* 'policy'"):
        base.answer(PROMPTS, policy="polcy")
    with pytest.raises(ModelError, match="'reward'"):
        base.blend("new", {"policy": 0.5, "reward": 0.5})


@pytest.mark.parametrize("weights", [{}, {"policy": float("nan")}, {"policy": 0.5, "new": 0.5}])
def test_weights_that_make_no_blend(base: SharedBase, final: Path, weights: dict[str, float]) -> None:
    base.add_policy(final)
    with pytest.raises(ModelError, match="'new'"):
        base.blend("new", weights)
    assert base.policies == ("policy",)


@pytest.mark.parametrize("name", ["", "a.b", "reward", "half", "training", "policy_0"])
def test_any_name_will_do(
    base: SharedBase, final: Path, other_final: Path, tiny_reward: Path, name: str
) -> None:
    base.add_reward(tiny_reward)
    scores = base.score(ANSWERED)
    base.add_policy(final)
    base.add_policy(other_final, name)
    base.blend(f"{name} ", {"policy": 1.0, name: 0.0})
    assert greedy(base, f"{name} ") == greedy(base, "policy") != greedy(base, name)
    assert base.score(ANSWERED) == scores


def test_a_dora_adapter_cannot_be_blended(base: SharedBase, final: Path) -> None:
    base.add_policy(final)
    base._model.peft_config[base._roles["policy"]].use_dora = True
    with pytest.raises(ModelError, match="DoRA"):
        base.blend("half", {"policy": 0.5})
    assert base.policies == ("policy",)


def test_a_prompt_that_leaves_no_room(base: SharedBase) -> None:
    length = len(base.chat.prompt_ids(ASKED))
    with pytest.raises(DataError) as caught:
        base.answer([ASKED], max_new_tokens=512 - length + 1)
    assert f"{length} tokens" in caught.value.found and "513" in caught.value.found
    assert "512 tokens" in caught.value.allowed


def test_a_conversation_without_an_answer_is_not_scored(base: SharedBase, tiny_reward: Path) -> None:
    base.add_reward(tiny_reward)
    with pytest.raises(DataError, match="assistant"):
        base.score([ASKED])
