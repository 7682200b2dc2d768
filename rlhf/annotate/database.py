"""The tables of an annotation store, and its engine: SQLite, or any SQLAlchemy URL."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from rlhf.core.errors import ConfigError

metadata = sa.MetaData()
META = sa.Table(
    "meta", metadata, sa.Column("key", sa.String(40), primary_key=True), sa.Column("value", sa.Text)
)
TASKS = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), unique=True, nullable=False),
    sa.Column("prompt", sa.JSON, nullable=False),
    sa.Column("response_1", sa.Text, nullable=False),
    sa.Column("response_2", sa.Text, nullable=False),
)
ANNOTATORS = sa.Table(
    "annotators",
    metadata,
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("token_hash", sa.String(64), unique=True, nullable=False),
    sa.Column("adjudicates", sa.Boolean, nullable=False),
)
ANNOTATIONS = sa.Table(
    "annotations",
    metadata,
    sa.Column("task", sa.Integer, sa.ForeignKey("tasks.id"), primary_key=True),
    sa.Column("annotator", sa.String(80), sa.ForeignKey("annotators.name"), primary_key=True),
    sa.Column("final", sa.Boolean, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
)
ADJUDICATIONS = sa.Table(
    "adjudications",
    metadata,
    sa.Column("task", sa.Integer, sa.ForeignKey("tasks.id"), primary_key=True),
    sa.Column("annotator", sa.String(80), sa.ForeignKey("annotators.name"), nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
)


def open_engine(location: str) -> sa.Engine:
    """The engine of a file or URL.

    Raises:
        ConfigError: it is no URL, or the package of its database is not installed.
    """
    try:
        engine = sa.create_engine(location if "://" in location else f"sqlite:///{location}")
    except (ArgumentError, ImportError) as error:  # the error's own text may hold the password
        missing = error.name if isinstance(error, ImportError) else None
        reason = f"the package {missing} is not installed" if missing else "this is no URL of a database"
        raise ConfigError(
            f"The annotation store {location.partition('://')[0]}://... cannot be opened: {reason}.",
            allowed="a SQLite file, or an SQLAlchemy URL whose package is installed",
            fix="pip install the package, or name a file with --store",
        ) from error
    if engine.dialect.name == "sqlite":
        _make_private(engine.url.database)
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _make_private(file: str | None) -> None:
    """Create a new SQLite file for its owner alone: it holds what sessions are signed with."""
    with contextlib.suppress(OSError):  # it exists, or the connection reports the error
        if file and file != ":memory:":
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def location_of(url: sa.URL) -> str:
    """A store as messages name it: a file, or a URL without its password."""
    return str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
