"""Whether one GPU computes what a CPU does: numbers beside their bounds, in one JSON file.

    python benchmarks/gpu_check.py                    # SmolLM2's shape in bfloat16, NF4 and float32
    python benchmarks/gpu_check.py --kind 8b          # Llama-3.1-8B's shape in bfloat16 and NF4
    python benchmarks/gpu_check.py --kind tiny        # tries the program itself, on a CPU

Weights are random, made here. It needs torch, transformers, peft and this project on PYTHONPATH, and no
pytest. The file is written after every part; a part that fails is named in it, and the others run.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_models import SHAPES, make_base
from measuring import forget_peak, line, memory, wall_clock, write_file
from tables import show

from rlhf.startup import ALLOCATOR

LONG = {"prompt": (200, 600), "answers": 4, "answer": (100, 900), "groups": 2}
SHORT = {"prompt": (8, 20), "answers": 3, "answer": (4, 12), "groups": 2}
PACKED_APART = {"float32": 1e-4, "bfloat16": 0.02}
"""Mean difference of a token's log-probability, in a packed row and alone."""
GRADIENT_APART = {"float32": 1e-3, "bfloat16": 0.02}
"""Norm of the difference of the adapter's gradients, as a share."""
BUDGET = 8192
FORMATS = (("bfloat16", "none"), ("bfloat16", "nf4"), ("float32", "none"))


def groups(kind: str) -> list[list[Any]]:
    """Groups of answers to prompts, of random tokens and the lengths of real ones."""
    from rlhf.core.records import Rollout

    draw = random.Random(1)
    sizes: dict[str, Any] = SHORT if kind == "tiny" else LONG

    def ids(between: Sequence[int]) -> tuple[int, ...]:
        return tuple(draw.randrange(10, 40_000) for _ in range(draw.randint(*between)))

    made = []
    for _ in range(sizes["groups"]):
        prompt = ids(sizes["prompt"])
        made.append([Rollout(prompt, ids(sizes["answer"]), (), True, "") for _ in range(sizes["answers"])])
    return made


def policy(base: Path, dtype: str, quantization: str) -> Any:
    """A base with an adapter that changes nothing yet, on the GPU where there is one."""
    import torch

    from rlhf.kernels.fused import choose_layers
    from rlhf.models.forwards import enable_packed_logprobs
    from rlhf.models.loading import load_causal, lora_config, with_adapter

    model = load_causal(str(base), revision=None, dtype=dtype, quantization=quantization)
    if torch.cuda.is_available() and quantization == "none":
        model = model.to("cuda")
    choose_layers(model, "auto")
    enable_packed_logprobs(model, 1.0)
    return with_adapter(model, lora_config(rank=32, alpha=64, dropout=0.0, targets="all-linear")).train()


def parity(base: Path, kind: str, dtype: str, quantization: str) -> Iterator[dict[str, Any]]:
    """Policy against reference before an update; a packed row against its answers alone, with gradients; a
    pass against itself."""
    import torch

    from policy.update.forward import pack_groups, reference_logps, token_logps
    from policy.update.step import start_bound
    from rlhf.core.formats import compute_dtype
    from rlhf.models.loading import autocast, base_of

    model, answers = policy(base, dtype, quantization), groups(kind)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"{dtype}, {quantization}"

    def logps(of: Sequence[Sequence[Any]]) -> list[Any]:
        by_answer = {}
        for row in pack_groups(of, BUDGET, 0, device):
            with autocast(base_of(model)):
                values_M, _, answer_M = token_logps(model, row.packed)
            by_answer |= {answer: values_M[answer_M == place] for place, answer in enumerate(row.answers)}
        return [by_answer[item] for item in sorted(by_answer)]

    def gradients(of: Sequence[Sequence[Any]]) -> tuple[Any, Any]:
        model.zero_grad()
        values = logps(of)
        torch.stack([value.sum() for value in values]).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat([value.detach() for value in values]), torch.cat(grads)

    apart = [
        float((token_logps_of(model, row) - reference_logps(model, model, row)).abs().mean())
        for row in pack_groups(answers, BUDGET, 0, device)
    ]
    bound = start_bound(compute_dtype(base_of(model)), on_gpu=device == "cuda")
    yield line(f"Policy is reference before an update ({name})", max(apart), most=bound)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    packed, grads = gradients(answers)
    again, grads_again = gradients(answers)
    alone, grads_alone = gradients([[answer] for group in answers for answer in group])
    difference = (packed - alone).abs()
    yield line(f"Packed against alone, mean ({name})", float(difference.mean()), most=PACKED_APART[dtype])
    yield line(f"Packed against alone, largest ({name})", float(difference.max()))
    share = float((grads - grads_alone).norm() / grads_alone.norm())
    yield line(f"Gradient packed against alone ({name})", share, most=GRADIENT_APART[dtype])
    yield line(f"The same pass twice, largest ({name})", float((packed - again).abs().max()))
    yield line(
        f"The same gradient twice ({name})", float((grads - grads_again).norm() / grads.norm()), most=1e-3
    )


