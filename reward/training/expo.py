"""ExPO at the end of a run: choose the extrapolation factor with the highest accuracy on held-out pairs.

Source of the search: arXiv 2410.01257 (factor 1.52); its grid of 1.1 to 2.0 and then steps of 0.01 is from
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from reward.losses import bradley_terry
from reward.save import save_final
from reward.training.batches import Item, batches
from reward.training.data import RewardData
from reward.training.trainer import REWARD_INDEX
from rlhf.adapters.attached import replace_trained
from rlhf.adapters.extrapolation import Extrapolation, extrapolate
from rlhf.adapters.lowrank import rank_of
from rlhf.adapters.storage import RewardAdapter
from rlhf.config.reward import ExpoConfig, RewardConfig
from rlhf.core.errors import DataError
from rlhf.distributed.sharding import compute_device
from rlhf.kernels.inputs import packed_inputs
from rlhf.kernels.packing_check import one_per_row
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel, autocast
from rlhf.runs.after import AfterTraining
from rlhf.runs.checkpoints import best_file, load_trainable
from rlhf.runs.folder import RunFolder
from rlhf.runs.progress import Progress

STAGES = "stages"
"""The folder of a run that keeps the weak and the strong model, each as a `final/` of its own."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A factor, and the accuracy and loss of its model on the held-out pairs."""

    factor: float
    accuracy: float
    """Share of pairs whose better answer scores strictly higher."""
    loss: float
    """Mean of -log sigmoid(chosen - rejected), in nats."""


def expo_apart() -> str:
    """The commands that apply ExPO after two runs instead of in one."""
    return (
        "make two runs, recipe=regression-helpfulness and recipe=helpfulness-bt-scaled start=WEAK/final, "
        "then: rlhf extrapolate WEAK/final STRONG/final --factor X --output DIR"
    )


def held_pairs(config: RewardConfig, data: RewardData) -> list[Item]:
    """The held-out pairs the factor is chosen on; none are needed where a run has no ExPO.

    Raises:
        DataError: there is none.
    """
    if config.expo is None:
        return []
    pairs = [item for item in data.validation if item.strength]
    if not pairs:
        raise DataError(
            "expo has no held-out pairs to choose its factor on.",
            allowed="a data.validation_share that leaves at least one pair",
            fix=f"raise data.validation_share; or {expo_apart()}",
        )
    return pairs


def search(judge: Callable[[float], Trial], expo: ExpoConfig) -> list[Trial]:
    """The trials in ascending order of factor: 1 and the configured ones, and fine steps around the best."""
    coarse = sorted({1.0, *expo.factors})
    trials = [judge(factor) for factor in coarse]
    if expo.refine is not None:
        trials += [judge(factor) for factor in between_neighbours(coarse, best(trials).factor, expo.refine)]
    return sorted(trials, key=lambda trial: trial.factor)


def best(trials: Sequence[Trial]) -> Trial:
    """The most accurate; of equals the one with the lower loss; of these the smallest factor."""
    return min(trials, key=lambda trial: (-trial.accuracy, trial.loss, trial.factor))


def between_neighbours(factors: Sequence[float], middle: float, step: float) -> list[float]:
    """Multiples of `step` away from one of the rising `factors`, as far as the factors beside it."""
    place = list(factors).index(middle)
    low, high = factors[max(place - 1, 0)], factors[min(place + 1, len(factors) - 1)]
    steps = range(-round((middle - low) / step), round((high - middle) / step) + 1)
    fine = [round(middle + count * step, 10) for count in steps]
    return [factor for factor in fine if low < factor < high and factor not in factors]


@torch.no_grad()
def judge_pairs(model: PeftModel, pairs: Sequence[Item], *, budget: int, pad_id: int) -> tuple[float, float]:
    """Accuracy and Bradley-Terry loss of a reward model on pairs."""
    model.eval()
    right, loss = 0, 0.0
    alone = one_per_row(model.get_base_model())
    for batch in batches(pairs, budget, pad_id=pad_id, one_per_row=alone):
        packed = batch.packed.to(compute_device(model))
        with autocast(model.get_base_model()):
            scores_NA = model(**packed_inputs(packed), score_at=packed.last_tokens_N)
        rewards_N = scores_NA[:, REWARD_INDEX].double().cpu()
        chosen_B, rejected_B = rewards_N[batch.chosen_B], rewards_N[batch.rejected_B]
        right += int((chosen_B > rejected_B).sum())
        loss += bradley_terry(chosen_B, rejected_B, batch.strength_B.double(), "regular", len(pairs)).item()
    return right / len(pairs), loss


