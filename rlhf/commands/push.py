"""`rlhf push`: a trained model to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rlhf.core.errors import ConfigError


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, its `final` folder, or a folder of `rlhf export`."),
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hub.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapter into its base first, as `rlhf export` does.")
    ] = False,
    reward_only: Annotated[
        bool,
        typer.Option(
            "--reward-only", help="With --merged: one output, the reward, as TRL and RewardBench expect."
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="With --merged: bfloat16, float16 or float32; default: the format the model was trained in."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="The base's name on the Hub, where it was trained from a folder."
        ),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Upload a policy run's samples as samples.parquet.")
    ] = True,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add a commit to a repository that exists.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files with their sizes, and stop; needs no network.")
    ] = False,
) -> None:
    """Upload a reward model or a policy to the Hugging Face Hub.

    One commit holds the weights, the model card (license, base, data, figures) and a policy's samples. A new
    repository is private. Local paths are taken out of the card and of JSON files. The token is
    huggingface_hub's own: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      rlhf push runs/demo/policy me/my-policy --dry-run
      rlhf push runs/demo/policy me/my-policy --merged
    """
    from rlhf.publish.staging import find_model, sizes, stage
    from rlhf.publish.upload import check_name, push

    check_name(repo)
    source = find_model(run)
    if reward_only and not (merged and source.is_adapter):
        raise ConfigError(
            "--reward-only changes the outputs of a model that is merged here.",
            allowed="with --merged, and an adapter",
            fix="add --merged; or rlhf export RUN/final --output FOLDER --reward-only, and push FOLDER",
        )
    with tempfile.TemporaryDirectory() as temporary:
        model, folder = source.model, Path(temporary) / "repository"
        folder.mkdir()
        if merged and source.is_adapter:
            from rlhf.commands.export import export

            model = Path(temporary) / "merged"
            typer.echo(export(source.model, model, None, dtype, reward_only=reward_only, tolerance=None))
        stage(source, model, folder, repo=repo, base=base, samples=samples)
        files = sizes(folder)
        width = max(map(len, files))
        for name, size in files.items():
            typer.echo(f"{name:<{width}}  {size:>15,} bytes")
        typer.echo(f"{len(files)} files, {sum(files.values()):,} bytes, for {repo}")
        if dry_run:
            return
        what = "a merged model" if merged else "an adapter" if source.is_adapter else "a model"
        address = push(
            folder, repo, private=not public, update=update, message=f"Upload {what} with rlhf push"
        )
    typer.echo(f"Uploaded: {address}")
