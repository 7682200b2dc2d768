"""Standard streams that are closed, or that nobody reads any more, end no run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from rlhf.startup import LastingStream

PREPARE = "from rlhf import startup; startup.prepare(); "


def run_in_shell(code: str, ending: str) -> subprocess.CompletedProcess[str]:
    """The result of Python code in a shell's command with this ending."""
    command = f"{shlex.join([sys.executable, '-c', PREPARE + code])} {ending}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


def test_text_that_nobody_reads_is_dropped() -> None:
    reader, writer = os.pipe()
    stream = LastingStream(os.fdopen(writer, "wb"), encoding="utf-8", line_buffering=True)
    stream.write("read\n")
    assert os.read(reader, 100) == b"read\n"
    os.close(reader)
    print("dropped", file=stream)
    stream.write("x" * 1_000_000)
    stream.flush()
    stream.close()


@pytest.mark.parametrize("streams", ["", "2>&1"])
def test_a_reader_that_leaves_ends_nothing(streams: str) -> None:
    code = (
        "import sys, time; print('first', flush=True); time.sleep(0.3); "
        "[print(n, file=sys.stderr if n % 2 else sys.stdout, flush=True) for n in range(1000)]"
    )
    done = run_in_shell(code, f"{streams} | head -1; exit ${{PIPESTATUS[0]}}")
    assert done.stdout == "first\n" and done.returncode == 0
    assert "BrokenPipe" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(closed: str) -> None:
    code = (
        "import os, sys; file = open(os.devnull); print('text'); print('text', file=sys.stderr); "
        "sys.stdin.read(0); sys.exit(0 if file.fileno() > 2 else 9)"
    )
    done = run_in_shell(code, closed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "expandable_segments:True None"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 None"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native"),
    ],
)
def test_gpu_memory_comes_in_segments_that_grow_unless_the_user_says_otherwise(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = run_in_shell(f"import os; print(*map(os.environ.get, {names}))", "")
    assert done.stdout.strip() == expected
