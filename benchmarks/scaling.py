"""Time and memory of our two steps against their sizes, with the exponent at the upper end, drawn beside
the model's own cost.

    python benchmarks/scaling.py

Reward step: forward and backward of the packed pairs. Policy step: scoring, the reference's pass, and the
policy's with its gradient, on given answers. One size grows at a time: the sequence, the share of it that
is prompt, the answers of a group, the prompts of a batch, the adapter's rank. The exponent is the slope of
the logarithms between the two largest sizes, the median over the rounds of the slope within a round; the
model's own cost is that of `benchmarks/cost.py`. A step that grows faster than it wastes something; the
difference may be 0.15, which is what timing leaves open. The larger the share that is prompt, the less
there is to compute, so that curve is read from its right to its left. What is timed is the second of two
steps of a size, as a run has one: the first one after smaller ones also takes from the system the memory
that was given back to it, a tenth of the longest policy step.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cost
import policy_sides
from measuring import CLOCKS, Handler, Side, arguments, in_turns, line, parse, serve, write_result

from rlhf.kernels.packing import Tree

BASE_POINT = {"length": 256, "share": 0.25, "group": 4, "batch": 1, "rank": 8}
"""Tokens of a sequence, share of it that is prompt, answers of a prompt, prompts, rank."""
SIZES: dict[str, Any] = {
    "length": [128, 256, 512, 1024],
    "share": [0.125, 0.25, 0.5, 0.75],
    "group": [2, 4, 8],
    "batch": [1, 2, 4],
    "rank": [8, 32, 128],
    "rounds": 5,
}
QUICK = {
    "length": [64, 128],
    "share": [0.25, 0.5],
    "group": [2, 4],
    "batch": [1, 2],
    "rank": [8, 16],
    "rounds": 1,
}
TITLES = {
    "length": "tokens of a sequence",
    "share": "share that is prompt",
    "group": "answers of a prompt",
    "batch": "prompts of an update",
    "rank": "rank of the adapter",
}
TOLERANCE = 0.15


def trees_of(point: Mapping[str, float], branches: int) -> list[Tree]:
    """Trees of random ids: what they are does not matter."""
    draw = random.Random(0)
    trunk = max(1, round(point["length"] * point["share"]))
    branch = max(2, int(point["length"]) - trunk)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(10, 1000) for _ in range(count))

    return [Tree(ids(trunk), tuple(ids(branch) for _ in range(branches))) for _ in range(int(point["batch"]))]


def reward_step(options: Mapping[str, Any]) -> Handler:
    """Our reward trainer's step on pairs; the size of a group does not matter to it."""
    from reward.training.batches import Item

    @functools.cache
    def trainer_of(rank: int) -> tuple[Any, cost.Shape]:
        trainer = idle_reward_trainer(options["base"], options["dtype"], rank)
        return trainer, cost.Shape.of(trainer.model)

    def step(point: Mapping[str, Any]) -> Mapping[str, Any]:
        (trainer, shape), trees = trainer_of(point["rank"]), trees_of(point, 2)
        items = [Item(tree, ((None,), (None,)), 1) for tree in trees]
        return measured(trainer, {"items": items}, options["clock"], memory=point["memory"]) | {
            "cost": cost.training(shape, trees, read=2 * len(trees))
        }

    return step


def idle_reward_trainer(base: str, dtype: str, rank: int) -> Any:
    """Our reward trainer, without data."""
    from reward_trainer import reward_trainer

    from reward.training.build import build_model
    from rlhf.config.reward import RewardConfig
    from rlhf.models.chat import Chat

    config = RewardConfig.model_validate(
        {
            "output": "unused",
            "model": {"base": base, "dtype": dtype, "max_length": 64},
            "adapter": {"rank": rank, "alpha": 2.0 * rank},
            "attributes": ["reward"],
            "data": {"preferences": [{"path": "demo", "format": "helpsteer2-preference"}]},
            "stages": [{"name": "pairs", "preference_weight": 1}],
        }
    )
    chat = Chat.load(base)
    return prepared(reward_trainer(config, build_model(config, chat), chat, order=[0]))


