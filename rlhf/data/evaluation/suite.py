"""Find the available benchmarks: files in their published schemas in a folder, or data sets of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rlhf.core.errors import DataError, UserError
from rlhf.data.evaluation.benchmarks import M_REWARDBENCH_NAME, PPE_BEST_OF_K, schema_of, source_of
from rlhf.data.sources.files import COMPRESSED, SUFFIXES
from rlhf.data.sources.rows import Row, read_rows

M_REWARDBENCH_LANGUAGES = [
    "arb_Arab",
    "ces_Latn",
    "deu_Latn",
    "ell_Grek",
    "fra_Latn",
    "heb_Hebr",
    "hin_Deva",
    "ind_Latn",
    "ita_Latn",
    "jpn_Jpan",
    "kor_Hang",
    "nld_Latn",
    "pes_Arab",
    "pol_Latn",
    "por_Latn",
    "ron_Latn",
    "rus_Cyrl",
    "spa_Latn",
    "tur_Latn",
    "ukr_Cyrl",
    "vie_Latn",
    "zho_Hans",
    "zho_Hant",
]
SUITE = (
    "rewardbench",
    "rewardbench-2",
    "rm-bench",
    "judgebench",
    "judgebench-claude",
    "ppe",
    *(f"ppe-{name.lower()}" for name in PPE_BEST_OF_K),
    *(M_REWARDBENCH_NAME + language for language in M_REWARDBENCH_LANGUAGES),
)
"""Names of `rlhf.data.evaluation.benchmarks.load_benchmark`, in the order of the table."""
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
"""What the Hub writes into the name of a part of a file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A benchmark of the suite: its name in `SUITE` or its file's, and the argument of `load_benchmark`."""

    name: str
    path: str


def suite_members(folder: str | None) -> tuple[list[Member], dict[str, str]]:
    """The benchmarks of a folder, or without one those of the Hub, and why others are missing, by name.

    The columns of the first row of each file say which benchmark it is; a file of no published schema keeps
    its own name. Hub data sets are members whether or not they can be loaded.

    Raises:
        DataError: there is no such folder, or it holds no readable file.
    """
    if folder is None:
        return [Member(name, name) for name in SUITE], {}
    if not Path(folder).is_dir():
        raise DataError(
            f"--suite reads a folder, and {folder} is none.",
            allowed="a folder with files of benchmarks, or no --data for those of the Hub",
            fix=f"--data {folder} without --suite, or --data {Path(folder).parent} with it",
        )
    members: dict[str, Member] = {}
    missing: dict[str, str] = {}
    for path in _files(Path(folder)):
        shown = str(Path(path).relative_to(folder))
        try:
            name = _name_of(path, shown)
        except UserError as error:
            missing[shown] = error.found
            continue
        name = f"{name} ({shown})" if name in members else name
        members[name] = Member(name, path)
    if not members and not missing:
        raise DataError(
            f"{folder} has no file that can be read.", allowed=", ".join(SUFFIXES) + ", also .gz and .zst"
        )
    order = {name: place for place, name in enumerate(SUITE)}
    ordered = sorted(members.values(), key=lambda member: (order.get(member.name, len(order)), member.name))
    absent = [name for name in SUITE if name not in members]
    missing |= dict.fromkeys(absent, f"no file in its schema in {folder}")
    return ordered, missing


def _files(folder: Path) -> list[str]:
    """Readable files below a folder; the shards of a file are one pattern."""
    paths = list[str]()
    for path in sorted(folder.rglob("*")):
        plain = path.name
        for end in COMPRESSED:
            plain = plain.removesuffix(end)
        if path.is_file() and Path(plain).suffix in SUFFIXES:
            name = SHARD.sub(r"-*-of-\1.", path.name)
            paths.append(str(path.with_name(name) if name != path.name else path))
    return list(dict.fromkeys(paths))


def _name_of(path: str, shown: str) -> str:
    """Which benchmark a file is, by the columns of its first row.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    row = next(read_rows(source_of(path), seed=0), None)
    if row is None:
        raise DataError(f"{path} has no rows.", allowed="a benchmark file with at least one row")
    schema = schema_of(row)
    words = re.sub(r"[^a-z]+", "-", shown.lower())
    if schema == "best-of-k":
        return next((f"ppe-{name.lower()}" for name in PPE_BEST_OF_K if name.lower() in words), shown)
    if schema == "judgebench":
        return "judgebench-claude" if "claude" in words else "judgebench"
    if schema == "pairs":
        return _pairs_name(row) or shown
    return schema if schema in SUITE else shown


def _pairs_name(row: Row) -> str:
    """`rewardbench` or `m-rewardbench/LANGUAGE`, where the columns are theirs."""
    published = all(row.find(name) is not None for name in ("chosen_model", "rejected_model"))
    language = row.find("language")
    if isinstance(language, str) and language in M_REWARDBENCH_LANGUAGES:
        return M_REWARDBENCH_NAME + language
    is_first = published and row.find("subset") is not None and row.find("section") is None
    return "rewardbench" if is_first else ""
