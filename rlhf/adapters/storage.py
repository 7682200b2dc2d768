"""Adapters on disk, hung on a base as roles: reward models (adapter and head), policies, and blends of policies.

A folder holds PEFT's two files and a card that says with which base and chat template the adapter was trained: on
another base, or under another template, it means nothing. What is hung is frozen.
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
from rlhf.kernels import adapter_layers
from rlhf.models.bases import adapter_as_model
from rlhf.models.chat import Chat
from rlhf.models.chat.template import keys_to_set
from rlhf.models.checkpoint_folder import model_folder
from rlhf.models.loading import (
    HEAD,
    REWARD,
    PeftModel,
    base_of,
    fingerprint,
    keep_trainable,
)

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
WHOLE = "config.json"  # a whole model's
PREFIX = "base_model.model."
"""What PEFT writes before the name of every weight."""
HEAD_WEIGHT = f"{PREFIX}{HEAD}.weight"
REWARD_MODEL = "reward model"
BEYOND_LORA = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication")
"""Settings that make an adapter more than one product of two matrices, of one rank and scale, a layer."""
PICKS_LAYERS = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Settings that narrow what an adapter's target names mean."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, read."""

    kind: str
    """What it is, in words for people."""
    config: LoraConfig
    weights: Mapping[str, Tensor]
    card: Mapping[str, Any]
    """base, revision, fingerprint, what `Chat.card` says of the template, and what else its kind needs."""
    folder: Path | None = None

    @classmethod
    def read(cls, folder: Path, *, kind: str, card: str, command: str) -> Adapter:
        """Read a folder.

        Raises:
            ModelError: it is missing, holds something else, or a file in it is torn.
        """
        folder = model_folder(folder)
        for name in ("", ADAPTER_CONFIG, ADAPTER_FILE, card):
            if not (folder / name).exists():
                if name == card:
                    raise adapter_as_model(str(folder), folder)
                why = f"{name} is missing" if name else "there is no such folder"
                final = folder / "final"
                if (folder / WHOLE).exists():
                    why += "; it is a whole model, which may stand where a base does"
                raise ModelError(
                    f"{folder} is not a {kind} of this project: {why}.",
                    allowed=f"the final/ folder of a `rlhf {command}` run",
                    fix=f"use {final}" if final.exists() else f"rlhf {command} CONFIG.yaml",
                )
        try:
            weights = load_file(folder / ADAPTER_FILE)
            described = json.loads((folder / card).read_text("utf-8"))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ModelError(f"A file of {folder} is torn: {error}", fix="copy or train it again") from error
        _refuse_weights_of_the_base(folder, kind, weights)
        return cls(kind, LoraConfig.from_pretrained(str(folder)), weights, described, folder)

    def check_template(self, chat: Chat) -> None:
        """Compare the chat template with the one the adapter was trained with.

        Raises:
            ModelError: it is another.
        """
        trained_with = self.card["template_hash"]
        if chat.template_hash != trained_with:
            raise ModelError(
                f"The chat template here is not the one the {self.kind} was trained with "
                f"({chat.template_hash[:12]}… instead of {trained_with[:12]}…).",
                allowed=f"the tokenizer saved beside the {self.kind}, with the same date and options of the template",
                fix="set " + " ".join(keys_to_set(chat.template, self.card, self.folder)),
            )

    def attach(self, model: PreTrainedModel | PeftModel, name: str) -> PeftModel:
        """Put the adapter on a causal base as the role `name`, frozen, in place of an earlier one of that name.

        Raises:
            ModelError: the adapter was trained on another base, or has weights without a place in it.
        """
        base = base_of(model)
        found = fingerprint(base)
        if found != self.card["fingerprint"]:
            raise ModelError(
                f"The {self.kind} was trained on {self.card['base']!r} (fingerprint {self.card['fingerprint']}), "
                f"the base here is {base.config.name_or_path!r} ({found}).",
                allowed=f"a {self.kind} on the same base: its adapter means nothing on another",
                fix=f"set model.base={self.card['base']}, or train a {self.kind} on this base",
            )
        config = LoraConfig(**{**self.config.to_dict(), "modules_to_save": None, "task_type": "CAUSAL_LM"})
        config.inference_mode = True
        config.lora_dropout = 0.0  # the model around it may be training the policy, and a role is no draw
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
                f"{len(result.unexpected_keys)} weights of the {self.kind}'s adapter have no place in the base, "
                f"the first is {result.unexpected_keys[0]}.",
                fix="use the base the adapter was trained on",
            )
        return wrapped

    def update(self) -> Update:
        """What the adapter adds to the weights of the base, by layer, as factors that hold its scale.

        Raises:
            ModelError: that is more than a product of two matrices a layer (DoRA, ranks that differ by layer).
        """
        beyond = [name for name in BEYOND_LORA if getattr(self.config, name)]
        ends = (".lora_A.weight", ".lora_B.weight")
        beyond += [name for name in self.weights if not name.endswith(ends)]
        if beyond:
            raise ModelError(
                f"The {self.kind}'s adapter is more than a LoRA: it has {beyond[0]}.",
                allowed="LoRA adapters, whose updates are products of two matrices and add up",
            )
        root = math.sqrt if self.config.use_rslora else float
        scale = self.config.lora_alpha / root(self.config.r)
        return {
            name.removesuffix(ends[0]).removeprefix(PREFIX): Factors(
                self.weights[name.replace(*ends)].float(), scale * self.weights[name].float()
            )
            for name in self.weights
            if name.endswith(ends[0])
        }


