"""Time of a policy's update and of a whole step, compared with TRL's RLOOTrainer and a separate reward model.

    python benchmarks/policy_update.py
    python benchmarks/policy_update.py --quick --engine transformers

The update is scoring, log-probabilities, KL, backward pass and optimizer step. Both sides get the same
answers: prompts and texts of real data, in groups of 4 and of 8. The whole step also samples its answers:
ours with `--engine`, TRL's with transformers' `generate`, since its vLLM path does not run on vLLM's CPU
build. Sampled answers differ in length, so whole steps are compared by seconds per sampled token. Both
sides use their fastest setting: the micro-batch for TRL, `tokens_per_batch` for ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import cost
import policy_sides
from beside_plan import plan_lines
from measuring import (
    Side,
    arguments,
    fastest,
    in_turns,
    line,
    matmul_peak,
    on_gpu,
    parse,
    ratio,
    serve,
    write_file,
    write_result,
)
from samples import as_rollouts, groups

from rlhf.kernels.packing import Tree

SIZES: dict[str, Any] = {
    "answers": 16,
    "whole_answers": 32,
    "group_sizes": [4, 8],
    "longest_prompt": 128,
    "new_tokens": 128,
    "whole_new_tokens": 64,
    "rounds": 3,
    "whole_rounds": 2,
}
QUICK = {
    "answers": 8,
    "whole_answers": 8,
    "longest_prompt": 80,
    "new_tokens": 16,
    "whole_new_tokens": 8,
    "rounds": 1,
    "whole_rounds": 1,
}
MICRO = (4, 8, 16)
BUDGETS = (512, 1024, 2048)
GPU_SIZES = SIZES | {
    "answers": 64,
    "whole_answers": 64,
    "longest_prompt": 512,
    "new_tokens": 512,
    "whole_new_tokens": 256,
}
GPU_MICRO = (*MICRO, 32, 64)
GPU_BUDGETS = (4096, 8192, 16_384)
"""MICRO: answers per forward pass of TRL; BUDGETS: tokens per forward pass of ours. Each side runs with its
fastest."""
SIDES = policy_sides.SIDES


def side_options(
    options: argparse.Namespace, sizes: Mapping[str, Any], group: int, **others: Any
) -> dict[str, Any]:
    """The options of both sides: prompts, answers and sizes."""
    from rlhf.models.chat import Chat

    given = groups(
        options.data,
        Chat.load(options.base),
        prompts=sizes["answers"] // group,
        samples=group,
        longest_prompt=sizes["longest_prompt"],
        longest_answer=sizes["new_tokens"],
    )
    return {
        "base": options.base,
        "clock": options.clock,
        "dtype": options.dtype,
        "reward": str(policy_sides.reward_model(options.base, options.output)),
        "given": given,
        "samples": group,
        "longest_prompt": sizes["longest_prompt"],
        "new_tokens": sizes["new_tokens"],
        "steps": 1,
        "engine": "given",
    } | others


def compare_updates(
    options: argparse.Namespace, sizes: Mapping[str, Any], group: int, settings: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Seconds of both sides for one update on given answers, each with the fastest of its settings."""
    shared = side_options(options, sizes, group)
    with ExitStack() as stack:
        side = {
            name: stack.enter_context(Side(__file__, name, shared, options.output / "logs")) for name in SIDES
        }
        ways = {
            "ours": lambda size: side["ours"].ask(tokens_per_batch=size),
            "trl": lambda size: side["trl"].ask(micro=size),
        }
        tried = {name: fastest(ways[name], settings[name]) for name in SIDES}
        best = {name: item for name, (item, _) in tried.items()}
        same = policy_sides.same_work(*(answers[best[name]] for name, (_, answers) in tried.items()))
        figures = in_turns(
            {name: lambda name=name: float(ways[name](best[name])["seconds"]) for name in SIDES},  # type: ignore[misc]
            sizes["rounds"],
            until=options.until,
        )
    tokens = [len(ids) for item in shared["given"] for ids in item["answers"]]
    answers = {name: answers[best[name]] for name, (_, answers) in tried.items()}
    config = policy_sides.our_config({**shared, "tokens_per_batch": best["ours"]})
    return {
        "lines": work_lines(options, config, shared["given"], figures, answers),
        "seconds": figures,
        "best": best,
        "tried": {
            name: {str(item): answer["seconds"] for item, answer in answers.items()}
            for name, (_, answers) in tried.items()
        },
        "same_work": same,
        "mean_answer": statistics.mean(tokens),
    }


