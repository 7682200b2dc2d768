"""The two policy trainers that are compared: ours, and TRL's RLOOTrainer with a reward model of its own.

Both update the same LoRA adapter by leave-one-out REINFORCE with a KL of coefficient 0.05, on the same
prompts, either with answers that are given or with answers they sample. The reward is the same model: for
ours an adapter on the policy's base, for TRL's merged into a base of its own, which is its fastest form.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cost
from measuring import CLOCKS, Handler, timed
from samples import as_prompts, as_rollouts

COEFFICIENT = 0.05
LEARNING_RATE = 1e-5


def reward_model(base: str, output: Path, quantization: str = "none") -> Path:
    """The folder of a reward model of one attribute on the base, its adapter and head random; made if it is
    not there."""
    folder = output / f"reward-{Path(base).name}-{quantization}"
    if folder.exists():
        return folder.resolve()
    import torch

    from reward.save import save_final
    from reward.training.build import build_model
    from rlhf.config.reward import RewardConfig
    from rlhf.models.chat import Chat

    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": base, "quantization": quantization, "max_length": 256},
            "attributes": ["reward"],
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
        }
    )
    chat = Chat.load(base)
    model = build_model(config, chat)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
    save_final(config, model, chat, folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # this process lives on beside those that are measured
    return folder.resolve()


def our_config(options: Mapping[str, Any]) -> Any:
    """An `align-policy` config: TRL's algorithm, everything else as it comes."""
    from rlhf.config.policy import PolicyConfig

    budget = {"tokens_per_batch": options["tokens_per_batch"]} if options.get("tokens_per_batch") else {}
    return PolicyConfig.model_validate(
        {
            "output": "unused",
            "reward": options["reward"],
            "model": {
                "base": options["base"],
                "dtype": options["dtype"],
                "quantization": options.get("quantization", "none"),
                "max_length": options["longest_prompt"] + options["new_tokens"],
            },
            "adapter": {"rank": options.get("rank", 16), "alpha": 2.0 * options.get("rank", 16)},
            "data": {"prompts": [{"path": "demo"}], "max_prompt_tokens": options["longest_prompt"]},
            "rollouts": {
                # Where answers are given no engine is asked, and this one takes no memory.
                "engine": "transformers" if options["engine"] == "given" else options["engine"],
                "prompts_per_step": len(options["given"]),
                "samples_per_prompt": options["samples"],
                "max_new_tokens": options["new_tokens"],
            },
            "algorithm": options.get("algorithm", {"name": "rloo"}),
            "optimizer": {"learning_rate": LEARNING_RATE, "warmup_steps": 0, "weight_decay": 0.0},
            "steps": options["steps"],
            "save_every": 10**6,
            **budget,
        }
    )


def our_trainer(options: Mapping[str, Any], chat: Any) -> Any:
    """`align-policy`'s trainer with all its roles on one base."""
    from datasets import Dataset

    from policy.training.build import build_trainer

    run: Any = SimpleNamespace(
        checkpoints=Path(tempfile.mkdtemp()), metrics=lambda *_: None, samples=lambda *_: None
    )
    trainer = build_trainer(our_config(options), chat, as_prompts(options["given"]), run)
    # The answers that are given stand in the order of the prompts.
    trainer.order = [place for _ in range(options["steps"]) for place in range(len(options["given"]))]
    draws = [str(place) for place in trainer.order for _ in range(options["samples"])]
    trainer.train_dataset = Dataset.from_dict({"prompt": draws})
    # A benchmark keeps nothing.
    trainer._save_checkpoint = lambda *_, **__: None  # type: ignore[method-assign]  # noqa: SLF001
    if options["engine"] == "given":
        groups = as_rollouts(options["given"], chat)
        trainer.engine = SimpleNamespace(sync=lambda _: None, generate=lambda *_, **__: groups, figures=dict)
    return trainer


def ours(options: Mapping[str, Any]) -> Handler:
    """Our loop: each request trains from a fresh adapter."""
    from rlhf.models.chat import Chat

    chat = Chat.load(options["base"])
    trainer = our_trainer(options, chat)
    figures: list[dict[str, float]] = []
    trainer.record = lambda _, metrics, __: figures.append(dict(metrics))
    stages = Stages(CLOCKS[options["clock"]])
    base = trainer.model.get_base_model()
    for owner, name, stage in (
        (base, "forward", "forward"),
        (base.base_model, "forward", "forward"),
        (trainer.accelerator, "backward", "backward"),
        (trainer.engine, "generate", "generate"),
        (trainer.engine, "sync", "sync"),
    ):
        stages.watch(owner, name, stage)

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        if request.get("tokens_per_batch"):
            trainer.tokens_per_batch = request["tokens_per_batch"]
            trainer.rewards.terms[0].term.scorer.tokens_per_batch = request["tokens_per_batch"]
        figures.clear()
        stages.seconds.clear()
        forget_adapter(trainer.model)
        answer = timed(trainer, options["clock"])
        return answer | {
            "reward": [step_figures["reward/mean"] for step_figures in figures],
            "grad_norm": [step_figures["optimizer/grad_norm"] for step_figures in figures],
            "length": [step_figures["length/mean"] for step_figures in figures],
            "stages": dict(stages.seconds),
            "shape": vars(cost.Shape.of(trainer.model)),
        }

    return train


