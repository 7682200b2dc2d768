"""The real trackers through the real command line: a policy run, stopped and resumed, is one run in each.

Not in the lock: `pip install 'rlhf[track]'` runs them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: pip install 'rlhf[track]'")


@pytest.fixture
def resumed_run(
    policy_config: Path, tmp_path: Path, rlhf_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """A run of two updates, then resumed for two more, with a tracker; returns its folder."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def run(tracker: str) -> Path:
        output = tmp_path / "run"
        words = ("align-policy", policy_config, f"track={tracker}", "--output", output)
        for steps in (("steps=2",), ("steps=4", "--resume")):
            done = rlhf_command(*words, *steps)
            assert done.exit_code == 0, done.output
            assert "Warning: the tracker" not in done.output, done.output
        return output

    return run


@needs("trackio")
def test_trackio(resumed_run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = resumed_run("trackio")
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(trackio.Api().runs("rlhf"))
    assert [run.name for run in runs] == [
        f"run-{json.loads((folder / 'tracking.json').read_text())['id'][:6]}"
    ]
    logs = SQLiteStorage.get_logs("rlhf", runs[0].name)
    assert [log["step"] for log in logs if "kl/mean" in log] == [1, 2, 3, 4]
    assert any("samples" in log for log in logs)


@needs("tensorboard")
def test_tensorboard(resumed_run: Callable[[str], Path]) -> None:
    folder = resumed_run("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("kl/mean")] == [1, 2, 3, 4]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("kl/mean")] == pytest.approx([m["kl/mean"] for m in metrics])
    assert "samples/text_summary" in events.Tags()["tensors"]


@needs("mlflow")
def test_mlflow(resumed_run: Callable[[str], Path]) -> None:
    folder = resumed_run("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient((folder / "tracking" / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("rlhf")
    [run] = client.search_runs([experiment.experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "kl/mean")] == [1, 2, 3, 4]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"samples.json", "report.html"}
    assert run.data.params["adapter.rank"] == "4" and "output" not in run.data.params


@needs("wandb")
def test_wandb(resumed_run: Callable[[str], Path]) -> None:
    folder = resumed_run("wandb")
    identity = json.loads((folder / "tracking.json").read_text())["id"]
    files = sorted((folder / "tracking").rglob("*.wandb"))
    assert len(files) == 2  # one a part; `wandb sync` joins them by their id
    assert {file.name for file in files} == {f"run-{identity}.wandb"}
    assert not [file for file in (folder / "tracking").rglob("output.log") if file.stat().st_size]