def token_logps_of(model: Any, row: Any) -> Any:
    """Log-probabilities of a row, as an update computes them."""
    from policy.update.forward import token_logps
    from rlhf.models.loading import autocast, base_of

    with autocast(base_of(model)):
        return token_logps(model, row.packed)[0].detach()


def update(base: Path, kind: str, dtype: str, quantization: str) -> Iterator[dict[str, Any]]:
    """An update of one row: time, tokens a second, the GPU's peak beside the plan's; and what a row of a new
    length costs."""
    import torch
    from transformers import AutoConfig

    from policy.update.forward import pack_groups, token_logps
    from rlhf.models.loading import autocast, base_of
    from rlhf.plan.memory.passes import UpdateRow
    from rlhf.plan.memory.trace import trace

    model, every = policy(base, dtype, quantization), groups(kind)
    answers = every[:1]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    (row,) = pack_groups(answers, BUDGET, 0, device)

    def step(of: Any) -> float:
        """Seconds of an update."""
        started = wall_clock()
        with autocast(base_of(model)):
            values_M, _, _ = token_logps(model, of.packed)
        values_M.sum().backward()
        optimizer.step()
        return wall_clock() - started

    step(row)
    step(row)  # moments and gradients are there: the peak of any update but a run's first
    forget_peak()
    seconds = step(row)
    rows, tokens = row.packed.ids_RT.shape
    yield line(f"Update ({dtype}, {quantization})", rows * tokens / seconds, "tokens/s")
    planned = trace(
        AutoConfig.from_pretrained(base),
        UpdateRow(
            command="align-policy",
            tokens=tokens,
            sequences=len(answers[0]),
            logprob_tokens=sum(len(answer.completion_ids) for answer in answers[0]),
            dtype=dtype,
            quantization=quantization,
            checkpointing=False,
            rank=32,
            dropout=0.0,
            targets="all-linear",
            outputs=1,
        ),
    )
    expected = planned.peaks["update"].total
    yield line(f"Plan of that update ({dtype}, {quantization})", expected / 2**30, "GiB")
    if device == "cuda":
        held = memory()
        yield line(f"Peak of that update ({dtype}, {quantization})", held["peak"] / 2**30, "GiB")
        yield line(f"Reserved for it ({dtype}, {quantization})", held["reserved"] / 2**30, "GiB")
        off = abs(expected / held["peak"] - 1)
        yield line(f"Plan against peak ({dtype}, {quantization})", 100 * off, "%", most=5)
    for place, others in (("second", every[1:]), ("third", every)):
        for other in pack_groups(others, 2 * BUDGET, 0, device):
            first, again = step(other), step(other)
            what = f"First update of a {place} row length, beyond the next ({dtype}, {quantization})"
            yield line(what, 1000 * (first - again), "ms")


def main() -> None:
    """Run the checks; the exit code is 1 where a bound is not met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=SHAPES, default="smol")
    parser.add_argument("--tokenizer", default="embedded", help="a folder with a tokenizer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu"))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="where bases are made")
    options = parser.parse_args()
    options.quick, options.clock, options.dtype, options.data, options.result = (
        options.kind == "tiny",
        "wall",
        "bfloat16",
        None,
        None,
    )
    for name, value in ALLOCATOR.items():  # as in a run; torch reads it when it first takes memory of a GPU
        os.environ.setdefault(name, value)
    base = make_base(options.kind, options.work / options.kind, options.tokenizer)
    options.base = str(base)
    lines: list[dict[str, Any]] = []
    failed: list[str] = []
    for dtype, quantization in FORMATS if options.kind != "8b" else FORMATS[:2]:
        for part in (parity, update):
            started, before = time.perf_counter(), len(lines)
            name = f"{part.__name__} in {dtype}, {quantization}"
            try:
                lines.extend(part(base, options.kind, dtype, quantization))
            except Exception as error:  # noqa: BLE001 - what is left is measured too
                traceback.print_exc()
                lines.append(line(name, None, note=f"{type(error).__name__}: {error}"))
                failed.append(name)
            free()
            show(f"{name}: {time.perf_counter() - started:.0f} seconds", lines[before:])
            write_file(options, f"check-{options.kind}", lines, {"formats": FORMATS, "failed": failed})
    missed = [
        item["what"]
        for item in lines
        if item["most"] is not None and item["measured"] is not None and not item["measured"] <= item["most"]
    ]
    if failed or missed:
        sys.exit(
            "; ".join(
                f"{what}: {', '.join(names)}"
                for what, names in (("failed", failed), ("not met", missed))
                if names
            )
        )


def free() -> None:
    """Give the GPU's memory back before the next model."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
