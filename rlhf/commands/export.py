"""`rlhf export`: a reward model or a policy as plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf.core.errors import ModelError
from rlhf.core.records import Conversation, Message
from rlhf.data.comparisons import load_comparisons
from rlhf.terminal.output import require_output_folder

PROBES = 8
"""Number of conversations that are scored before and after the merge."""


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="The `final` folder of a `train-reward` or an `align-policy` run."
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    form: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Of a reward model: `classifier`, an AutoModelForSequenceClassification (the default), or "
            "`nemotron`, NVIDIA's -Reward-HF, whose reward is the logit of vocabulary id 0; it cannot "
            "generate text.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Number format of the weights: bfloat16, float16 or float32; default: the one the model was "
            "trained in."
        ),
    ] = None,
    reward_only: Annotated[
        bool,
        typer.Option("--reward-only", help="One output, the reward: what TRL and RewardBench expect."),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest difference between merged model and adapter; default: the rounding error of the "
            "format.",
        ),
    ] = None,
    quantization: Annotated[
        str, typer.Option(hidden=True, help="Refused: merging into 4 bits loses the adapter.")
    ] = "none",
) -> None:
    """Merge base and adapter into plain weights, and verify the result.

    A reward model becomes a sequence classifier for transformers, TRL, RewardBench and vLLM; a policy becomes
    a causal model with tokenizer and generation config. The folder is written only if the merged model,
    loaded from disk, gives the same results on a few conversations as base and adapter. Merging into 4-bit
    weights is refused, as they are too coarse for an adapter.

    \b
    Example:
      rlhf export runs/demo/reward/final --output exported/reward --reward-only
    """
    require_output_folder(output)
    wanted = dtype if quantization == "none" else quantization
    typer.echo(export(model, output, form, wanted, reward_only=reward_only, tolerance=tolerance))
    typer.echo(f"Model: {output}")


def export(
    model: Path,
    output: Path,
    form: str | None,
    dtype: str | None,
    *,
    reward_only: bool,
    tolerance: float | None,
) -> str:
    """Export a model; returns a sentence with the largest difference."""
    from rlhf.adapters.merging import require_format
    from rlhf.adapters.storage import RewardAdapter, read_role  # torch loads only when the command runs

    if dtype is not None:
        require_format(dtype)
    if isinstance(read_role(model), RewardAdapter):
        from reward.export import export_reward

        form = form or "classifier"
        difference = export_reward(
            model, output, probes(), form=form, dtype=dtype, reward_only=reward_only, tolerance=tolerance
        )
        warning = "Do not generate text with this model: the logit of one of its tokens is the reward.\n"
        summary = f"Largest difference of scores before and after the merge: {difference}."
        return warning + summary if form == "nemotron" else summary
    if form is not None or reward_only:
        raise ModelError(
            f"{model} is a policy: it has no reward to export.", fix="leave out --form and --reward-only"
        )
    from policy.export import export_policy

    difference = export_policy(model, output, probes(), dtype=dtype, tolerance=tolerance)
    return (
        f"Largest difference of a conversation's log-probabilities before and after the merge: {difference}."
    )


def probes() -> list[Conversation]:
    """Conversations of the demo's benchmark, at even steps through its subsets."""
    comparisons, _ = load_comparisons("demo")
    step = max(1, len(comparisons) // (PROBES // 2))
    return [
        (*item.prompt, Message("assistant", answer))
        for item in comparisons[::step][: PROBES // 2]
        for answer in (item.chosen, item.rejected)
    ]
