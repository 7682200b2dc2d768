"""Fill a policy table: its prompts, the training of every row and seed, the evaluations."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel

from policy.table.evaluate import TableModel, evaluate_seed
from policy.table.rows import ROWS, TRAINED
from policy.training.prompt_data import load_data
from rlhf.config.policy import PolicyConfig
from rlhf.config.policy_table import DPO_ROWS, PolicyTableConfig, row_config
from rlhf.core.records import Prompt
from rlhf.data.evaluation.answer_files import read_prompts
from rlhf.models import bases
from rlhf.runs.after import is_finished
from rlhf.runs.files import atomic_write_text
from rlhf.runs.folder import CONFIG, check_is_run_folder, check_same_run

Train = Callable[[str, Path, Path, bool], None]
"""(command, config file, run folder, resume): trains one row."""


def fill_table(
    table: PolicyTableConfig, seeds: Sequence[int], *, train: Train, say: Callable[[str], None]
) -> None:
    """Train and evaluate every row of every seed; what is finished is kept.

    Raises:
        UserError: the config or its data cannot be used.
        RunError: a row failed.
    """
    open_folder(table)
    prompts = write_prompts(table)
    held_out, _ = read_prompts(str(prompts["evaluation"]))
    files = {(seed, row): write_row(table, row, prompts, seed) for seed in seeds for row in TRAINED}
    for number, ((seed, row), file) in enumerate(files.items(), 1):
        folder = table.output / f"seed-{seed}"
        position = f"[{number}/{len(files)}] {ROWS[row].title}, seed {seed}"
        if is_finished(folder / row):
            say(f"{position}: already finished.")
        else:
            say(f"{position}.")
            train(command_of(row), file, folder / row, (folder / row).exists())
        if row == TRAINED[-1]:
            evaluate_seed(
                lambda seed=seed: model_of(table, prompts, held_out, seed),  # type: ignore[misc]
                folder,
                TRAINED,
                table.evaluation,
                say,
            )
            gc.collect()  # the base, before the next row loads its own
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def command_of(row: str) -> str:
    """The command that trains a row."""
    return "train-dpo" if row in DPO_ROWS else "align-policy"


def open_folder(table: PolicyTableConfig) -> None:
    """Write config.yaml into the table's folder, or check that the table there has the same config.

    Raises:
        OutputError: the folder holds something else.
        ConfigError: the table there has another config.
    """
    file, dumped = table.output / CONFIG, table.model_dump(mode="json")
    check_is_run_folder(table.output, resume=True)
    if file.exists():
        check_same_run(file, table, dumped)
    atomic_write_text(file, yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True))


def write_prompts(table: PolicyTableConfig) -> dict[str, Path]:
    """The files of the prompts to train on and of those of the evaluation, written once.

    Raises:
        DataError: too few prompts.
    """
    files = {name: table.output / "prompts" / f"{name}.jsonl" for name in ("training", "evaluation")}
    if not all(file.exists() for file in files.values()):
        config = split_config(table)
        data = load_data(config, bases.load_chat(config.model))
        for line in (*data.drops.lines(), data.split_sentence()):
            print(line)
        files["training"].parent.mkdir(exist_ok=True)
        for name, prompts in (("training", data.training), ("evaluation", data.held_out)):
            atomic_write_text(files[name], "".join(_line(prompt) for prompt in prompts))
    return files


def split_config(table: PolicyTableConfig) -> PolicyConfig:
    """The config of an `align-policy` run that holds out the prompts of the evaluation."""
    config = row_config(table, "reinforce", {"training": Path("unused"), "evaluation": Path("unused")}, 0)
    assert isinstance(config, PolicyConfig)
    evaluation = config.evaluation.model_copy(update={"prompts": table.evaluation.prompts})
    data = config.data.model_copy(update={"prompts": table.prompt_sources})
    return config.model_copy(update={"evaluation": evaluation, "data": data})


def _line(prompt: Prompt) -> str:
    row = {
        "prompt": [message.as_dict() for message in prompt.messages],
        "source": prompt.source,
        **({} if prompt.check is None else {"check": prompt.check}),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_row(table: PolicyTableConfig, row: str, prompts: Mapping[str, Path], seed: int) -> Path:
    """The file with a row's config, which `train-dpo` or `align-policy` takes."""
    config: BaseModel = row_config(table, row, prompts, seed)
    file = table.output / "configs" / f"{row}-{seed}.yaml"
    file.parent.mkdir(exist_ok=True)
    atomic_write_text(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return file


def model_of(
    table: PolicyTableConfig, prompts: Mapping[str, Path], held_out: Sequence[Prompt], seed: int
) -> TableModel:
    """The model that evaluates a seed."""
    row = row_config(table, "reinforce", prompts, seed)
    dumped = row.model_dump(mode="json") | {"held_out_reward": str(table.held_out_reward)}
    config = PolicyConfig.model_validate(dumped)
    return TableModel(config, held_out, samples=table.evaluation.samples, seed=seed)


def plan_lines(table: PolicyTableConfig, seeds: Sequence[int]) -> list[str]:
    """What `--dry-run` prints: the prompts, and each row with its length."""
    config = split_config(table)
    data = load_data(config, bases.load_chat(config.model))
    lines = [*data.drops.lines(), data.split_sentence()]
    for row in TRAINED:
        if row in DPO_ROWS:
            limit = f", at most {table.dpo.max_steps} updates" if table.dpo.max_steps else ""
            updates = f"{table.dpo.epochs:g} epochs{limit}"
        else:
            updates = f"{getattr(table, row).steps} updates"
        lines.append(f"{ROWS[row].title}: {updates}, {len(seeds)} seeds")
    evaluation = table.evaluation
    return [
        *lines,
        f"each evaluated on {len(data.held_out)} prompts x {evaluation.samples} answers at 1 to "
        f"{evaluation.tries} scales, near {evaluation.kl:g} nats; best of 1 to {evaluation.best_of} of the "
        "base",
    ]
