"""The two reward trainers that are compared: ours, and TRL's RewardTrainer, on the same pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import cost
from measuring import Handler, timed

from rlhf.config.reward import RewardConfig
from rlhf.kernels.packing import Tree


def our_config(options: Mapping[str, Any]) -> RewardConfig:
    """One output, pairs alone, plain Bradley-Terry."""
    budget = {"tokens_per_batch": options["tokens_per_batch"]} if options.get("tokens_per_batch") else {}
    return RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": options["base"], "dtype": options["dtype"], "max_length": options["longest"]},
            "attributes": ["reward"],
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1, "preference_loss": "regular"}],
            **budget,
        }
    )


def their_model(options: Mapping[str, Any], pad_id: int) -> Any:
    """TRL's: by PEFT's own hand, since `with_adapter` would make its layers ours."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    from rlhf.config.schema import AdapterConfig
    from rlhf.models.embedded import resolve_base
    from rlhf.models.loading import lora_config

    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_base(options["base"]),
        num_labels=1,
        dtype=getattr(torch, options["dtype"]),
        pad_token_id=pad_id,
    )
    return get_peft_model(base, lora_config(**AdapterConfig().model_dump(), head=True))


def ours(options: Mapping[str, Any]) -> Handler:
    """`train-reward`'s trainer on given pairs: [chosen ids, rejected ids]."""
    from reward_trainer import reward_trainer
    from transformers import set_seed

    from reward.training.batches import Item
    from reward.training.build import build_model
    from rlhf.models.chat import Chat

    set_seed(0)
    config, chat = our_config(options), Chat.load(options["base"])
    model = build_model(config, chat)
    start(model)
    items = [Item(Tree.of_sequences(pair[::-1]), ((None,), (None,)), 1) for pair in options["pairs"]]

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        updates: list[list[int]] = request["updates"]
        losses: list[float] = []
        start(model)
        if "prepare" in request:
            request["prepare"](model=model)
        trainer = reward_trainer(
            config,
            model,
            chat,
            items,
            order=[place for update in updates for place in update],
            updates=len(updates),
            tokens_per_batch=request["tokens_per_batch"],
            record=lambda _, figures: losses.append(float(figures["loss/bt"])),
        )
        return timed(trainer, options["clock"]) | {"losses": losses} | {"shape": vars(cost.Shape.of(model))}

    return train


def theirs(options: Mapping[str, Any]) -> Handler:
    """TRL's trainer on the same pairs, through its door for token ids."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback
    from trl import RewardConfig as TRLRewardConfig
    from trl import RewardTrainer

    from rlhf.config.schema import OptimizerConfig
    from rlhf.models.chat import Chat

    class InOrder(RewardTrainer):
        """The order was made by the sampler before, see `samples.updates_of`."""

        losses: list[float]

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    set_seed(0)
    chat = Chat.load(options["base"])
    model = their_model(options, chat.pad_id)
    start(model)
    optimizer = OptimizerConfig()

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        updates: list[list[int]] = request["updates"]
        pairs = [options["pairs"][place] for update in updates for place in update]
        start(model)
        trainer = InOrder(
            model,
            args=TRLRewardConfig(
                tempfile.mkdtemp(),
                per_device_train_batch_size=request["micro"],
                gradient_accumulation_steps=len(updates[0]) // request["micro"],
                max_steps=len(updates),
                learning_rate=optimizer.learning_rate,
                lr_scheduler_type="constant",
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                max_grad_norm=optimizer.max_grad_norm,
                max_length=None,
                bf16=options["dtype"] == "bfloat16",
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=Dataset.from_list([{"chosen_ids": c, "rejected_ids": r} for c, r in pairs]),
            processing_class=chat.tokenizer,
        )
        trainer.losses = []
        trainer.remove_callback(PrinterCallback)
        return timed(trainer, options["clock"]) | {"losses": trainer.losses}

    return train


SIDES = {"ours": ours, "trl": theirs}


def start(model: Any) -> None:
    """The same weights for both sides: whatever is trained gets small random values, in the order of
    names."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(
            (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
        ):
            parameter.data = parameter.data.float()
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
            parameter.grad = None
