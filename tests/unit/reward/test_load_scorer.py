"""Reward models of others, without an adapter: scores are those of transformers, one row at a time."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from reward.load_scorer import PlainScorer, by_length, load_scorer
from reward.scorer import Score, Scorer
from rlhf.core.errors import DataError, DivergenceError, ModelError, RefusalError
from rlhf.core.records import Conversation, Message

PROMPTS = ["Name a colour.", "What is the capital of France, and why?", "Count to three."]
ANSWERS = ["Blue.", "One, two, three, four, five.", "I do not know.", "Paris " * 30]
ALL = [(Message("user", prompt), Message("assistant", answer)) for prompt in PROMPTS for answer in ANSWERS]


def rows(scores: list[Score]) -> torch.Tensor:
    return torch.tensor([list(score.attributes.values()) for score in scores])


@functools.cache
def tokenizer_of(folder: Path) -> Any:
    """A folder's tokenizer; loading one takes a third of a second."""
    return AutoTokenizer.from_pretrained(folder)


def ids_of(folder: Path, conversation: Conversation) -> Any:
    """One conversation by the tokenizer alone, as any user of transformers would do it."""
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    return tokenizer_of(folder).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )


def save(model: Any, tiny_base: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def make_classifier(tiny_base: Path, folder: Path, labels: list[str] | None) -> Path:
    """The tiny base with a random head; without `labels`, one output under transformers' own name."""
    named = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": 1}
    config = LlamaConfig.from_pretrained(tiny_base, **named)
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(LlamaForCausalLM.from_pretrained(tiny_base).model.state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return save(model, tiny_base, folder)


def make_nemotron(tiny_base: Path, folder: Path, **config: Any) -> Path:
    """The tiny base with an output embedding of its own, whose row 0 is a head."""
    torch.manual_seed(4)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_base, tie_word_embeddings=False, **config))
    model.generation_config.do_sample = False
    return save(model, tiny_base, folder)


@pytest.fixture(scope="module")
def classifier(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tiny_base, tmp_path_factory.mktemp("models") / "classifier", None)


@pytest.fixture(scope="module")
def many(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tiny_base, tmp_path_factory.mktemp("models") / "many", ["help", "truth", "length"])


@pytest.fixture(scope="module")
def nemotron(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nemotron(tiny_base, tmp_path_factory.mktemp("models") / "nemotron")


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def set_config(folder: Path, file: str = "config.json", **keys: Any) -> Path:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **keys}))
    return folder


def test_a_classifier_of_one_output(classifier: Path) -> None:
    scores = load_scorer(classifier).score(ALL)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        alone = [model(**ids_of(classifier, conversation)).logits.item() for conversation in ALL]
    assert [score.reward for score in scores] == pytest.approx(alone, abs=1e-4)
    assert [dict(score.attributes) for score in scores] == [{"reward": score.reward} for score in scores]
    assert min(abs(a - b) for a in alone for b in alone if a != b) > 1e-3  # or the test could not fail


@pytest.mark.parametrize("label", [None, "help", "length"])
def test_a_classifier_of_several_outputs(many: Path, label: str | None) -> None:
    scores = load_scorer(many, label=label).score(ALL)
    model = AutoModelForSequenceClassification.from_pretrained(many).eval()
    with torch.no_grad():
        alone = torch.cat([model(**ids_of(many, conversation)).logits for conversation in ALL])
    assert tuple(scores[0].attributes) == ("help", "truth", "length")
    assert torch.allclose(rows(list(scores)), alone, atol=1e-4)
    column = {None: 0, "help": 0, "length": 2}[label]
    assert [score.reward for score in scores] == pytest.approx(alone[:, column].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "likely"), [(["rejected", "chosen"], "chosen"), (["LABEL_0", "LABEL_1"], "LABEL_1")]
)
def test_classes_need_a_label(tiny_base: Path, tmp_path: Path, labels: list[str], likely: str) -> None:
    folder = make_classifier(tiny_base, tmp_path / "classes", labels)
    with pytest.raises(ModelError) as caught:
        load_scorer(folder)
    assert caught.value.allowed == ", ".join(labels)
    assert "--label" in caught.value.fix and likely in caught.value.fix
    for place, label in enumerate(labels):
        (score,) = load_scorer(folder, label=label).score(ALL[:1])
        assert score.reward == list(score.attributes.values())[place]


