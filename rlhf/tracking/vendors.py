"""The four trackers, each a subclass of transformers' callback for it.

Replaced: how a run is named and continued, and metric names, which transformers would prefix with `train/`.
Added: a table of samples, and the report page, where the tracker can hold them. Theirs: everything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import WandbLogModel

PROJECT = "rlhf"
"""The project or experiment that runs belong to; a tracker's own environment variable wins."""
SAMPLES = "samples"
"""The name of the table of samples."""
SampleRow = Mapping[str, str | int | float | bool | None]


@dataclass
class RunArguments:
    """What transformers' callbacks read of TrainingArguments, and what a tracker needs to continue a run.

    Attributes:
        run_name: unique, and the same after `--resume`.
        run_id: the same, for trackers whose ids are free.
        folder: where a tracker that keeps files may put them.
        config: what the tracker receives of the config.
        stored: ids that trackers chose themselves, by tracker.
        remember: stores such an id.
    """

    run_name: str
    run_id: str
    folder: Path
    config: dict[str, Any]
    stored: Mapping[str, str]
    remember: Callable[[str, str], None]
    project: str = PROJECT
    trackio_space_id: str | None = None
    trackio_bucket_id: str | None = None
    trackio_static_space_id: bool = False
    hub_private_repo: bool = True

    @property
    def output_dir(self) -> str:
        """As TrainingArguments has it."""
        return str(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """The config that is sent."""
        return dict(self.config)

    def to_json_string(self) -> str:
        """The config that is sent, as JSON."""
        return json.dumps(self.config, indent=2)


class Tracker(Protocol):
    """transformers' events, and two of ours."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Start or continue the run."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send the metrics of an update."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run."""

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Send answers of an update as a table; all rows have the same keys."""

    def log_page(self, file: Path) -> None:
        """Send the report page; nothing where the tracker has no files."""


class Trackio(TrackioCallback):
    """A local database, in TRACKIO_DIR; a Space only where TRACKIO_SPACE_ID names one. `trackio show` opens
    it."""

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any
    ) -> None:
        """Send the metrics under their own names."""
        self._trackio.log(dict(logs), step=state.global_step)

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Log a table."""
        table = self._trackio.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._trackio.log({SAMPLES: table}, step=step)

    def log_page(self, file: Path) -> None:
        """Log the page as an artifact."""
        self._trackio.log_artifact(file, name="report", type="report")


class Wandb(WandbCallback):
    """Offline in the run folder, unless WANDB_MODE says otherwise; no console output, code or git state is
    sent."""

    def __init__(self) -> None:
        super().__init__()
        self._log_model = WandbLogModel.FALSE  # `rlhf push` uploads models

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Start or continue the run by its id; a run that the user has started is used as it is."""
        if self._wandb.run is None:
            settings = {"console": "off", "disable_git": True, "disable_code": True, "save_code": False}
            # Its service has 30 seconds to start, too few on a busy machine, and the upload at the end has no
            # limit: a run must not wait for a network that is away.
            settings |= {"x_service_wait": 120.0, "finish_timeout": 120.0}
            self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", args.project),
                name=args.run_name,
                id=args.run_id,
                resume="allow",
                mode=os.environ.get("WANDB_MODE", "offline"),
                dir=os.environ.get("WANDB_DIR", str(args.folder)),
                settings=self._wandb.Settings(**settings),
            )
        super().setup(args, state, None)

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **kwargs: Any
    ) -> None:
        """Send the metrics under their own names, over the update's number."""
        self._wandb.log({**logs, "train/global_step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, *_: Any, **kwargs: Any) -> None:
        """Write what is buffered, and end the run."""
        self._wandb.finish()

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Log a table."""
        table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self._wandb.log({SAMPLES: table, "train/global_step": step})

    def log_page(self, file: Path) -> None:
        """Log the page as an artifact."""
        artifact = self._wandb.Artifact(name=f"report-{self._wandb.run.id}", type="report")
        artifact.add_file(str(file))
        self._wandb.log_artifact(artifact)


class TensorBoard(TensorBoardCallback):
    """Event files in the run folder; several of them, after `--resume`, are one run. It has no place for the
    page."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open an event file."""
        if not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            self.logging_dir = str(args.folder / "tensorboard")
        super().on_train_begin(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the metrics under their own names."""
        for name, value in logs.items():
            self.tb_writer.add_scalar(name, value, state.global_step)
        self.tb_writer.flush()

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Write the rows as a Markdown table."""
        lines: list[Iterable[object]] = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
        table = "\n".join("|" + "|".join(_cell(value) for value in line) + "|" for line in lines)
        self.tb_writer.add_text(SAMPLES, table, step)

    def log_page(self, file: Path) -> None:
        """Nothing: TensorBoard holds no files."""


class MLflow(MLflowCallback):
    """A folder `mlruns` in the run folder, unless MLFLOW_TRACKING_URI names a server; MLFLOW_RUN_ID names a
    run."""

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """Start the run, or continue the one whose id is stored, whose parameters stay as they were."""
        # Seven retries of two minutes each are mlflow's defaults: a run must not wait for a server that is
        # away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow = self._ml_flow
        if not mlflow.is_tracking_uri_set() and not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow 3 asks for it
            mlflow.set_tracking_uri((args.folder / "mlruns").as_uri())
        stored = args.stored.get("mlflow")
        self._started = mlflow.active_run() is None and not os.environ.get("MLFLOW_RUN_ID")
        if self._started:
            if stored is None:
                mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", args.project))
            run = mlflow.start_run(run_id=stored, run_name=None if stored else args.run_name)
            args.remember("mlflow", run.info.run_id)
        if stored is None:
            super().setup(args, state, None)
        else:  # parameters of a run cannot change, and `steps` may have
            self._async_log = self._initialized = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run, once all metrics are written; one that the user has started continues."""
        self._ml_flow.flush_async_logging()
        if self._started or self._auto_end_run:
            self._ml_flow.end_run()

    def log_samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Append to one table, with a column for the update."""
        columns = {"step": [step] * len(rows)} | {name: [row[name] for row in rows] for name in rows[0]}
        self._ml_flow.log_table(columns, artifact_file=f"{SAMPLES}.json")

    def log_page(self, file: Path) -> None:
        """Log the page as an artifact."""
        self._ml_flow.log_artifact(str(file))


def _cell(value: object) -> str:
    """A value as one cell of a Markdown table."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\r", "").replace("\n", "<br>")


VENDORS: dict[str, tuple[str, Callable[[], Tracker]]] = {
    "trackio": ("trackio", Trackio),
    "wandb": ("wandb", Wandb),
    "tensorboard": ("tensorboard", TensorBoard),
    "mlflow": ("mlflow", MLflow),
}
"""By name in the config: the module that must be installed, and the tracker."""
