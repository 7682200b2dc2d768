"""Check that the first bytes of a file are those of the kind that its name says."""

from __future__ import annotations

import shlex
from pathlib import Path

from rlhf.core.errors import DataError

LFS_POINTER = b"version https://git-lfs.github.com/"
"""The beginning of the pointer that git leaves where git-LFS did not fetch a file."""
AGAIN = "download or copy the file again: it is incomplete"
GZIP, ZSTD, PARQUET, ARROW = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1"
ENDINGS = {GZIP: ".gz", ZSTD: ".zst", PARQUET: ".parquet", ARROW: ".arrow"}
"""The first bytes of the binary kinds that are read, and the ending of their names."""
OTHERS = {b"PK\x03\x04": "a zip archive", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""The first bytes of kinds that are not read."""
MARKS = (b"\xff\xfe", b"\xfe\xff")
"""The byte order marks of UTF-16, which `iconv -f UTF-16` reads."""


def check_contents(path: Path) -> None:
    """Refuse a file that is empty, a pointer of git-LFS, or of another kind than its name says.

    Raises:
        DataError: such a file, or one that cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror})", fix=f"look at it: ls -l {shlex.quote(str(path))}"
        ) from error
    if not head:
        raise DataError(f"{path}:1: the file is empty", fix=AGAIN)
    if head == LFS_POINTER:
        raise DataError(
            f"{path}:1: a pointer of git-LFS, not the data it stands for",
            fix="run `git lfs pull` in the folder it was cloned to, or download the file by other means",
        )
    for start, name in OTHERS.items():
        if head.startswith(start):
            raise DataError(
                f"{path}:1: the content is {name}",
                allowed="text, gzip, zstd, Parquet or Arrow",
                fix="unpack it",
            )
    ending = next((end for start, end in ENDINGS.items() if head.startswith(start)), None)
    if ending is not None and path.suffix != ending:
        raise DataError(
            f"{path}:1: the content is {ending.removeprefix('.')}, and the name ends in {path.suffix}",
            allowed="a name that ends in what the file holds",
            fix=shlex.join(["mv", str(path), str(_renamed(path, ending))]),
        )
    if ending is None and path.suffix in (".gz", ".zst", ".parquet"):
        kind = {".gz": "gzip", ".zst": "zstd", ".parquet": "Parquet"}[path.suffix]
        raise DataError(
            f"{path}:1: the content is not {kind}: it begins with {head[:12]!r}",
            allowed=f"{kind}, by the name's ending {path.suffix}",
            fix="rename the file after its content, or download or copy it again",
        )
    if ending is None and (encoding := _utf16(head)):
        raise DataError(
            f"{path}:1: not UTF-8: it begins as {encoding} does",
            allowed="UTF-8 text",
            fix=f"convert the file: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW",
        )


def _renamed(path: Path, ending: str) -> Path:
    if ending in (".gz", ".zst"):
        plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
        return plain.with_name(plain.name + ending)
    return path.with_suffix(ending)


def _utf16(head: bytes) -> str | None:
    """The name of the UTF-16 variant that text begins as, by its mark or by the zeros in ASCII, or None."""
    if head[:2] in MARKS:
        return "UTF-16"
    if len(head) >= 4 and head[0] and head[2] and not head[1] and not head[3]:
        return "UTF-16LE"
    return "UTF-16BE" if len(head) >= 4 and head[1] and head[3] and not head[0] and not head[2] else None
