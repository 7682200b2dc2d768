"""The processes that train the rows of a table: a signal lets them save their update."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

CHILD = """
import pathlib, signal, sys, time
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: signals.append(number))
pathlib.Path(sys.argv[1]).touch()
while not signals:
    time.sleep(0.01)
time.sleep(1)  # the rest of the update
pathlib.Path(sys.argv[2]).touch()
"""
PARENT = """
import subprocess, sys
from rlhf.commands.paper_table import wait_for
from rlhf.runs.signals import end_cleanly_on_sigterm
end_cleanly_on_sigterm()
wait_for(subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    "to_all", [True, False], ids=["Ctrl-C in a terminal", "SIGTERM to the command alone"]
)
def test_an_interrupted_table_waits_until_its_row_is_saved(to_all: bool, tmp_path: Path) -> None:
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    words = [sys.executable, "-c", PARENT, CHILD, str(begun), str(saved)]
    with subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL) as parent:
        try:
            deadline = time.monotonic() + 60
            while not begun.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            if to_all:
                os.killpg(parent.pid, signal.SIGINT)
            else:
                parent.terminate()
            assert parent.wait(60) == (-signal.SIGINT if to_all else 128 + signal.SIGTERM)
            assert saved.exists()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
