"""`rlhf annotate`: collects comparisons and ratings in a browser, and exports them as training data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf.core.errors import ConfigError, DataError, OutputError, RunError
from rlhf.runs.files import atomic_write_text
from rlhf.terminal.output import require_output_folder

if TYPE_CHECKING:
    from rlhf.annotate.live import LivePairs

command = typer.Typer(
    help="""Collect preferences and ratings in a browser, and export them as HelpSteer2 data.

    Example: rlhf annotate serve pairs.jsonl --annotator ana --annotator ben --annotator cy, then rlhf
    annotate export annotations.db exported""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The store that `serve` wrote.")]
Host = Annotated[
    str, typer.Option(help="Address to listen on; 127.0.0.1 is reachable from this machine only.")
]


@command.command()
def serve(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASKS...",
            help="Files with a prompt and two responses per row; default: the tasks in the store.",
        ),
    ] = None,
    store: Annotated[
        str, typer.Option(help="SQLite file or SQLAlchemy URL of the annotations.")
    ] = "annotations.db",
    annotator: Annotated[
        list[str] | None, typer.Option(help="Name of an annotator; may be repeated.")
    ] = None,
    adjudicator: Annotated[
        list[str] | None, typer.Option(help="Name of an adjudicator, who decides disputed tasks.")
    ] = None,
    per_task: Annotated[
        int, typer.Option(min=1, max=9, help="Annotators per task; the paper has 3 to 5.")
    ] = 3,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Sample responses live: `final` folder of a policy, beside its base; twice: two policies.",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --policy: the prompts to answer.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="With --policy: longest response.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="With --policy: sampling temperature.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="With --policy: seed of the samples.")] = 0,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8900,
) -> None:
    """Serve the page for comparing two responses.

    A row has `prompt` (a string or messages) and `response_1` and `response_2`, `chosen` and `rejected`, or a
    list `responses` of two. Of compare_rows.jsonl (`rlhf compare --output`) the closest two answers to each
    prompt are shown, the most undecided first. The order of the responses is random per annotator and task.
    A token is printed once for each new name; existing names keep theirs (`rlhf annotate token` makes a new
    one). Stop with Ctrl-C: everything is saved.

    With `--policy` the responses are sampled while people annotate: response 1 is the policy's, response 2
    the base's or the second policy's. The page does not say which is which.

    \b
    Examples:
      rlhf annotate serve pairs.jsonl --annotator ana --annotator ben --annotator cy --adjudicator dora
      rlhf annotate serve --policy runs/demo/policy/final --prompts demo --annotator ana --per-task 1
    """
    from rlhf.annotate.app import Settings, build_app
    from rlhf.annotate.store import Store
    from rlhf.annotate.tasks import read_tasks
    from rlhf.data.drops import DropReport
    from rlhf.web import serving

    report = DropReport()
    rows = [task for file in tasks or [] for task in read_tasks(file, report)]
    if report.reasons:
        print("\n".join(report.lines()))
    project = Store(store)
    added = project.add_tasks(rows)
    live = None
    if policy:
        from rlhf.commands.annotate_live import live_pairs

        live = live_pairs(
            project, policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
    elif prompts is not None:
        raise ConfigError("--prompts is for responses that are sampled live.", fix="--policy FOLDER")
    known = {person.name for person in project.annotators()}
    people = [(name, False) for name in annotator or []] + [(name, True) for name in adjudicator or []]
    if both := sorted({*(annotator or [])} & {*(adjudicator or [])}):
        raise ConfigError(
            f"{', '.join(both)}: both --annotator and --adjudicator.", fix="one of the two, or another name"
        )
    for name, adjudicates in dict.fromkeys(people):
        if name not in known:
            print(f"Token of {name}: {project.add_annotator(name, adjudicates=adjudicates)}")
    if not project.count_tasks() and live is None:
        raise DataError(f"The store {project.location} has no tasks.", fix="rlhf annotate serve TASKS.jsonl")
    if not project.annotators():
        raise ConfigError("No annotator can sign in yet.", fix="--annotator NAME")
    print(f"{project.count_tasks()} tasks ({added} new), {per_task} annotators each, in {project.location}.")
    app = build_app(project, Settings(per_task), (lambda: live.waiting) if live else (lambda: False))
    with serving.bind(host, port) as bound:
        bound.listen(serving.BACKLOG)
        print(f"Open {serving.url_of(bound)} and sign in with a token.", flush=True)
        if live is not None:
            print(f"Responses to {len(live.left)} prompts are sampled as they are needed.", flush=True)
            live.start(lambda: _print_end(live))
        serving.serve(app, bound)
    print(f"Stopped; everything is saved in {project.location}.")
    if live is not None:
        live.close()
        if live.failure is not None:
            raise RunError(f"Sampling stopped: {live.failure}")


def _print_end(live: LivePairs) -> None:
    """Print which prompts were skipped, and the error that ended the sampling, if any."""
    for reason, count in live.skipped.items():
        print(f"{count} prompts have no task: {reason}", flush=True)
    if live.failure is not None:
        print(f"Sampling stopped: {live.failure}. The tasks that are there can be annotated.", flush=True)


@command.command()
def token(
    store: StoreArgument,
    name: Annotated[str, typer.Argument(help="Name of the annotator; a new name is added.")],
    adjudicates: Annotated[
        bool, typer.Option("--adjudicator", help="The annotator is an adjudicator.")
    ] = False,
) -> None:
    """Make a new token for an annotator and revoke the old one."""
    from rlhf.annotate.store import opened

    with opened(store) as project:
        person = project.annotator(name)
        role = adjudicates or (person is not None and person.adjudicates)
        print(f"Token of {name}: {project.add_annotator(name, adjudicates=role)}")


@command.command()
def status(
    store: StoreArgument,
    per_task: Annotated[int, typer.Option(min=1, max=9, help="Annotators per task.")] = 3,
) -> None:
    """Print progress and agreement as JSON."""
    from rlhf.annotate.agreement import progress
    from rlhf.annotate.store import opened

    with opened(store) as project:
        adjudicated = set(project.adjudications())
        counts = progress(project.count_tasks(), project.annotations(), per_task, adjudicated)
    print(json.dumps(counts, indent=1))


@command.command()
def export(
    store: StoreArgument,
    output: Annotated[
        Path, typer.Argument(help="A new or empty folder; with another --form a new JSON file.")
    ],
    form: Annotated[
        Literal["helpsteer2", "label-studio", "argilla"], typer.Option(help="Format of the output.")
    ] = "helpsteer2",
    max_spread: Annotated[
        int, typer.Option(min=0, help="Largest spread of the three most similar annotators.")
    ] = 2,
    fewest: Annotated[
        int, typer.Option(min=1, max=3, help="Fewest annotators of a task with a strength; the paper has 3.")
    ] = 3,
) -> None:
    """Write the annotations as HelpSteer2 and HelpSteer2-Preference data, or for another tool.

    `train-reward` reads the folder: `{path: FOLDER, format: helpsteer2}` as ratings, `{path: FOLDER, format:
    helpsteer2-preference}` as preferences.
    """
    from rlhf.annotate import exchange
    from rlhf.annotate.export import write_export
    from rlhf.annotate.store import opened

    if form == "helpsteer2":
        require_output_folder(output, "OUTPUT")
    with opened(store) as project:
        if form != "helpsteer2":
            if output.exists():
                raise OutputError(f"{output} exists already.", fix="name a new file")
            write = {"label-studio": exchange.to_label_studio, "argilla": exchange.to_argilla}[form]
            annotations, decisions = project.annotations(), project.adjudications()
            rows = write(project.tasks(), annotations)
            atomic_write_text(output, json.dumps(rows, ensure_ascii=False, indent=1))
            print(f"Wrote {len(rows)} tasks with {len(annotations)} annotations to {output}.")
            rated = sum(bool(a.submission.ratings_1 or a.submission.ratings_2) for a in annotations)
            if rated or decisions:
                print(
                    f"Not part of this format, so left out: the ratings of {rated} annotations and "
                    f"{len(decisions)} decisions of adjudicators."
                )
            return
        written = write_export(project, output, max_spread=max_spread, fewest=fewest)
    usable = sum(row["preference_strength"] != 0 for row in written.preferences)
    print(
        f"Wrote {len(written.preferences)} preferences ({usable} with a strength), {len(written.ratings)} "
        f"ratings on which annotators agree and {len(written.disagreements)} rows of all ratings to "
        f"{output}."
    )
    for reason, count in written.left_out.items():
        print(f"Dropped {count} annotations: {reason}.")


@command.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="A JSON export.")],
    form: Annotated[Literal["label-studio", "argilla"], typer.Option(help="Format of the file.")],
    store: Annotated[str, typer.Option(help="SQLite file or SQLAlchemy URL.")] = "annotations.db",
) -> None:
    """Import tasks and annotations of another tool into a store."""
    from rlhf.annotate import exchange
    from rlhf.annotate.store import Store

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as JSON: {error}",
            allowed="the JSON export of Label Studio or Argilla",
        ) from error
    read = {"label-studio": exchange.from_label_studio, "argilla": exchange.from_argilla}[form]
    tasks = read(content)
    project = Store(store)
    new = project.add_tasks([task for task, _ in tasks])
    numbers = {task.key: number for number, task in project.tasks().items()}
    known = {person.name for person in project.annotators()}
    annotations = kept = 0
    for task, submissions in tasks:
        for name, submission in submissions:
            if name not in known:
                project.add_annotator(name)
                known.add(name)
            saved = project.saved(numbers[task.key], name)
            if saved is not None and saved.final:
                kept += 1
                continue
            project.save(numbers[task.key], name, submission, final=True, seconds=0.0)
            annotations += 1
    print(f"Added {new} tasks and {annotations} annotations to {project.location}.")
    if kept:
        print(f"Kept {kept} annotations of the store: the same person had annotated the same task.")
