"""What a training loop's figures become: rows of the run, and a line in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from rlhf.runs.folder import RunFolder
from rlhf.runs.progress import Progress
from rlhf.tracking.recording import policy_recorder


def test_the_line_of_an_update_has_the_kl_of_an_answer(tmp_path: Path) -> None:
    """In nats an answer, as the KL budget of the config and the evaluation have it; not of a token."""
    text = io.StringIO()
    run = RunFolder(tmp_path, None, resumed=False)  # as on a rank that writes nothing
    with Progress(2, "update", Console(file=text, width=120)) as progress:
        record = policy_recorder(run, None, progress)
        record(1, {"reward/mean": 1.5, "kl/mean": 0.02, "kl/sum": 0.8, "length/mean": 40.0}, [])
        record(2, {"reward/mean": 1.7, "kl/mean": 0.03, "kl/sum": 1.2, "length/mean": 40.0}, [])
    assert "update 2/2  reward 1.7  kl 1.2  tokens 40" in text.getvalue()
