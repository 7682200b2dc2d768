from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rlhf.runs import disk
from rlhf.runs.disk import file_system_error, full_disk

WEIGHTS = "Error while serializing: I/O error: {} (os error {})"


def test_a_write_to_a_full_disk() -> None:
    # Linux's own full disk: every write to it fails with ENOSPC.
    with pytest.raises(OSError) as raised, Path("/dev/full").open("wb", buffering=0) as file:  # noqa: PT011
        file.write(b"x")
    error = full_disk(raised.value)
    assert error is not None
    assert error.exit_code == 1
    assert "--resume" in error.fix


def test_the_file_is_named_if_the_system_names_it() -> None:
    error = full_disk(OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x/final"))
    assert error is not None and "runs/x/final" in error.found


def test_the_space_of_the_run_folder_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_run_folders", [])
    unknown = SafetensorError(WEIGHTS.format("No space left on device", errno.ENOSPC))
    before = full_disk(unknown)
    disk.report_space_of(tmp_path)
    after = full_disk(unknown)
    assert before is not None and str(tmp_path) not in before.found
    assert after is not None and str(tmp_path) in after.found


def test_weights_on_a_full_disk() -> None:
    assert full_disk(SafetensorError(WEIGHTS.format("No space left on device", errno.ENOSPC))) is not None


def test_a_tokenizer_on_a_full_disk() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(Exception, match="os error 28") as raised:
        Tokenizer(models.BPE()).save("/dev/full")
    assert full_disk(raised.value) is not None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        OSError("an error without a number"),
        SafetensorError(WEIGHTS.format("Permission denied", errno.EACCES)),
        SafetensorError("Error while deserializing header"),
        ValueError("a quoted (os error 28)"),
    ],
)
def test_anything_else_is_not_a_full_disk(error: Exception) -> None:
    assert full_disk(error) is None


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/locked/file"),
        OSError(errno.EROFS, "Read-only file system", "/locked/file"),
        OSError(errno.ENAMETOOLONG, "File name too long", "/locked/file"),
    ],
)
def test_a_path_without_access_is_an_error_of_the_user(error: OSError) -> None:
    shown = file_system_error(error)
    assert shown is not None and shown.exit_code == 2
    assert "/locked/file" in shown.found
    assert file_system_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert file_system_error(PermissionError(errno.EACCES, "of a socket")) is None