def extrapolate_stages(
    config: RewardConfig,
    expo: ExpoConfig,
    pairs: Sequence[Item],
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    untrained: Sequence[str] = (),
) -> dict[str, object]:
    """Choose the factor and load the extrapolated weights into the model.

    Leaves expo.json and, in `stages/`, the weak and the strong model. Returns what `final/` is made of.
    """
    weak, strong = (
        _keep_stage(name, config, model, chat, run, untrained) for name in (expo.weak, expo.strong)
    )

    def apply_factor(factor: float, rank: int | None = None) -> Extrapolation:
        made = extrapolate(weak, strong, factor, rank)
        replace_trained(model, made.update, made.head_AD)
        return made

    def judge(factor: float) -> Trial:
        apply_factor(factor)
        accuracy, loss = judge_pairs(model, pairs, budget=config.tokens_per_batch, pad_id=chat.pad_id)
        progress.update(progress.done + 1, factor=factor, accuracy=accuracy)
        return Trial(factor, accuracy, loss)

    print(f"Extrapolating from {expo.weak} to {expo.strong}, judged on {len(pairs)} held-out pairs.")
    with Progress(_most_trials(expo), "factor") as progress:
        trials = search(judge, expo)
    chosen = best(trials)
    made = apply_factor(chosen.factor, expo.rank)
    made_of: dict[str, object] = {
        "weak": f"{STAGES}/{expo.weak}",
        "strong": f"{STAGES}/{expo.strong}",
        "factor": chosen.factor,
        "rank": rank_of(made.update),
        "truncation_error": made.error,
    }
    run.write_json(
        "expo.json", {**made_of, "pairs": len(pairs), "trials": [asdict(trial) for trial in trials]}
    )
    for line in _summary_lines(trials, chosen, made, run.path / STAGES / expo.strong):
        print(line)
    return made_of


def extrapolate_or_last(
    config: RewardConfig,
    pairs: Sequence[Item],
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    steps: AfterTraining,
    untrained: Sequence[str] = (),
) -> dict[str, object] | None:
    """Extrapolate where the config has `expo`; return the record of it, or None.

    Where it fails, the model keeps the weights of the last stage.

    Args:
        untrained: attributes that no stage trains.
    """
    expo = config.expo
    if expo is None:
        return None
    record = steps.run("ExPO", lambda: extrapolate_stages(config, expo, pairs, model, chat, run, untrained))
    if record is None:
        last = best_file(run.checkpoints, config.stages[-1].name)
        steps.run("the last stage's weights", lambda: load_trainable(model, last))
    return record


def _keep_stage(
    name: str,
    config: RewardConfig,
    model: PeftModel,
    chat: Chat,
    run: RunFolder,
    untrained: Sequence[str],
) -> RewardAdapter:
    """The model as a stage left it, kept in a folder of its own."""
    load_trainable(model, best_file(run.checkpoints, name))
    names = [stage.name for stage in config.stages]
    trained = config.stages[: names.index(name) + 1] if name in names else []
    folder = run.path / STAGES / name
    save_final(config.model_copy(update={"stages": trained}), model, chat, folder, untrained)
    return RewardAdapter.read(folder)


def _most_trials(expo: ExpoConfig) -> int:
    """The largest possible number of factors."""
    coarse = sorted({1.0, *expo.factors})
    fine = (
        [] if expo.refine is None else [between_neighbours(coarse, factor, expo.refine) for factor in coarse]
    )
    return len(coarse) + max(map(len, fine), default=0)


def _summary_lines(trials: Sequence[Trial], chosen: Trial, made: Extrapolation, strong: Path) -> list[str]:
    plain = next(trial for trial in trials if trial.factor == 1.0)
    if chosen.factor == 1.0:
        lines = [
            f"No other factor does better than 1: the strong model itself is saved ({plain.accuracy:.1%} "
            "right)."
        ]
    else:
        lines = [
            f"Factor {chosen.factor:g} is the best of {len(trials)}: {chosen.accuracy:.1%} right, loss "
            f"{chosen.loss:.4f}; the strong model, factor 1: {plain.accuracy:.1%}, {plain.loss:.4f}. The "
            f"latter stays in {strong}."
        ]
    if made.error:
        lines.append(
            f"Truncated to rank {rank_of(made.update)}: relative error {made.error:.3g} of the weight "
            "updates."
        )
    return lines
