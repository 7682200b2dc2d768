"""`rlhf generate`: a policy's answers to a file of questions, in the formats of judges."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf.core.errors import DataError
from rlhf.data.drops import DropReport
from rlhf.data.evaluation.judge_formats import FORMATS, Format, Question, Reply, answer_text, load_questions
from rlhf.runs.files import atomic_write_text
from rlhf.runs.progress import Progress
from rlhf.terminal.output import require_output_file

if TYPE_CHECKING:
    from policy.evaluation.speaker import Speaker

Policy = Annotated[
    str,
    typer.Argument(
        metavar="POLICY",
        help="The `final` folder of an `align-policy` run; or a base by itself: `embedded`, a folder with a "
        "whole model, or a Hugging Face name.",
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="The judge's own question file. For jsonl: `demo`, or rows with a column `prompt`, a string or "
        "messages.",
    ),
]
FormatName = Annotated[str, typer.Option("--format", metavar="NAME", help=f"One of {', '.join(FORMATS)}.")]
Output = Annotated[Path, typer.Option(metavar="FILE", help="Where the answers go.")]
Name = Annotated[
    str | None,
    typer.Option(
        help="Model name in the output; default: the output's file name for mt-bench and arena-hard, whose "
        "judges identify models by it, else the run's."
    ),
]
PromptColumn = Annotated[
    str, typer.Option(metavar="NAME", help="For jsonl: the column that holds the prompt.")
]
Engine = Annotated[str, typer.Option(metavar="NAME", help="`transformers`, or the faster `vllm`.")]
Samples = Annotated[int, typer.Option(min=1, help="Answers per prompt.")]
Temperature = Annotated[
    float | None,
    typer.Option(min=0.0, help="Sampling temperature; 0 is greedy decoding."),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts per batch.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]
MemoryGib = Annotated[
    float, typer.Option(min=0.01, help="With vllm on a CPU: size of its key-value cache, in GiB.")
]
GpuMemoryShare = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="With vllm on a GPU: fraction of its memory for vLLM.")
]


def command(
    policy: Policy,
    prompts: Prompts,
    format_: FormatName,
    output: Output,
    name: Name = None,
    engine: Engine = "transformers",
    samples: Samples = 1,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = 16,
    seed: Seed = 0,
    prompt_column: PromptColumn = "prompt",
    memory_gib: MemoryGib = 1.0,
    gpu_memory_share: GpuMemoryShare = 0.9,
) -> None:
    """Generate answers to a file of questions, in the format of a judge.

    \b
    --format     reads                          writes                      temperature      at most
    mt-bench     FastChat's question.jsonl      model_answer/MODEL.jsonl    by category      1024 tokens
    arena-hard   Arena-Hard-Auto's, v0.1 or 2   model_answer/MODEL.jsonl    0                4096
    alpaca-eval  AlpacaEval's alpaca_eval.json  model_outputs.json          0.7              2048
    jsonl        prompts of any file            {"prompt", "answers", ...}  1                256

    Temperature and length default to those of the judges' scripts. The second turn of MT-Bench follows the
    first answer. Prompts that do not fit into the context with their answer are dropped and reported. The
    output is written when it is complete; the same command resumes an interrupted run.

    \b
    Example:
      rlhf generate runs/demo/policy/final --prompts question.jsonl --format mt-bench --output
      model_answer/policy.jsonl
    """
    questions, drops = load_questions(prompts, format_, {"prompt": prompt_column})
    form = FORMATS[format_]
    if samples > 1 and not form.several:
        raise DataError(
            f"--samples {samples}: a file of {format_} holds one answer per question.",
            allowed=f"--samples 1, or the format {' or '.join(n for n, f in FORMATS.items() if f.several)}",
        )
    require_output_file(output)
    from policy.evaluation.speaker import Speaker  # torch loads only when the command runs

    speaker = Speaker.read(policy)
    speaker.check_engine(engine)
    settings = {
        "policy": policy,
        "adapter": _weights_digest(speaker),
        "questions": hashlib.sha256(repr(questions).encode("utf-8", "backslashreplace")).hexdigest()[:16],
        "format": format_,
        "engine": engine,
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens or form.max_new_tokens,
        "batch": batch,
        "seed": seed,
    }
    called = name or (output.name.removesuffix(".jsonl") if form.named_by_file else speaker.name)
    memory = {"memory_gib": memory_gib, "gpu_memory_share": gpu_memory_share}
    _answer(speaker, questions, form, settings, memory, drops, output, called)


def _answer(
    speaker: Speaker,
    questions: Sequence[Question],
    form: Format,
    settings: Mapping[str, Any],
    memory: Mapping[str, float],
    drops: DropReport,
    output: Path,
    called: str,
) -> None:
    """Generate, write and print a summary; answers of an interrupted run are kept."""
    from policy.evaluation.draft import Draft
    from policy.evaluation.generation import TokenBudget, answer_questions

    tokens, samples, batch = settings["max_new_tokens"], settings["samples"], settings["batch"]
    room = TokenBudget(speaker.chat, speaker.context, tokens)
    with Draft(output, settings) as draft, Progress(len(questions), "questions") as progress:
        if draft.batches:
            typer.echo(f"Resuming: {sum(map(len, draft.batches))} questions are done.")
        if settings["engine"] == "vllm":
            sample = speaker.vllm(
                tokens, longest=room.longest(questions), sequences=batch * samples, **memory
            )
        else:
            sample = speaker.transformers(tokens)
        answers = answer_questions(
            questions,
            sample,
            room,
            samples=samples,
            temperature=lambda question: _temperature(question, form, settings["temperature"]),
            batch=batch,
            seed=settings["seed"],
            strip=form.strip,
            drops=drops,
            draft=draft,
            on_progress=progress.update,
        )
        if not answers:
            draft.remove()
            raise DataError("\n".join(["No question can be answered.", *drops.lines()]))
        answered = [(questions[place], replies) for place, replies in answers.items()]
        atomic_write_text(output, answer_text(settings["format"], answered, called))
        draft.remove()
    for line in [*drops.lines(), *warnings_of(answers, tokens)]:
        typer.echo(line)
    typer.echo(f"Wrote the answers of {called} to {len(answered)} questions to {output}.")


def warnings_of(answers: Mapping[int, Sequence[Reply]], longest: int) -> list[str]:
    """Lines with the number of answers that were cut off, and of empty answers."""
    turns = [
        (finished, text)
        for replies in answers.values()
        for reply in replies
        for finished, text in zip(reply.finished, reply.turns, strict=True)
    ]
    cut, empty = sum(not finished for finished, _ in turns), sum(not text.strip() for _, text in turns)
    lines = [f"{cut} of {len(turns)} answers were cut off at {longest} tokens."] if cut else []
    return [*lines, f"{empty} of {len(turns)} answers are empty."] if empty else lines


def _temperature(question: Question, form: Format, option: float | None) -> float:
    """The temperature of the command line, else the judge's for this question, else that of the format."""
    if option is not None:
        return option
    return form.temperature if question.temperature is None else question.temperature


def _weights_digest(speaker: Speaker) -> str | None:
    """A digest of the policy's weights: of its adapter, or the one in the card of a whole model."""
    if speaker.folder is None:
        whole: str | None = speaker.card.get("weights")
        return whole
    from rlhf.runs.checkpoints import file_digest

    return file_digest(speaker.folder / "adapter_model.safetensors")[:16]
