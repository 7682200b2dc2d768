"""Evaluate the base and every policy of one seed on the prompts of the table; one file each.

The figures of a policy are per prompt: `win` (against the base's answers, by the held-out reward),
`held_out`, `reward`, `gold` (where code checks the answer), `length` in tokens and `kl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.evaluation.held_out import Answer, answer_prompts
from policy.rewards.build import RewardBuilder
from policy.rollouts.build import build_engine
from policy.rollouts.protocol import seed_of
from policy.table.equal_kl import next_scale
from policy.table.rows import BASE
from reward.evaluation.best_of_n import expected_pick, sizes_to
from reward.evaluation.winrate import kl_bound, win_share
from rlhf.adapters.attached import replace_trained
from rlhf.adapters.lowrank import Factors
from rlhf.adapters.storage import read_policy
from rlhf.config.policy import PolicyConfig
from rlhf.config.policy_table import TableEvaluation
from rlhf.core.errors import DataError
from rlhf.core.records import Prompt
from rlhf.kernels.packing_check import decide_packing
from rlhf.models import bases
from rlhf.models.forwards import enable_packed_logprobs
from rlhf.models.loading import lora_config, with_adapter
from rlhf.models.trunk import load_trunk
from rlhf.runs.files import atomic_write_text

BATCH = 64
"""Answers that are sampled at once."""
OPPONENTS, ANSWERS = 0, 1
"""The draws of a seed: the base's answers that others are compared with, and all others."""
Answers = list[list[Answer]]