def theirs(options: Mapping[str, Any]) -> Handler:
    """TRL's loop; a request may name another micro-batch, for which the trainer is made anew."""
    from rlhf.models.chat import Chat

    chat = Chat.load(options["base"])
    made: dict[int, Any] = {}
    if options.get("micro"):
        made[options["micro"]] = trl_trainer(options, chat, options["micro"])

    def train(request: Mapping[str, Any]) -> Mapping[str, Any]:
        micro = request.get("micro") or options["micro"]
        if micro not in made:
            made.clear()
            made[micro] = trl_trainer(options, chat, micro)
        trainer = made[micro]
        trainer.seen.clear()
        forget_adapter(trainer.model)
        return timed(trainer, options["clock"]) | {
            "reward": [logged["reward"] for logged in trainer.seen],
            "grad_norm": [logged["grad_norm"] for logged in trainer.seen],
            "length": [logged["completions/mean_length"] for logged in trainer.seen],
        }

    return train


def trl_trainer(options: Mapping[str, Any], chat: Any, micro: int) -> Any:
    """TRL's RLOOTrainer, with given answers where they are given."""
    import copy

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from transformers.trainer_callback import PrinterCallback
    from trl import RLOOConfig, RLOOTrainer

    from rlhf.config.schema import AdapterConfig
    from rlhf.models.embedded import resolve_base
    from rlhf.models.loading import lora_config

    given = as_rollouts(options["given"], chat) if options["engine"] == "given" else None

    class WithAnswers(RLOOTrainer):
        """Its rollouts replaced where answers are given; scoring, KL, advantages and loss are TRL's."""

        def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
            if given is None:
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields)
            waiting = {
                group[0].prompt_ids: [list(answer.completion_ids) for answer in group] for group in given
            }
            taken: dict[tuple[int, ...], int] = defaultdict(int)
            answers = []
            for ids in map(tuple, prompt_ids):
                answers.append(waiting[ids][taken[ids]])
                taken[ids] += 1
            return answers

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                averages = {
                    name: sum(values) / len(values) for name, values in self._metrics["train"].items()
                }
                self.seen.append({**averages, **logs})
            self._metrics["train"].clear()

    answers = len(options["given"]) * options["samples"]
    trainer = WithAnswers(
        AutoModelForCausalLM.from_pretrained(
            resolve_base(options["base"]), dtype=getattr(torch, options["dtype"])
        ),
        trl_reward(options, chat),
        args=RLOOConfig(
            tempfile.mkdtemp(),
            num_generations=options["samples"],
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=answers // micro,
            max_completion_length=options["new_tokens"],
            max_steps=options["steps"],
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            beta=COEFFICIENT,
            logging_steps=1,
            bf16=options["dtype"] == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Dataset.from_list([{"prompt": item["messages"]} for item in options["given"]]),
        processing_class=copy.deepcopy(chat.tokenizer),
        reward_processing_classes=copy.deepcopy(chat.tokenizer),
        peft_config=lora_config(**AdapterConfig().model_dump()),
    )
    trainer.seen = []
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_reward(options: Mapping[str, Any], chat: Any) -> Any:
    """The reward model as plain weights: base and adapter merged."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rlhf.models.embedded import resolve_base
    from rlhf.models.loading import PeftModel

    base = AutoModelForSequenceClassification.from_pretrained(
        resolve_base(options["base"]),
        num_labels=1,
        dtype=getattr(torch, options["dtype"]),
        pad_token_id=chat.pad_id,
    )
    return PeftModel.from_pretrained(base, options["reward"]).merge_and_unload()


SIDES: Mapping[str, Callable[[Mapping[str, Any]], Handler]] = {"ours": ours, "trl": theirs}


def forget_adapter(model: Any) -> None:
    """Make a policy the reference again."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.zero_()


class Stages:
    """Seconds in each kind of work; a call within another one is part of that one."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.seconds, self.inside = now, defaultdict[str, float](float), False

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count the time in a method of an object from now on."""
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.counting(stage):
                return inner(*args, **kwargs)

        setattr(owner, name, outer)

    @contextlib.contextmanager
    def counting(self, stage: str) -> Iterator[None]:
        """The time in the block, unless it is counted already."""
        if self.inside:
            yield
            return
        self.inside, started = True, self.now()
        try:
            yield
        finally:
            self.inside = False
            self.seconds[stage] += self.now() - started


def same_work(ours: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How far the first update's mean reward is apart, in units of reward, and its gradient's norm, as a
    share."""
    return {
        "reward": abs(ours["reward"][0] - other["reward"][0]),
        "grad_norm": abs(ours["grad_norm"][0] / other["grad_norm"][0] - 1),
    }