def _refuse_weights_of_the_base(folder: Path, kind: str, weights: Mapping[str, Tensor]) -> None:
    """Make sure that an adapter is LoRA layers and, of a reward model, a head.

    Other modules in its file (`modules_to_save`, trained biases or tokens) would replace the base's own, which other roles share.

    Raises:
        ModelError: it is more.
    """
    head = [HEAD] if kind == REWARD_MODEL else []
    others = [
        name
        for name in weights
        if not any(part.startswith("lora_") for part in name.split(".")) and name.split(".")[-2] not in head
    ]
    if others:
        raise ModelError(
            f"The adapter in {folder} replaces weights of the base itself: {others[0]}. Other roles on the base would change too.",
            allowed=f"an adapter of LoRA layers alone{' and a head named score' if head else ''}",
            fix="train it without modules_to_save, trained biases or trained tokens; or merge it into its base with PEFT's "
            "merge_and_unload, and use the merged model as model.base",
        )


def read_policy(folder: Path) -> Adapter:
    """What `final/` of a policy run holds beside its tokenizer.

    Raises:
        ModelError: not a policy, or a file is torn.
    """
    return Adapter.read(folder, kind="policy", card="policy.json", command="align-policy")


@dataclass(frozen=True)
class RewardAdapter:
    """A reward model on disk, read: what `final/` of a reward run holds beside its tokenizer."""

    lora: Adapter
    head_AD: Tensor

    @property
    def card(self) -> Mapping[str, Any]:
        """reward.json: an adapter's card, and attributes, trained_length, max_length (the base's context)."""
        return self.lora.card

    @classmethod
    def read(cls, folder: Path) -> RewardAdapter:
        """Read a folder.

        Raises:
            ModelError: not a reward model, its head is missing, or a file is torn.
        """
        folder = model_folder(folder)
        adapter = Adapter.read(folder, kind=REWARD_MODEL, card="reward.json", command="train-reward")
        heads = [name for name in adapter.weights if name.split(".")[-2] == HEAD]
        if len(heads) != 1:
            raise ModelError(
                f"{folder / ADAPTER_FILE} holds {len(heads)} reward heads.",
                allowed=f"one weight named …{HEAD}.weight; without it every score would be random",
                fix="save the adapter with modules_to_save=['score'], or train it again",
            )
        head = adapter.weights[heads[0]]
        if head.shape[0] != len(adapter.card["attributes"]):
            raise ModelError(
                f"The head has {head.shape[0]} outputs, reward.json names {len(adapter.card['attributes'])} attributes.",
                fix="use the two files of one run",
            )
        weights = {name: weight for name, weight in adapter.weights.items() if name not in heads}
        return cls(replace(adapter, weights=weights), head.float())

    def attach(self, model: PreTrainedModel | PeftModel, name: str = REWARD) -> tuple[PeftModel, nn.Linear]:
        """Put the adapter on a causal base as the role `name`, frozen; returns the model and the head.

        Raises:
            ModelError: the adapter was trained on another base.
        """
        wrapped = self.lora.attach(model, name)
        head = nn.Linear(self.head_AD.shape[1], self.head_AD.shape[0], bias=False, device=wrapped.device)
        head.weight = nn.Parameter(self.head_AD.to(wrapped.device), requires_grad=False)
        return wrapped, head


def read_role(folder: Path) -> RewardAdapter | Adapter:
    """A reward model or a policy, as the card in the folder says.

    Raises:
        ModelError: neither, or a file is torn.
    """
    folder = model_folder(folder)
    if (folder / "reward.json").exists():
        return RewardAdapter.read(folder)
    if (folder / "policy.json").exists():
        return read_policy(folder)
    final = folder / "final"
    fix = f"use {final}" if final.exists() else "check the path"
    if (folder / WHOLE).exists():
        fix = "nothing: it is a whole model as it is"
    raise ModelError(
        f"{folder} is neither a reward model nor a policy of this project.",
        allowed="the final/ folder of a `train-reward` or `align-policy` run",
        fix=fix,
    )


def common_targets(configs: Sequence[LoraConfig], update: Update) -> list[str]:
    """The layers of an update as PEFT's target names: the adapters' own where those are plain, else every layer's."""
    plain = all(
        not isinstance(config.target_modules, str)
        and not any(getattr(config, name, None) for name in PICKS_LAYERS)
        for config in configs
    )
    return sorted({name for config in configs for name in config.target_modules} if plain else update)


def write_adapter(
    folder: Path, update: Update, head_AD: Tensor | None, *, targets: Sequence[str], base: str
) -> None:
    """Write PEFT's two files into a folder: an update as a LoRA of scale 1, with a reward head where there is one."""
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