def test_the_output_that_is_the_reward_is_named(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_scorer(many)
    assert "'help'" in capsys.readouterr().err


def test_a_classifier_without_labels_in_its_config(classifier: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(classifier)
    config = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    before, after = load_scorer(classifier).score(ALL), load_scorer(folder).score(ALL)
    assert [score.reward for score in after] == [score.reward for score in before]


def test_nemotrons_form_is_what_generate_gives(nemotron: Path) -> None:
    """The call of NVIDIA's model card."""
    scores = load_scorer(nemotron, form="nemotron").score(ALL)
    model = AutoModelForCausalLM.from_pretrained(nemotron).eval()
    for score, conversation in zip(scores, ALL, strict=True):
        ids = ids_of(nemotron, conversation)
        out = model.generate(**ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
        assert score.reward == pytest.approx(out["scores"][0][0][0].item(), abs=1e-4)
    assert len({round(score.reward, 3) for score in scores}) == len(ALL)


@pytest.mark.parametrize("budget", [1, 100, 300, 10_000])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["classifier", "nemotron"])
def test_padding_batch_size_and_neighbours_change_no_score(
    request: pytest.FixtureRequest, copy: Callable[[Path], Path], form: str, side: str, budget: int
) -> None:
    folder = copy(request.getfixturevalue(form))
    set_config(folder, "tokenizer_config.json", padding_side=side)
    scorer = load_scorer(folder, form=form, tokens_per_batch=budget)
    alone = torch.cat([rows(list(scorer.score([conversation]))) for conversation in ALL])
    order = torch.randperm(len(ALL), generator=torch.Generator().manual_seed(budget)).tolist()
    assert torch.allclose(rows(list(scorer.score([ALL[place] for place in order]))), alone[order], atol=1e-4)


def test_padding_that_ends_a_turn_is_replaced(classifier: Path, copy: Callable[[Path], Path]) -> None:
    """transformers finds the last token by the padding id; with pad = eos = end of turn it is wrong."""
    folder = copy(classifier)
    set_config(folder, "tokenizer_config.json", pad_token="<|im_end|>")
    end = AutoTokenizer.from_pretrained(folder).pad_token_id
    set_config(folder, pad_token_id=end)
    replaced, plain = (rows(list(load_scorer(place).score(ALL))) for place in (folder, classifier))
    assert torch.allclose(replaced, plain, atol=1e-4)


def test_an_encoder_is_read_where_its_own_head_reads(tiny_base: Path, tmp_path: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(tiny_base))
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=words, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    folder = save(BertForSequenceClassification(config), tiny_base, tmp_path / "bert")
    scores = load_scorer(folder).score(ALL)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [
            model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits.item()
            for ids in (ids_of(folder, conversation) for conversation in ALL)
        ]
    assert [score.reward for score in scores] == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.01


def test_a_bfloat16_model_is_read_in_its_own_format(
    classifier: Path, tmp_path: Path, tiny_base: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.bfloat16)
    folder = save(model, tiny_base, tmp_path / "bfloat16")
    scorer = load_scorer(folder)
    assert isinstance(scorer, PlainScorer) and scorer.model.dtype == torch.bfloat16
    exact, rounded = (rows(list(s.score(ALL))) for s in (load_scorer(classifier), scorer))
    assert (exact - rounded).abs().mean() < 0.1 * exact.std()


def test_ours_is_found_by_its_card(tiny_reward: Path) -> None:
    ours = load_scorer(tiny_reward)
    assert isinstance(ours, Scorer)
    assert rows(list(ours.score(ALL))).tolist() == rows(Scorer.load(tiny_reward).score(ALL)).tolist()


def test_batches_are_within_the_budget_and_hold_each_sequence_once() -> None:
    sequences = [[0] * length for length in (3, 50, 7, 7, 20, 1)]
    batches = list(by_length(sequences, budget=21))
    assert batches == [[1], [4], [2, 3, 0], [5]]  # 50; 20; 3 x 7; 1
    assert list(by_length([], budget=21)) == []


def test_the_rule_of_reasoning(classifier: Path, tiny_reward: Path) -> None:
    asked = Message("user", "Name a colour.")
    plain, thought = (
        (asked, Message("assistant", text)) for text in ("Blue.", "<think>The sky?</think>Blue.")
    )
    kept, stripped = load_scorer(classifier), load_scorer(classifier, reasoning="strip")
    (score,) = kept.score([plain])
    assert stripped.score([thought])[0].reward == pytest.approx(score.reward, abs=1e-6)
    assert kept.score([thought])[0].reward != pytest.approx(score.reward, abs=1e-4)
    with pytest.raises(RefusalError):
        load_scorer(classifier, reasoning="refuse").score([thought])
    with pytest.raises(ModelError) as caught:
        load_scorer(tiny_reward, reasoning="strip")
    assert "reward.json" in caught.value.allowed


def test_no_conversations(classifier: Path) -> None:
    assert load_scorer(classifier).score([]) == []


def test_a_head_that_was_never_trained(
    tiny_base: Path, classifier: Path, copy: Callable[[Path], Path]
) -> None:
    with pytest.raises(ModelError, match=r"\b1 .*score\.weight"):
        load_scorer(tiny_base, form="classifier")
    folder = copy(classifier)
    file = folder / "model.safetensors"
    save_file(
        {name: w for name, w in load_file(file).items() if name != "score.weight"}, file, {"format": "pt"}
    )
    with pytest.raises(ModelError, match=r"score\.weight") as caught:
        load_scorer(folder)
    assert caught.value.exit_code == 2


def test_a_plain_language_model_is_no_reward_model(tiny_base: Path, classifier: Path) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM") as caught:
        load_scorer(tiny_base)
    assert "--form nemotron" in caught.value.fix
    with pytest.raises(ModelError, match="output embedding"):
        load_scorer(tiny_base, form="nemotron")
    with pytest.raises(ModelError, match="sequence classifier") as caught:
        load_scorer(classifier, form="nemotron")
    assert caught.value.fix == "--form classifier"


def test_logits_that_are_more_than_a_product(nemotron: Path, copy: Callable[[Path], Path]) -> None:
    folder = set_config(copy(nemotron), final_logit_softcapping=30.0)
    with pytest.raises(ModelError, match="logits"):
        load_scorer(folder, form="nemotron")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "classifer"}, "--form classifer .*'classifier'"),
        ({"label": "hlp"}, "'hlp'.* 'help'"),
        ({"form": "ours"}, "reward model"),
        ({"form": "nemotron", "label": "help"}, "help"),
    ],
)
def test_a_mistaken_option(many: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_scorer(many, **options)  # type: ignore[arg-type]


def test_a_label_for_one_of_ours(tiny_reward: Path) -> None:
    with pytest.raises(ModelError, match="--label truth"):
        load_scorer(tiny_reward, label="truth")


def test_nothing_there(tmp_path: Path, tiny_reward: Path) -> None:
    with pytest.raises(ModelError, match="/nowhere"):
        load_scorer(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nobody/nowhere"):
        load_scorer("nobody/nowhere")
    (tmp_path / "run").mkdir()
    shutil.copytree(tiny_reward, tmp_path / "run" / "final")
    with pytest.raises(ModelError) as caught:
        load_scorer(tmp_path / "run")
    assert caught.value.fix == f"use {tmp_path / 'run' / 'final'}"


def test_a_torn_file(classifier: Path, copy: Callable[[Path], Path]) -> None:
    file = copy(classifier) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(file.parent)):
        load_scorer(file.parent)


def test_no_chat_template(classifier: Path, copy: Callable[[Path], Path]) -> None:
    folder = copy(classifier)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        load_scorer(folder)


def test_a_conversation_that_does_not_fit(classifier: Path) -> None:
    long = (Message("user", "Count."), Message("assistant", "one " * 600))
    with pytest.raises(DataError, match=r"2 of 2 .*6\d\d tokens") as caught:
        load_scorer(classifier).score([ALL[0], long])
    assert "512" in caught.value.allowed
    with pytest.raises(DataError, match="assistant"):
        load_scorer(classifier).score([(Message("user", "And?"),)])


def test_a_score_that_is_no_number(classifier: Path, copy: Callable[[Path], Path]) -> None:
    file = copy(classifier) / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(DivergenceError, match="score"):
        load_scorer(file.parent).score(ALL[:2])


def test_a_classifier_in_bfloat16_on_a_gpu_without_it(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4: its products would fail, or be emulated."""
    folder = Path(shutil.copytree(classifier, tmp_path / "classifier"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ModelError) as caught:
        load_scorer(folder)
    assert "Tesla T4" in caught.value.found
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.fix


@pytest.mark.parametrize(("processes", "place"), [(1, "auto"), (2, {"": 1})])
def test_each_process_has_its_classifier_on_its_own_gpu(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, processes: int, place: object
) -> None:
    asked: dict[str, Any] = {}

    def from_pretrained(path: str, **options: Any) -> Any:
        asked.update(options)
        raise OSError("enough")

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError):
        load_scorer(classifier)
    assert asked["device_map"] == place


def test_an_unknown_revision_is_named() -> None:
    with pytest.raises(ModelError) as refused:
        load_scorer("me/my-reward@nope")
    assert "'nope'" in refused.value.found