def work_lines(
    options: argparse.Namespace,
    config: Any,
    given: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, Sequence[float]],
    answers: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Useful tokens/s and share of the peak of both sides; on a GPU memory and the plan, too.

    Args:
        answers: of each side in its fastest setting.
    """
    from policy.update.forward import answer_tree, pack_groups
    from rlhf.models.chat import Chat

    rollouts = as_rollouts(given, Chat.load(options.base))
    flat = [rollout for group in rollouts for rollout in group]
    useful = sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in flat)
    sampled = sum(len(rollout.completion_ids) for rollout in flat)
    shape, peak = cost.Shape(**answers["ours"]["shape"]), matmul_peak(options.clock, options.dtype)
    trees = {
        "ours": [answer_tree(group) for group in rollouts],
        "trl": [Tree((), ((*rollout.prompt_ids, *rollout.completion_ids),)) for rollout in flat],
    }
    median = {name: statistics.median(seconds[name]) for name in SIDES}
    lines = [line(f"Matrix products of this machine, {options.dtype}", peak, "GFLOP/s")]
    for name, title in (("ours", "Ours"), ("trl", "TRL")):
        share = cost.policy_update(shape, trees[name], sampled) / median[name] / 1e9 / peak
        lines.append(line(title, useful / median[name], "useful tokens/s"))
        lines.append(line(f"{title}: share of that peak, padding not counted", 100 * share, "%"))
    if on_gpu():
        rows = pack_groups(rollouts, config.tokens_per_batch, 0)
        lines += plan_lines(
            config,
            computed=sum(row.packed.computed_tokens for row in rows),
            gflops=peak,
            seconds=median["ours"],
            peaks={name: answers[name]["peak"] for name in SIDES},
        )
    return lines


def compare_steps(
    options: argparse.Namespace, sizes: Mapping[str, Any], best: Mapping[str, int]
) -> dict[str, Any]:
    """Whole steps of both sides: milliseconds per sampled token, and our overhead besides computing."""
    sizes = {**sizes, "answers": sizes["whole_answers"]}
    shared = side_options(
        options,
        sizes,
        4,
        new_tokens=sizes["whole_new_tokens"],
        micro=best["trl"],
        tokens_per_batch=best["ours"],
    )
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    engines = {"ours": options.engine, "trl": "transformers"}
    with ExitStack() as stack:
        side = {
            name: stack.enter_context(
                Side(__file__, name, {**shared, "engine": engines[name]}, options.output / "logs" / "step")
            )
            for name in SIDES
        }

        def one_step(name: str) -> float:
            answer = side[name].ask()
            answers[name].append(answer)
            return float(1000 * answer["seconds"] / (sum(answer["length"]) * sizes["answers"]))

        for name in SIDES:  # warms up: an engine compiles
            one_step(name)
            answers[name].clear()
        figures = in_turns(
            {name: lambda name=name: one_step(name) for name in SIDES},  # type: ignore[misc]
            sizes["whole_rounds"],
            until=options.until,
        )
    parts: dict[str, float] = {}
    for answer in answers["ours"]:
        for stage, seconds in answer["stages"].items():
            parts[stage] = parts.get(stage, 0.0) + seconds
    total = sum(answer["seconds"] for answer in answers["ours"])
    computed = sum(parts.get(stage, 0.0) for stage in ("generate", "forward", "backward"))
    return {
        "milliseconds_a_token": figures,
        "seconds": {name: [answer["seconds"] for answer in answers[name]] for name in SIDES},
        "stages": parts | {"other": total - computed - parts.get("sync", 0.0)},
        "sync_share": parts.get("sync", 0.0) / total,
        "overhead_share": (total - computed) / total,
    }


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--engine", choices=["vllm", "transformers"], default="vllm", help="of our whole step"
    )
    options = parse(parser)
    if options.side:
        serve(SIDES[options.side])
        return
    sizes = (GPU_SIZES if on_gpu() else SIZES) | (QUICK if options.quick else {})
    lines, details = [], {"sizes": sizes}
    settings: Mapping[str, Sequence[int]] = {
        "ours": GPU_BUDGETS if on_gpu() else BUDGETS,
        "trl": [size for size in (GPU_MICRO if on_gpu() else MICRO) if size <= sizes["answers"]],
    }
    for place, group in enumerate(sizes["group_sizes"]):
        if place and time.monotonic() > options.until:
            lines.append(line(f"Policy update, G = {group}: speed beside TRL", None, note="no time was left"))
            continue
        figures = compare_updates(options, sizes, group, settings)
        settings = {name: [item] for name, item in figures["best"].items()}
        details[f"update, G = {group}"] = figures
        lines += update_lines(figures, group, sizes["answers"])
        write_file(options, "policy_update", lines, details)
    what = "Whole step with rollouts: speed beside TRL"
    if time.monotonic() > options.until:
        lines.append(line(what, None, note="no time was left"))
    else:
        details["step"] = compare_steps(options, sizes, figures["best"])
        lines += step_lines(what, details["step"], options.engine)
    write_result(options, "policy_update", lines, details)


def update_lines(figures: Mapping[str, Any], group: int, answers: int) -> list[dict[str, Any]]:
    """The lines of `compare_updates`."""
    best, seconds, same = figures["best"], figures["seconds"], figures["same_work"]
    return [
        line(
            f"Policy update, G = {group}: speed beside TRL",
            ratio(seconds["trl"], seconds["ours"]),
            "x",
            least=2.0,
        ),
        line(
            "Ours",
            statistics.median(seconds["ours"]),
            "s",
            note=f"{answers} answers, {best['ours']} tokens a batch",
        ),
        line("TRL", statistics.median(seconds["trl"]), "s", note=f"{best['trl']} answers a micro-batch"),
        line("Same work: mean reward apart", same["reward"], most=0.1),
        line("Same work: gradient norm apart", 100 * same["grad_norm"], "%", most=10),
        *figures["lines"],
    ]


def step_lines(what: str, steps: Mapping[str, Any], engine: str) -> list[dict[str, Any]]:
    """The lines of `compare_steps`."""
    rates = steps["milliseconds_a_token"]
    return [
        line(what, ratio(rates["trl"], rates["ours"]), "x", least=1.5),
        line("Ours", statistics.median(rates["ours"]), "ms a sampled token", note=engine),
        line("TRL", statistics.median(rates["trl"]), "ms a sampled token", note="transformers"),
        line("Adapter to the engine, share of a step", 100 * steps["sync_share"], "%", most=1),
        line(
            "All but generate, forward and backward, share of a step",
            100 * steps["overhead_share"],
            "%",
            most=5,
        ),
    ]


if __name__ == "__main__":
    main()
