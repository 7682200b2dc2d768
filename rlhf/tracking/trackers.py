"""Sends a run's config, metrics, samples and report to the trackers that its config names.

Only the main process sends. One run in a tracker is one run folder: its id is kept in `tracking.json`, and
after `--resume` an update that was sent before is not sent again. A tracker that fails is reported once and
left out; the run continues.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import TrainerControl, TrainerState

from rlhf.config.schema import RunConfig
from rlhf.core.errors import ConfigError
from rlhf.distributed import processes
from rlhf.runs.files import atomic_write_text
from rlhf.runs.folder import METRICS, RunFolder
from rlhf.tracking.allowed import allowed_config, redacted
from rlhf.tracking.vendors import VENDORS, RunArguments, Tracker

IDS = "tracking.json"
"""In the run folder: the run's id, and those that trackers chose themselves."""
FOLDER = "tracking"
"""In the run folder: what trackers that keep files write."""
SAMPLES_EVERY, SAMPLE_ROWS, SAMPLE_CHARACTERS = 10, 16, 4000
"""The first rows of every tenth update are sent as a table, with texts cut at this length: all of them stay
in samples.jsonl."""
NOT_IN_TABLE = ("step", "tokens", "token_kl", "token_reward", "token_value")
"""Columns of samples.jsonl that are not sent."""


class Trackers:
    """The trackers of one run; use it as a context, which ends their runs.

    Args:
        config: names the trackers, and is sent as far as `allowed_config` lets it.

    Raises:
        ConfigError: the package of a tracker is not installed.
    """

    def __init__(self, config: RunConfig) -> None:
        for number, name in enumerate(config.track):
            _check_installed(f"track.{number}" if len(config.track) > 1 else "track", name)
        self._config = config
        self._names = config.track if processes.is_main() else []
        self._open: dict[str, Tracker] = {}
        self._state, self._control = TrainerState(), TrainerControl()
        self._sent = 0
        self._arguments: RunArguments | None = None

    def open(self, run: RunFolder) -> None:
        """Start the run in every tracker, or continue it; called before a resumed run's metrics are
        truncated."""
        if not self._names:
            return
        self._arguments = _arguments(run.path, self._config)
        self._sent = _last_step(run.path / METRICS)
        for name in dict.fromkeys(self._names):
            vendor = VENDORS[name][1]
            with self._guard(name):
                tracker = vendor()
                tracker.on_train_begin(self._arguments, self._state, self._control)
                self._open[name] = tracker

    def metrics(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Send an update's figures under their own names; text stays in metrics.jsonl."""
        numbers = {name: float(value) for name, value in figures.items() if not isinstance(value, str)}
        if step <= self._sent or not numbers:
            return
        self._state.global_step = step
        self._each(lambda t: t.on_log(self._arguments, self._state, self._control, logs=numbers))

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send some answers of an update as a table, see `SAMPLES_EVERY`; each row has its `step`."""
        if not rows or not self._open:
            return
        step = rows[0]["step"]
        if step > self._sent and (step == 1 or step % SAMPLES_EVERY == 0):
            table = _table(rows[:SAMPLE_ROWS])
            self._each(lambda t: t.log_samples(step, table))

    def report(self, file: Path) -> None:
        """Send the report page."""
        self._each(lambda t: t.log_page(file))

    def close(self) -> None:
        """End the run in every tracker."""
        self._each(lambda t: t.on_train_end(self._arguments, self._state, self._control))
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(self, send: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._guard(name):
                send(tracker)

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Report a tracker's failure, and leave it out from then on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever fails in a tracker, training must not
            self._open.pop(name, None)
            reason = redacted(str(error).strip().partition("\n")[0])
            print(
                f"Warning: the tracker {name} failed ({type(error).__name__}: {reason}). The run "
                "continues without it; metrics.jsonl and samples.jsonl hold everything.",
                file=sys.stderr,
                flush=True,
            )


def _check_installed(key: str, name: str) -> None:
    module = VENDORS[name][0]
    if importlib.util.find_spec(module) is None:
        package = {"mlflow": "mlflow-skinny"}.get(name, name)
        raise ConfigError(
            f"{key} is {name}, and the package {module} is not installed.",
            allowed=", ".join(n for n, (m, _) in VENDORS.items() if importlib.util.find_spec(m))
            or "[]: none is",
            fix=f"pip install {package}, or leave out {key}",
        )


def _arguments(folder: Path, config: RunConfig) -> RunArguments:
    """The run's name, id and config; the id is made once."""
    file = folder / IDS
    ids: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def remember(name: str, value: str) -> None:
        ids[name] = value
        atomic_write_text(file, json.dumps(ids, indent=2) + "\n")

    if "id" not in ids:
        remember("id", secrets.token_hex(8))
    subfolder = folder.absolute() / FOLDER
    subfolder.mkdir(exist_ok=True)
    name = f"{folder.absolute().name}-{ids['id'][:6]}"
    return RunArguments(name, ids["id"], subfolder, dict(allowed_config(config)), ids, remember)


def _last_step(metrics: Path) -> int:
    """The last update whose figures were written, and so sent; 0 in a new run."""
    if not metrics.exists():
        return 0
    with metrics.open(encoding="utf-8") as lines:
        return max((int(json.loads(line)["step"]) for line in lines), default=0)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns of all of them: the prompt as text, other nested values as JSON."""
    columns = dict.fromkeys(name for row in rows for name in row if name not in NOT_IN_TABLE)
    return [{name: _value(row.get(name)) for name in columns} for row in rows]


def _value(value: Any) -> Any:
    if (
        isinstance(value, list)
        and value
        and all(isinstance(turn, dict) and "content" in turn for turn in value)
    ):
        value = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value)
    elif isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    return value[:SAMPLE_CHARACTERS] if isinstance(value, str) else value
