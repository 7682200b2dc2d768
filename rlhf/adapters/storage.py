"""Adapters on disk, attached to a base as frozen roles: reward models (adapter and head) and policies.

A folder holds PEFT's two files and a card with the base and chat template of the training. With another base
or template the adapter is meaningless.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.adapters.attached import delete_if_present
from rlhf.adapters.lowrank import Factors, Update, padded, rank_of
from rlhf.core.errors import ModelError
from rlhf.core.hub import ADAPTER_CONFIG
from rlhf.kernels import adapter_layers
from rlhf.models.chat import Chat
from rlhf.models.chat.template import keys_to_set
from rlhf.models.checkpoint_folder import model_folder
from rlhf.models.folders import WHOLE, content_and_use, merge_command, why_absent
from rlhf.models.loading import PeftModel, base_of, fingerprint
from rlhf.models.names import HEAD, REWARD
from rlhf.models.roles import keep_trainable

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's prefix of every weight's name."""
HEAD_WEIGHT = f"{PREFIX}{HEAD}.weight"
REWARD_MODEL = "reward model"
BEYOND_LORA = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "target_parameters",
)
"""Settings of adapters whose update is not one product of two matrices per layer, with one rank and scale."""
PICKS_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings that restrict an adapter's target names."""


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter's folder."""

    kind: str
    """Its kind for messages: "policy" or "reward model"."""
    config: LoraConfig
    weights: Mapping[str, Tensor]
    card: Mapping[str, Any]
    """base, revision, fingerprint, the fields of `Chat.card`, and those of its kind."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: Path, *, kind: str, card: str, command: str) -> Adapter:
        """Read a folder.

        Raises:
            ModelError: it is missing, contains something else, or a file is corrupt.
        """
        shown, folder = str(folder), model_folder(folder)
        for name in ("", ADAPTER_CONFIG, ADAPTER_FILE, card):
            if not (folder / name).exists():
                raise _not_a(kind, shown, folder, missing=name, card=card, command=command)
        try:
            weights = load_file(folder / ADAPTER_FILE)
            fields = json.loads((folder / card).read_text("utf-8"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ModelError(
                f"A file of {folder} is corrupt: {error}", fix="copy or train it again"
            ) from error
        _refuse_weights_of_the_base(folder, kind, weights)
        return cls(kind, LoraConfig.from_pretrained(str(folder)), weights, fields, folder)

    def check_template(self, chat: Chat) -> None:
        """Require the chat template that the adapter was trained with.

        Raises:
            ModelError: it differs.
        """
        expected = self.card["template_hash"]
        if chat.template_hash != expected:
            raise ModelError(
                f"The chat template differs from the one the {self.kind} was trained with "
                f"({chat.template_hash[:12]}… instead of {expected[:12]}…).",
                allowed=f"the tokenizer saved with the {self.kind}, and the same date and options of the "
                "template",
                fix="set " + " ".join(keys_to_set(chat.template, self.card, self.folder)),
            )

    def attach(self, model: PreTrainedModel | PeftModel, name: str) -> PeftModel:
        """Attach the adapter to a causal base as the frozen role `name`; replaces an adapter of that name.

        Raises:
            ModelError: the adapter was trained on another base, or has weights that the base lacks.
        """
        base = base_of(model)
        actual = fingerprint(base)
        if actual != self.card["fingerprint"]:
            raise ModelError(
                f"The {self.kind} was trained on {self.card['base']!r} (fingerprint "
                f"{self.card['fingerprint']}), but this base is {base.config.name_or_path!r} ({actual}).",
                allowed=f"a {self.kind} on the same base",
                fix=f"set model.base={self.card['base']}, or train a {self.kind} on this base",
            )
        config = LoraConfig(**{**self.config.to_dict(), "modules_to_save": None, "task_type": "CAUSAL_LM"})
        config.inference_mode = True
        config.lora_dropout = 0.0  # the model may be in training mode, but a role is deterministic
        if isinstance(model, PeftModel):
            wrapped = model
            with keep_trainable(wrapped):
                delete_if_present(wrapped, name)
                wrapped.add_adapter(name, config)
        else:
            wrapped = PeftModel(model, config, adapter_name=name)
        adapter_layers.enable(wrapped)
        result = set_peft_model_state_dict(wrapped, dict(self.weights), adapter_name=name)
        if result.unexpected_keys:
            raise ModelError(
                f"{len(result.unexpected_keys)} weights of the {self.kind}'s adapter do not exist in the "
                f"base; the first is {result.unexpected_keys[0]}.",
                fix="use the base the adapter was trained on",
            )
        return wrapped

    def update(self) -> Update:
        """The update of the base's weights by layer, as factors that include the scale.

        Raises:
            ModelError: it is not one product of two matrices per layer (DoRA, different ranks per layer).
        """
        unsupported = [name for name in BEYOND_LORA if getattr(self.config, name)]
        suffixes = (".lora_A.weight", ".lora_B.weight")
        unsupported += [name for name in self.weights if not name.endswith(suffixes)]
        if unsupported:
            raise ModelError(
                f"The {self.kind}'s adapter is not a plain LoRA: it has {unsupported[0]}.",
                allowed="LoRA adapters without these settings",
                fix=f"merge it with PEFT, then use MERGED: {merge_command(str(self.folder), self.folder)}"
                if self.folder
                else "",
            )
        root = math.sqrt if self.config.use_rslora else float
        scale = self.config.lora_alpha / root(self.config.r)
        return {
            name.removesuffix(suffixes[0]).removeprefix(PREFIX): Factors(
                self.weights[name.replace(*suffixes)].float(), scale * self.weights[name].float()
            )
            for name in self.weights
            if name.endswith(suffixes[0])
        }


def _not_a(kind: str, name: str, folder: Path, *, missing: str, card: str, command: str) -> ModelError:
    """The error for a folder that is no `kind`, with the key or command that takes what it contains."""
    final, other = folder / "final", content_and_use(name, folder)
    reason, fix = f"{missing} is missing", f"rlhf {command} CONFIG.yaml"
    if not missing:
        reason, correction = why_absent(name)
        fix = f"{correction}; or train one: {fix}"
    if final.exists():
        fix = f"use {final}"
    elif other is not None and not (folder / card).exists():
        content, fix = other
        reason += f"; it is {content}"
    return ModelError(
        f"{name} is not a {kind} of this project: {reason}.",
        allowed=f"the final/ folder of a `rlhf {command}` run, or OWNER/NAME of one on the Hub",
        fix=fix,
    )


def _refuse_weights_of_the_base(folder: Path, kind: str, weights: Mapping[str, Tensor]) -> None:
    """Require an adapter of LoRA layers and, for a reward model, a head.

    Other modules in its file (`modules_to_save`, trained biases or tokens) would replace weights of the base,
    which other roles share.

    Raises:
        ModelError: it has other weights.
    """
    head = [HEAD] if kind == REWARD_MODEL else []
    others = [
        name
        for name in weights
        if not any(part.startswith("lora_") for part in name.split(".")) and name.split(".")[-2] not in head
    ]
    if others:
        raise ModelError(
            f"The adapter in {folder} replaces weights of the base ({others[0]}), which other roles share.",
            allowed=f"an adapter of LoRA layers{' and a head named score' if head else ''}",
            fix="train it without modules_to_save, trained biases or trained tokens; or merge it into its "
            "base with PEFT's merge_and_unload, and use the merged model as model.base",
        )


def read_policy(folder: Path) -> Adapter:
    """Read the adapter in `final/` of a policy run.

    Raises:
        ModelError: it is not a policy, or a file is corrupt.
    """
    return Adapter.read(folder, kind="policy", card="policy.json", command="align-policy")


@dataclass(frozen=True)
class RewardAdapter:
    """The adapter and head in `final/` of a reward run."""

    lora: Adapter
    head_AD: Tensor

    @property
    def card(self) -> Mapping[str, Any]:
        """reward.json.

        An adapter's card with attributes, trained_length and max_length (the base's context).
        """
        return self.lora.card

    @property
    def attributes(self) -> list[str]:
        """The outputs that were trained; the first is the reward."""
        untrained = self.card.get("untrained", ())
        return [name for name in self.card["attributes"] if name not in untrained]

    @property
    def trained_head_AD(self) -> Tensor:
        """The rows of the head that give `attributes`."""
        names = self.card["attributes"]
        return self.head_AD[[names.index(name) for name in self.attributes]]

    @classmethod
    def read(cls, folder: Path) -> RewardAdapter:
        """Read a folder.

        Raises:
            ModelError: it is not a reward model, its head is missing, or a file is corrupt.
        """
        folder = model_folder(folder)
        adapter = Adapter.read(folder, kind=REWARD_MODEL, card="reward.json", command="train-reward")
        heads = [name for name in adapter.weights if name.split(".")[-2] == HEAD]
        if len(heads) != 1:
            raise ModelError(
                f"{folder / ADAPTER_FILE} contains {len(heads)} reward heads.",
                allowed=f"one weight named …{HEAD}.weight; without it scores would be random",
                fix="save the adapter with modules_to_save=['score'], or train it again",
            )
        head = adapter.weights[heads[0]]
        if head.shape[0] != len(adapter.card["attributes"]):
            raise ModelError(
                f"The head has {head.shape[0]} outputs, but reward.json names "
                f"{len(adapter.card['attributes'])} attributes.",
                fix="use the two files of one run",
            )
        weights = {name: weight for name, weight in adapter.weights.items() if name not in heads}
        return cls(replace(adapter, weights=weights), head.float())

    def attach(self, model: PreTrainedModel | PeftModel, name: str = REWARD) -> tuple[PeftModel, nn.Linear]:
        """Attach the adapter to a causal base as the frozen role `name`; return the model and a head with the
        outputs that were trained.

        Raises:
            ModelError: the adapter was trained on another base.
        """
        wrapped = self.lora.attach(model, name)
        rows_AD = self.trained_head_AD
        head = nn.Linear(rows_AD.shape[1], rows_AD.shape[0], bias=False, device=wrapped.device)
        head.weight = nn.Parameter(rows_AD.to(wrapped.device), requires_grad=False)
        return wrapped, head


def read_role(folder: Path) -> RewardAdapter | Adapter:
    """Read a reward model or a policy, depending on the card in the folder.

    Raises:
        ModelError: it is neither, or a file is corrupt.
    """
    shown, folder = str(folder), model_folder(folder)
    if (folder / "reward.json").exists():
        return RewardAdapter.read(folder)
    if (folder / "policy.json").exists():
        return read_policy(folder)
    final, other, reason = folder / "final", content_and_use(shown, folder), ""
    fix = f"use {final}" if final.exists() else other[1] if other else "check the path"
    if not folder.exists():
        reason, fix = why_absent(shown)
    if any((folder / card).exists() for card in ("principle.json", "justifier.json")):
        fix = (
            "none needed: it is a plain PEFT adapter without a head, which vLLM and transformers load as it "
            f"is: vllm serve BASE --enable-lora --lora-modules NAME={folder}"
        )
    if (folder / WHOLE).exists():
        fix = "none needed: it is a complete model already"
    raise ModelError(
        f"{shown} is neither a reward model nor a policy of this project{reason and ': '}{reason}.",
        allowed="the final/ folder of a `train-reward` or `align-policy` run, or OWNER/NAME on the Hub",
        fix=fix,
    )


def common_targets(configs: Sequence[LoraConfig], update: Update) -> list[str]:
    """PEFT's target names of an update: the adapters' target names if they are plain, else all its layers."""
    plain = all(
        not isinstance(config.target_modules, str)
        and not any(getattr(config, name, None) for name in PICKS_LAYERS)
        for config in configs
    )
    return sorted({name for config in configs for name in config.target_modules} if plain else update)


def write_adapter(
    folder: Path, update: Update, head_AD: Tensor | None, *, targets: Sequence[str], base: str
) -> None:
    """Write PEFT's two files: an update as a LoRA of scale 1, and the reward head if there is one."""
    rank, weights = rank_of(update), dict[str, Tensor]()
    for layer, factors in update.items():
        B_OR, A_RI = padded(factors, rank)
        weights[f"{PREFIX}{layer}.lora_A.weight"] = A_RI.contiguous()
        weights[f"{PREFIX}{layer}.lora_B.weight"] = B_OR.contiguous()
    if head_AD is not None:
        weights[HEAD_WEIGHT] = head_AD.contiguous()
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(targets),
        task_type="CAUSAL_LM" if head_AD is None else "SEQ_CLS",
        modules_to_save=None if head_AD is None else [HEAD],
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(weights, folder / ADAPTER_FILE, metadata={"format": "pt"})