def prepared(trainer: Any) -> Any:
    """The trainer with accelerate's autocast around its model, as `train()` puts it there: adapters are
    float32, products are not."""
    trainer.accelerator.prepare_model(trainer.model)
    return trainer


def policy_step(options: Mapping[str, Any]) -> Handler:
    """Our policy trainer's step on given answers."""
    from policy.update.forward import answer_tree
    from rlhf.core.records import Rollout
    from rlhf.models.chat import Chat

    chat = Chat.load(options["base"])
    given = [{"messages": [{"role": "user", "content": "Hi."}], "answers": [[11, 12]] * 2}]
    small = {
        **options,
        "given": given,
        "samples": 2,
        "longest_prompt": 64,
        "new_tokens": 64,
        "steps": 1,
        "engine": "given",
    }

    @functools.cache
    def trainer_of(rank: int) -> tuple[Any, Any, cost.Shape]:
        trainer = prepared(policy_sides.our_trainer({**small, "rank": rank}, chat))
        return trainer, trainer.rewards.terms[0].term.scorer, cost.Shape.of(trainer.model)

    def step(point: Mapping[str, Any]) -> Mapping[str, Any]:
        trainer, scorer, shape = trainer_of(point["rank"])
        groups = []
        for tree in trees_of(point, int(point["group"])):
            text = chat.decode(tree.branches[0])
            groups.append([Rollout(tree.trunk, branch, (), True, text) for branch in tree.branches])
        trees = [answer_tree(group) for group in groups]
        trainer.engine = SimpleNamespace(sync=lambda _: None, generate=lambda *_, **__: groups, figures=dict)
        trainer.rewards = TreeRewards(scorer, trees, int(point["group"]))
        trainer.num_generations = int(point["group"])
        rows = [{"prompt": "0"}] * (len(groups) * int(point["group"]))
        answer_tokens = sum(len(answer.completion_ids) for group in groups for answer in group)
        return measured(trainer, rows, options["clock"], memory=point["memory"]) | {
            "cost": cost.policy_update(shape, trees, answer_tokens)
        }

    return step


class TreeRewards:
    """Scores given token ids as the scorer would their texts, whose tokens might be others."""

    def __init__(self, scorer: Any, trees: Sequence[Tree], group: int) -> None:
        self.scorer, self.trees, self.group = scorer, trees, group

    def of(self, *_: object) -> Any:
        """A made-up reward for each answer, after the work of scoring it."""
        from plan_vs_measured import score_trees

        from policy.rewards.protocol import RewardResult

        score_trees(self.scorer, self.trees, self.scorer.tokens_per_batch)
        return RewardResult([float(place % 3) for place in range(len(self.trees) * self.group)])


def measured(trainer: Any, inputs: Any, clock: str, *, memory: bool) -> dict[str, Any]:
    """Seconds of a step, after one of the same size; or the most bytes torch hands out at once in one."""
    from plan_vs_measured import allocator_peak

    now = CLOCKS[clock]
    trainer.state.global_step = 1  # at the first step the policy must be the reference

    def step() -> None:
        trainer.training_step(trainer.model, inputs)
        trainer.model.zero_grad()

    if memory:
        return {"bytes": allocator_peak(step)}
    step()
    started = now()
    step()
    return {"seconds": now() - started}


