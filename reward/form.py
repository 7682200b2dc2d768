"""The form of a reward model and the options it takes, checked by its files before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward.outputs import reward_output
from reward.principle.scorer import CARD as PRINCIPLE_CARD
from rlhf.adapters.storage import RewardAdapter
from rlhf.config.schema import ReasoningRule
from rlhf.core.errors import ModelError
from rlhf.core.hub import split_revision
from rlhf.core.places import missing_local
from rlhf.models.bases import read_config, require_weights
from rlhf.models.chat import Chat
from rlhf.models.checkpoint_folder import model_folder
from rlhf.models.folders import why_absent
from rlhf.models.stored import StoredHead, stored_head

FORMS = ("auto", "ours", "classifier", "nemotron", "principle")


def check_scorer(model: str | Path, *, label: str | None = None, reasoning: ReasoningRule = "keep") -> None:
    """Check a model for `load_scorer` by its files, without loading weights.

    Raises:
        ModelError: it has no reward head, no chat template or no output `label`, or is incomplete.
    """
    form = find_form(model, None)
    check_options(form, model, label, (), reasoning)
    if form == "ours":
        adapter = RewardAdapter.read(Path(model)).lora
        Chat.beside(Path(model), adapter.card)
        return
    config = read_config(str(model), None)
    require_weights(config, str(model))
    Chat.load(model).with_reasoning(reasoning)
    stored = stored_head(config, str(model), None, fetch=False)
    reward_output(str(model), set_outputs(config, stored), label, problem_type=config.problem_type)


def find_form(model: str | Path, revision: str | None) -> str:
    """The form of a reward model, by its files.

    Raises:
        ModelError: there is no such model, or it shows no reward head.
    """
    folder = model_folder(model)
    if split_revision(str(model))[1] and not folder.exists():
        reason, fix = why_absent(str(model))
        raise ModelError(f"{model} is not a reward model: {reason}.", fix=fix)
    if str(model).count("/") > 1 and not folder.exists():  # a Hugging Face name has one
        raise ModelError(f"There is no folder {model}: {missing_local(str(model))}", fix="correct the path")
    if (folder / PRINCIPLE_CARD).exists():
        return "principle"
    if (folder / "reward.json").exists() or (folder.is_dir() and not (folder / "config.json").exists()):
        return "ours"  # of a folder that holds no model at all, its reader says what is missing
    config = read_config(str(model), revision)
    names = list(config.architectures or ())
    is_classifier = any(name.endswith("ForSequenceClassification") for name in names)
    if is_classifier or stored_head(config, str(model), revision):
        return "classifier"
    raise ModelError(
        f"{model} is {', '.join(names) or 'a model of no named architecture'}: a reward head is not to be "
        "seen.",
        allowed="a reward model of this project, a …ForSequenceClassification, or NVIDIA's …-Reward-HF",
        fix="name a reward model; `rlhf score` takes --form nemotron, if the reward is the logit of "
        "vocabulary id 0",
    )


def check_options(
    form: str, model: str | Path, label: str | None, principles: Sequence[str], reasoning: ReasoningRule
) -> None:
    """Require options that the form of a reward model takes.

    Raises:
        ModelError: it does not take one, or one is missing.
    """
    if form == "principle" and not principles:
        raise ModelError(
            f"{model} scores by principles, and none is given.",
            allowed="one principle or more, in words",
            fix=f'rlhf score {model} --principle "The response is at most one sentence." ...',
        )
    if form != "principle" and principles:
        raise ModelError(
            f"--principle: {model} is a reward model of the form {form}, which scores without principles.",
            allowed="--principle with the final/ folder of a `rlhf train-principle` run",
            fix="leave --principle out, or name a principle model",
        )
    if form == "ours" and label is not None:
        raise ModelError(
            f"--label {label}: a reward model of this project has its reward as first attribute.",
            allowed="--label with a classifier of several outputs",
            fix="leave --label out; `rlhf score` writes every attribute",
        )
    if form == "ours" and reasoning != "keep":
        raise ModelError(
            f"reasoning is {reasoning}, and {model} is a reward model of this project.",
            allowed="the rule that it was trained with, in its reward.json",
            fix="leave reasoning out",
        )


def set_outputs(config: Any, stored: StoredHead | None) -> list[str]:
    """Set the number of outputs in a classifier's config to that of its stored head; return their names."""
    if stored and stored.outputs != config.num_labels:
        config.num_labels = stored.outputs  # a config without labels has two by default
    names = [str(config.id2label[place]) for place in range(config.num_labels)]
    return ["reward"] if names == ["LABEL_0"] else names  # transformers' name of an output without one
