"""The model card of a policy: base, method, data, figures on held-out prompts, and code to load it.

It is written with the model, and rewritten after the evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from policy.training.describe import reward_words
from rlhf.config.policy import PolicyConfig
from rlhf.core.markdown import bullets, table
from rlhf.core.records import Prompt
from rlhf.data.drops import DropReport, drops_line
from rlhf.models.card import CARD, base_literal, license_line, render_card, source_line
from rlhf.runs.files import atomic_write_text

FIGURES = {
    "reward": "reward",
    "gold": "gold score",
    "held_out": "held-out reward",
    "kl": "KL to the reference, nats an answer",
    "length": "length, tokens",
}


def write_card(
    final: Path,
    config: PolicyConfig,
    prompts: Sequence[Prompt],
    drops: DropReport,
    evaluation: Mapping[str, Any],
) -> None:
    """Write the card again, with the sizes of the data and the figures of eval.json."""
    atomic_write_text(final / CARD, card_text(config, final, prompts, drops, evaluation))


def card_text(
    config: PolicyConfig,
    final: Path,
    prompts: Sequence[Prompt] = (),
    drops: DropReport | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown; without `evaluation`, the card of a policy that has not been evaluated."""
    whole = config.adapter is None
    what = "A whole model, all weights of which were" if whole else "A LoRA adapter"
    start = config.start
    begun = "" if start is None else f", started from the policy `{start}`, which is also the reference"
    return render_card(
        base=config.model.base,
        task="text-generation",
        library="transformers" if whole else "peft",
        title="Aligned policy",
        summary=f"{what} trained for at most {config.steps} updates by {_method(config)}{begun}.",
        code=adapter_code(config.model.base, config.model.revision, config.model.dtype, final)
        if not whole
        else generate_code(final),
        datasets=[source.path for source in config.data.prompts],
        sections={
            "Training": bullets(_training(config)),
            "Data": bullets(_data(config, prompts, drops)),
            "Figures": _figures(evaluation),
            "License": license_line(config.model.base),
        },
    )


def adapter_code(base: str, revision: str | None, dtype: str, folder: Path) -> str:
    """Python that loads an adapter on its base and answers a message."""
    pinned = f", revision={revision!r}" if revision else ""
    return f"""import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {base_literal(base)}
folder = {str(folder)!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(base{pinned}, dtype=torch.{dtype})
model = PeftModel.from_pretrained(model, folder).eval()
{_ANSWER}"""


def generate_code(folder: Path) -> str:
    """Python that loads a whole model and answers a message."""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {str(folder)!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{_ANSWER}"""


_ANSWER = """messages = [{"role": "user", "content": "Tell me about tea."}]
ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**ids, max_new_tokens=64)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def _method(config: PolicyConfig) -> str:
    samples = config.rollouts.samples_per_prompt
    baseline = f"with a leave-one-out baseline over {samples} answers a prompt"
    return {
        "reinforce": f"REINFORCE {baseline}",
        "rloo": f"RLOO {baseline}",
        "ppo": f"PPO with a critic on the same base and {samples} answers a prompt",
    }[config.algorithm.name]


def _training(config: PolicyConfig) -> Iterator[str]:
    kl, adapter = config.algorithm.kl, config.adapter
    yield f"Reward: `{reward_words(config)}`"
    yield f"KL penalty: {kl.coefficient:g} x {kl.reduction} of {kl.estimator}, in the {kl.placement}"
    yield (
        f"Batches: {config.rollouts.prompts_per_step} prompts an update, "
        f"{config.rollouts.samples_per_prompt} answers each, at most {config.rollouts.max_new_tokens} "
        "tokens"
    )
    yield f"Learning rate: {config.optimizer.learning_rate:g}"
    if adapter is not None:
        yield f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, on {adapter.targets}"
    base = "loaded in 4 bits (NF4)" if config.model.quantization == "nf4" else f"in {config.model.dtype}"
    yield f"Base {base}"


def _data(config: PolicyConfig, prompts: Sequence[Prompt], drops: DropReport | None) -> Iterator[str]:
    yield from map(source_line, config.data.prompts)
    for name, count in sorted(Counter(prompt.source for prompt in prompts).items()):
        yield f"Training: {count:,} prompts of {name or 'a source without a name'}"
    if drops is not None:
        yield drops_line(drops)


def _figures(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation or "difference" not in evaluation:
        return "Not evaluated yet."
    rows = []
    for name, title in FIGURES.items():
        before, after = (evaluation[side].get(name) for side in ("before", "after"))
        difference = evaluation["difference"].get(name)
        if before is None or after is None or difference is None:
            continue
        ends = difference["ci95"]
        rows.append(
            [
                title,
                f"{before:.3g}",
                f"{after:.3g}",
                f"{difference['mean']:+.3g}",
                f"{ends[0]:+.3g} to {ends[1]:+.3g}" if ends else "",  # None for a single prompt
            ]
        )
    header = ["mean", "before", "after", "difference", "95 % interval"]
    return (
        f"{evaluation['prompts']} held-out prompts, {evaluation['samples']} answers each; the interval is "
        "the paired "
        f"bootstrap over prompts.\n\n{table(header, rows)}"
    )
