"""What a model folder contains, and the config keys and commands that take it: for messages to users."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rlhf.core.errors import ModelError
from rlhf.core.hub import ADAPTER_CONFIG, CARDS, find_missing, split_revision
from rlhf.models.names import HEAD

WHOLE = "config.json"
UNMERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT")
"""Types of PEFT's adapters that are not changes of weights."""
KINDS = {"LORA": "LoRA"}
"""Types of PEFT's adapters that are usually written otherwise."""
USES: Mapping[str, tuple[str, str]] = {
    "reward.json": ("a reward model", "align-policy: reward={name}; train-reward: start={name}"),
    "policy.json": ("a policy", "align-policy or train-dpo: start={name}"),
    "principle.json": (
        "a principle model",
        "align-policy: 'reward={{principle: {name}, principles: [...]}}'; train-principle: start={name}",
    ),
    "justifier.json": ("a justifier", "rlhf evaluate-reward {name} --form justifier --data BENCHMARK"),
}
"""What the card in an adapter's folder says that it is, and what takes the folder."""


def content_and_use(name: str, folder: Path) -> tuple[str, str] | None:
    """What is in a folder and what takes it, such as `a policy` and `align-policy: start=NAME`.

    None for a folder without a model.
    """
    for card, (content, use) in USES.items():
        if (folder / card).exists():
            return content, use.format(name=name)
    if (folder / ADAPTER_CONFIG).exists():
        return _plain_adapter(name, folder)
    if not (folder / WHOLE).exists():
        return None
    names = json.loads((folder / WHOLE).read_text("utf-8")).get("architectures") or ()
    if any(architecture.endswith("ForSequenceClassification") for architecture in names):
        use = f"align-policy: 'reward={{classifier: {name}}}'; train-reward: model.base={name}"
        return "a sequence classifier", use
    return "a complete model", f"align-policy or train-reward: model.base={name}"


def why_absent(name: str) -> tuple[str, str]:
    """Why there is no model of this project in a folder or on the Hub, and the fix."""
    repository, revision = split_revision(name)
    if "/" not in name:
        return "there is no such folder", "correct the path"
    if missing := find_missing(repository, "model", revision):
        return missing.found.rstrip("."), missing.fix
    use = f"a complete model is a model.base, or a reward as 'reward={{classifier: {name}}}'"
    return "it is on the Hub, but is no adapter of this project", use


def adapter_as_model(name: str, folder: Path) -> ModelError:
    """The error for an adapter used as a model, with the keys that take it or the command that merges it."""
    content, use = content_and_use(name, folder) or ("", "")
    card = next((folder / card for card in CARDS if (folder / card).exists()), None)
    base = _settings(folder).get("base_model_name_or_path") or "an unnamed model"
    if card is not None:
        base = json.loads(card.read_text("utf-8")).get("base", base)
        content += f", an adapter of {base}"
        use += f"; each with model.base={base}"
        if card.name in ("reward.json", "policy.json"):
            use += f". Or merge it: rlhf export {name} --output MERGED"
    return ModelError(
        f"{name} is {content}, not a complete model.",
        allowed="a folder or Hugging Face name of a complete model",
        fix=use,
    )


def _plain_adapter(name: str, folder: Path) -> tuple[str, str]:
    settings = _settings(folder)
    kind = settings.get("peft_type") or "LORA"
    content = f"a {KINDS.get(kind, kind)} adapter of {settings.get('base_model_name_or_path') or 'a model'}"
    if kind in UNMERGEABLE:
        return content, f"another model: an adapter of the kind {kind} cannot be merged into weights"
    is_classifier = settings.get("task_type") == "SEQ_CLS"
    use = "model.base=MERGED" + (" or 'reward={classifier: MERGED}'" if is_classifier else "")
    return content, f"merge it, then use MERGED, as in {use}: {merge_command(name, folder)}"


def _settings(folder: Path) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    return settings


def merge_command(name: str, folder: Path) -> str:
    """The command that merges an adapter of PEFT into its base, and writes both to the folder MERGED."""
    settings = _settings(folder)
    is_classifier = settings.get("task_type") == "SEQ_CLS"
    kind = "SequenceClassification" if is_classifier else "CausalLM"
    labels = f", num_labels={_adapter_outputs(folder)}" if is_classifier else ""
    has_tokenizer = (folder / "tokenizer_config.json").exists()
    tokenizer = name if has_tokenizer else settings.get("base_model_name_or_path") or "BASE"
    return (
        f'python -c "import peft, transformers; peft.AutoPeftModelFor{kind}.from_pretrained({name!r}{labels})'
        ".merge_and_unload().save_pretrained('MERGED'); transformers.AutoTokenizer.from_pretrained("
        f"{tokenizer!r}).save_pretrained('MERGED')\""
    )


def _adapter_outputs(folder: Path) -> int | str:
    """The number of outputs of an adapter's head; `N` if its file cannot be read."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        return "N"
    weights: Any = safe_open(file, framework="pt")
    with weights:
        heads = [name for name in weights.keys() if name.endswith(f"{HEAD}.weight")]  # noqa: SIM118
        return int(weights.get_slice(heads[0]).get_shape()[0]) if heads else "N"
