from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlhf.core.errors import ConfigError, OutputError
from rlhf.runs.folder import RunFolder
from rlhf.runs.output_folder import check_output


class Config(BaseModel):
    steps: int = 10
    rate: float = 1.0


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a" / "b", Config(), resume=False) == []
    (note,) = check_output(tmp_path / "a" / "b", Config(), resume=True)
    assert str(tmp_path / "a" / "b") in note
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / name, Config(), resume=False)
    assert str(tmp_path / "file") in caught.value.found


READ_ONLY = """
import os, sys
from pathlib import Path
from rlhf.core.errors import OutputError
from rlhf.runs.output_folder import check_output
from pydantic import BaseModel
class Config(BaseModel):
    steps: int = 1
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    check_output(Path(sys.argv[1]), Config(), resume=False)
except OutputError as error:
    print(error.found)
"""


def test_a_read_only_folder_for_a_user_who_is_not_root() -> None:
    """Root may write anywhere, so that a process without its rights tries."""
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder) / "locked"
        locked.mkdir()
        Path(folder).chmod(0o755)
        locked.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(locked / "run")],
            capture_output=True,
            text=True,
            check=False,
        )
    assert str(locked) in done.stdout, done.stderr


def test_a_run_needs_resume_and_the_same_config(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", Config(), resume=False, command="c").close()
    (note,) = check_output(tmp_path / "run", Config(), resume=False)
    assert "--resume" in note
    assert check_output(tmp_path / "run", Config(), resume=True) == []
    with pytest.raises(ConfigError):
        check_output(tmp_path / "run", Config(rate=2.0), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(OutputError):
        check_output(tmp_path / "other", Config(), resume=True)