class TableModel:
    """The base with an adapter whose weights and scale can be set, and the two rewards on it.

    Args:
        config: of the REINFORCE row, with the held-out reward.
        prompts: of the evaluation.
        samples: answers per prompt.
        seed: of the table.
    """

    def __init__(self, config: PolicyConfig, prompts: Sequence[Prompt], *, samples: int, seed: int) -> None:
        assert config.adapter is not None  # the table trains adapters only
        self.config, self.prompts, self.samples, self.seed = config, prompts, samples, seed
        self.chat = bases.load_chat(config.model)
        trunk = load_trunk(config.model)
        decide_packing(trunk, wanted=config.model.packing, logits=True)
        self.model = with_adapter(trunk, lora_config(**config.adapter.model_dump()))
        enable_packed_logprobs(trunk, config.rollouts.temperature)
        builder = RewardBuilder(config, self.model, self.chat)
        self.rewards, self.held_out = builder.rewards(), builder.held_out()
        self.engine = build_engine(config, self.chat)
        self.model.eval()

    def set_policy(self, folder: Path, scale: float) -> None:
        """Give the adapter the update of a policy, times `scale`.

        Raises:
            ModelError: no policy there, or it is not a plain LoRA.
        """
        adapter = read_policy(folder)
        adapter.check_template(self.chat)
        update = {layer: Factors(B_OR, scale * A_RI) for layer, (B_OR, A_RI) in adapter.update().items()}
        replace_trained(self.model, update, None)

    def answers(self, draw: int, samples: int | None = None) -> Answers:
        """Answers of the current policy to all prompts, scored, with their KL to the base.

        Raises:
            DataError: an answer has no reward.
        """
        count = samples or self.samples
        answers: Answers = []
        for number, prompts in enumerate(_chunks(self.prompts, max(1, BATCH // count))):
            answers += answer_prompts(
                self.model,
                self.model,
                self.engine,
                self.rewards,
                self.chat,
                prompts,
                samples=count,
                seed=seed_of(self.seed, draw, number),
                tokens_per_batch=self.config.tokens_per_batch,
                held_out=self.held_out,
            )
        if any(answer.reward is None or answer.held_out is None for group in answers for answer in group):
            raise DataError(
                "An answer has no reward: it is longer than a reward model's context.",
                fix="lower rollouts.max_new_tokens or data.max_prompt_tokens",
            )
        return answers


def _chunks(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def evaluate_base(model: TableModel, file: Path, settings: TableEvaluation) -> None:
    """Sample the base twice, the opponents and the candidates of best of n, and write the file.

    The model's adapter must be fresh: it changes nothing.
    """
    opponents = model.answers(OPPONENTS)
    candidates = model.answers(ANSWERS, settings.best_of)
    points = [
        {"scale": n, "kl": kl_bound(n), "figures": best_of_figures(candidates, opponents, n)}
        for n in sizes_to(settings.best_of)
    ]
    _write(file, {"points": points, "opponents": _texts(opponents), "answers": _texts(candidates)})


def evaluate_policy(
    model: TableModel,
    folder: Path,
    file: Path,
    settings: TableEvaluation,
    opponents: Sequence[Sequence[float]],
    say: Callable[[str], None],
) -> None:
    """Evaluate a policy as it was trained, then at scales towards `settings.kl`, and write the file.

    Args:
        folder: its `final/`.
        opponents: held-out rewards of the base's answers to each prompt.
    """
    points: list[dict[str, Any]] = []
    scale: float | None = 1.0
    while scale is not None and len(points) < settings.tries:
        model.set_policy(folder, scale)
        answers = model.answers(ANSWERS)
        figures = policy_figures(answers, opponents)
        kl = float(np.mean(figures["kl"]))
        say(f"  scale {scale:.3g}: KL {kl:.3g}, win rate {100 * float(np.mean(figures['win'])):.1f} %")
        points.append({"scale": scale, "kl": kl, "figures": figures, "answers": _texts(answers)})
        tried = [(point["scale"], point["kl"]) for point in points]
        scale = next_scale(tried, settings.kl, tolerance=settings.tolerance, max_scale=settings.max_scale)
    _write(file, {"points": points})


def policy_figures(answers: Answers, opponents: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Each figure's mean over the answers to each prompt; `gold` only where every prompt has a check."""
    means = {
        name: [_mean([getattr(answer, name) for answer in group]) for group in answers]
        for name in names_of(answers)
    }
    win = [
        win_share([answer.held_out for answer in group if answer.held_out is not None], others)
        for group, others in zip(answers, opponents, strict=True)
    ]
    return {"win": win, **means, "kl": [_mean([answer.kl for answer in group]) for group in answers]}


def best_of_figures(candidates: Answers, opponents: Answers, n: int) -> dict[str, list[float]]:
    """The expected figures of the answer of highest reward among n of the base, for each prompt."""
    figures: dict[str, list[float]] = {"win": [], **{name: [] for name in names_of(candidates)}}
    for group, others in zip(candidates, opponents, strict=True):
        rewards = [float(answer.reward or 0.0) for answer in group]
        against = [answer.held_out for answer in others if answer.held_out is not None]
        wins = [win_share([float(answer.held_out or 0.0)], against) for answer in group]
        figures["win"].append(expected_pick(rewards, wins, n))
        for name in names_of(candidates):
            scores = [float(getattr(answer, name)) for answer in group]
            figures[name].append(expected_pick(rewards, scores, n))
    return {**figures, "kl": [kl_bound(n)] * len(candidates)}


def names_of(answers: Answers) -> tuple[str, ...]:
    """The figures of answers themselves; gold where every answer has one."""
    has_gold = all(answer.gold is not None for group in answers for answer in group)
    return ("held_out", "reward", *(("gold",) if has_gold else ()), "length")


def opponents_of(file: Path) -> list[list[float]]:
    """The held-out rewards of the base's answers to each prompt, from its file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return [[answer["held_out"] for answer in group] for group in content["opponents"]]


def evaluation_file(folder: Path, row: str) -> Path:
    """The file of a row's evaluation in the folder of a seed; best of n is in that of the base."""
    return folder / "evaluation" / f"{row}.json"


def evaluate_seed(
    build: Callable[[], TableModel],
    folder: Path,
    rows: Sequence[str],
    settings: TableEvaluation,
    say: Callable[[str], None],
) -> None:
    """Evaluate the base and the rows of a seed that have no file yet.

    Args:
        build: loads the model; called only where something is left to do.
        folder: of the seed, with a run folder for each row.
    """
    base = evaluation_file(folder, BASE)
    todo = [row for row in rows if not evaluation_file(folder, row).exists()]
    if base.exists() and not todo:
        return
    model = build()
    base.parent.mkdir(exist_ok=True)
    if not base.exists():
        say("Evaluating the base.")
        evaluate_base(model, base, settings)
    opponents = opponents_of(base)
    for row in todo:
        say(f"Evaluating {row}.")
        evaluate_policy(model, folder / row / "final", evaluation_file(folder, row), settings, opponents, say)


def _texts(answers: Answers) -> list[list[Mapping[str, Any]]]:
    return [
        [
            {
                "answer": answer.answer,
                "held_out": answer.held_out,
                "reward": answer.reward,
                "gold": answer.gold,
                "length": answer.length,
            }
            for answer in group
        ]
        for group in answers
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _write(file: Path, content: Mapping[str, Any]) -> None:
    atomic_write_text(file, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