SIDES: Mapping[str, Callable[[Mapping[str, Any]], Handler]] = {"reward": reward_step, "policy": policy_step}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent between the last two points: d log y / d log x."""
    (x1, y1), (x2, y2) = points[-2:]
    return math.log(y2 / y1) / math.log(x2 / x1)


def in_rounds(point: Mapping[str, Any], what: str) -> list[float]:
    """A figure of a point in each round: seconds; bytes and cost are the same in all of them, and stand
    once."""
    return point[what] if what == "seconds" else [point[what]]


def growth(points: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    """The exponent of `what` in each round, or the one there is."""
    rounds = zip(*(in_rounds(point, what) for point in points), strict=True)
    return [
        slope([(point["x"], value) for point, value in zip(points, values, strict=True)]) for values in rounds
    ]


def sweep(
    options: argparse.Namespace, sizes: Mapping[str, Any], kind: str
) -> dict[str, list[dict[str, Any]]]:
    """For each size the points measured: x, seconds of every round, bytes, cost. A point on several curves
    is measured once."""
    base = BASE_POINT | ({"length": 64} if options.quick else {})
    curves = {
        name: [{**base, name: value} for value in sizes[name]]
        for name in TITLES
        if not (kind == "reward" and name == "group")
    }
    points = {_named(point): point for curve in curves.values() for point in curve}
    reward = policy_sides.reward_model(options.base, options.output)
    shared = {"base": options.base, "clock": options.clock, "dtype": options.dtype, "reward": str(reward)}
    with Side(__file__, kind, shared, options.output / "logs") as side:
        first = {name: side.ask(**point, memory=True) for name, point in points.items()}
        seconds = in_turns(
            {
                name: lambda point=point: float(side.ask(**point, memory=False)["seconds"])  # type: ignore[misc]
                for name, point in points.items()
            },
            sizes["rounds"],
        )
    return {
        name: [
            {
                "x": point[name],
                "seconds": seconds[_named(point)],
                "bytes": first[_named(point)]["bytes"],
                "cost": first[_named(point)]["cost"],
            }
            for point in curve
        ]
        for name, curve in curves.items()
    }


def _named(point: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def lines_of(kind: str, figures: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """For each size: how much faster time and memory grow than the model's own cost."""
    lines = []
    for name, points in figures.items():
        (model,) = growth(points, "cost")
        # Towards more to compute, wherever on the axis that is.
        way, title = (-1, f"{TITLES[name]}, falling") if model < 0 else (1, TITLES[name])
        rounds, (memory,) = ([way * item for item in growth(points, what)] for what in ("seconds", "bytes"))
        time, model = statistics.median(rounds), way * model
        lines.append(
            line(
                f"{kind} step against {title}: exponent of time less the model's own",
                time - model,
                most=TOLERANCE,
                note=f"time {time:.2f}, by rounds {min(rounds):.2f} to {max(rounds):.2f}; memory "
                f"{memory:.2f}, model's operations {model:.2f}",
            )
        )
    return lines


def draw(figures: Mapping[str, Mapping[str, list[dict[str, Any]]]], file: Path) -> None:
    """Time, memory and the model's operations, each as a multiple of its first point, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(figures),
        len(TITLES),
        figsize=(2.6 * len(TITLES), 2.5 * len(figures)),
        layout="constrained",
        squeeze=False,
    )
    looks = {
        "seconds": ("time", "#1f4e96", "o-"),
        "bytes": ("memory", "#b5651d", "s-"),
        "cost": ("model's operations", "#888888", "--"),
    }
    for row, (kind, curves) in zip(panels, figures.items(), strict=True):
        for axes, (name, title) in zip(row, TITLES.items(), strict=True):
            if name not in curves:
                axes.set_axis_off()
                continue
            for what, (label, colour, style) in looks.items():
                heights = [statistics.median(in_rounds(curve, what)) for curve in curves[name]]
                values = [height / heights[0] for height in heights]
                exponent = statistics.median(growth(curves[name], what))
                axes.plot(
                    [curve["x"] for curve in curves[name]],
                    values,
                    style,
                    color=colour,
                    markersize=3.5,
                    linewidth=1.2,
                    label=f"{label}, {exponent:.2f}",
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(
                [curve["x"] for curve in curves[name]], [f"{curve['x']:g}" for curve in curves[name]]
            )
            axes.minorticks_off()
            axes.set_title(f"{kind}: {title}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.legend(fontsize=6, frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, draw, print, write."""
    options = parse(arguments(__doc__))
    if options.side:
        serve(SIDES[options.side])
        return
    sizes = SIZES | (QUICK if options.quick else {})
    figures = {kind: sweep(options, sizes, kind) for kind in SIDES}
    draw(figures, options.output / "scaling.svg")
    lines = [item for kind, curves in figures.items() for item in lines_of(kind.capitalize(), curves)]
    write_result(options, "scaling", lines, {"base_point": BASE_POINT, "points": figures})


if __name__ == "__main__":
    main()
