"""Compare a finished reward run with TRL's stock RewardTrainer on the pairs of the same config.

    python benchmarks/reward_vs_trl.py configs/reward/local-pairs.yaml runs/local-pairs

Both have the same base, token ids, adapter rank and targets, one epoch, and the config's number format. TRL
uses its length-grouped sampler, batches of 8 pairs and a constant learning rate of 2e-4; options change the
last two. Our run follows its config, ratings included. The same function scores both on the same held-out
pairs and benchmark file. The runs do not happen at the same time, so their speeds are not compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.scorer import Score
from reward.training.data import load_chat, load_data
from rlhf.config.load import load_config
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import DataError
from rlhf.core.formats import effective_dtype
from rlhf.core.records import Conversation
from rlhf.data.comparisons import load_comparisons
from rlhf.models.chat import Chat
from rlhf.models.embedded import resolve_base


@dataclass
class PlainScorer:
    """A sequence classifier of transformers, one conversation at a time."""

    model: Any
    chat: Chat

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """logits[:, 0] at the last token."""
        scores = []
        for conversation in conversations:
            ids = self.chat.conversation_ids(conversation)
            if len(ids) > self.model.config.max_position_embeddings:
                raise DataError("longer than the base's context")
            half = self.model.dtype == torch.bfloat16
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                reward = float(self.model(input_ids=torch.tensor([ids])).logits[0, 0])
            scores.append(Score(reward, {}))
        return scores


def train_with_trl(
    config: RewardConfig, chat: Chat, folder: Path, *, batch: int, learning_rate: float, seed: int
) -> Any:
    """Train TRL's RewardTrainer on the config's pairs, and return its model.

    A call with the folder of an interrupted one resumes from its last checkpoint.
    """
    data = load_data(config, chat)
    pairs = [item for item in data.training if item.strength]
    # The token ids of our run: TRL accepts tokenised pairs.
    rows = []
    for item in pairs:
        first, second = [[*item.tree.trunk, *branch] for branch in item.tree.branches]
        chosen, rejected = (second, first) if item.strength > 0 else (first, second)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected})
    dtype = effective_dtype(config.model.dtype)
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_base(config.model.base), num_labels=1, dtype=getattr(torch, dtype)
    )
    arguments = TRLRewardConfig(
        str(folder),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_length=config.model.max_length,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        bf16=dtype == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=10,
        report_to="none",
        save_strategy="steps",
        save_steps=25,
        save_total_limit=1,
        seed=seed,
    )
    for row in rows:
        row["length"] = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    trainer = RewardTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=config.adapter.rank,
            lora_alpha=config.adapter.alpha,
            target_modules=config.adapter.targets,
            modules_to_save=["score"],
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    return trainer.model.eval()


def main() -> None:
    """Train, score, print the table, and write it as JSON beside our run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path, help="a finished `rlhf train-reward` run of the same config")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = load_config(arguments.config, RewardConfig)
    chat = load_chat(config)
    with tempfile.TemporaryDirectory() as folder:
        model = train_with_trl(
            config,
            chat,
            Path(folder),
            batch=arguments.batch,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
        )
    scorer = PlainScorer(model, chat)
    comparisons, drops = load_comparisons(str(config.benchmark))
    theirs = {**evaluate(comparisons, scorer, drops=drops)[0]}
    theirs["held_out"] = evaluate(load_data(config, chat).held_out, scorer)[0]
    ours = json.loads((arguments.run / "eval.json").read_text())
    show(ours, theirs)
    (arguments.run / "trl.json").write_text(json.dumps(theirs, indent=1))


def show(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Print accuracy by subset: ours, TRL's, and that of the rule that the longer answer is better."""
    table = Table(title="Accuracy in %")
    for column in ("subset", "pairs", "ours", "TRL", "longer answer"):
        table.add_column(column, justify="left" if column == "subset" else "right")
    for title, first, second in (
        ("held out", ours["held_out"], theirs["held_out"]),
        ("benchmark", ours, theirs),
    ):
        for name, row in first["subsets"].items():
            figures = (row["accuracy"], second["subsets"][name]["accuracy"], row["length_baseline"])
            table.add_row(f"{title}: {name}", str(row["count"]), *(f"{100 * value:.1f}" for value in figures))
        figures = (first["overall"], second["overall"], first["length_baseline"])
        table.add_row(f"{title}: overall", str(first["count"]), *(f"{100 * value:.1f}" for value in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
