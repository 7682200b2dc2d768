"""Tasks, annotators and annotations in a database: SQLite by default, or any SQLAlchemy URL.

Every change is one committed transaction, so a killed server loses nothing that was acknowledged. SQLite runs
in WAL mode with `synchronous=FULL`.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from rlhf.annotate.database import (
    ADJUDICATIONS,
    ANNOTATIONS,
    ANNOTATORS,
    META,
    TASKS,
    location_of,
    metadata,
    open_engine,
)
from rlhf.annotate.records import Annotation, Annotator, Submission
from rlhf.annotate.tasks import Task, as_messages
from rlhf.core.errors import DataError, OutputError

VERSION = "1"
LEASE = 30 * 60.0
"""Seconds for which a task that an annotator opened counts as taken, if nothing is saved."""


class ChangedElsewhereError(Exception):
    """What is saved now was saved after the version that a change is based on."""


class Store:
    """The database of one annotation project.

    Args:
        location: a file (SQLite, made where it does not exist) or an SQLAlchemy URL.

    Raises:
        DataError: the file is no database, or one of another version of this project.
        OutputError: it cannot be opened or written.
    """

    def __init__(self, location: str | Path) -> None:
        self.engine = open_engine(str(location))
        self.location = location_of(self.engine.url)
        self._claims = threading.Lock()
        try:
            metadata.create_all(self.engine)
            with self.engine.begin() as connection:
                version = connection.execute(sa.select(META.c.value).where(META.c.key == "version")).scalar()
                if version is None:
                    connection.execute(sa.insert(META).values(key="version", value=VERSION))
                    connection.execute(sa.insert(META).values(key="secret", value=secrets.token_hex(32)))
        except DatabaseError as error:
            reason = str(error.orig or error)
            raise OutputError(
                f"The annotation store {self.location} cannot be used: {reason}",
                allowed="a SQLite file made by `rlhf annotate`, a new file, or an SQLAlchemy URL",
                fix="name another file with --store",
            ) from error
        if version not in (None, VERSION):
            raise DataError(
                f"The annotation store {self.location} has version {version}; this program writes "
                f"version {VERSION}.",
                fix="export it with the version of rlhf that wrote it, or start a new store with --store",
            )

    @cached_property
    def project(self) -> str:
        """An identifier of this store, which is no secret."""
        return _hash(f"project {self._secret}")[:12]

    def session_secret(self, name: str) -> str | None:
        """The key that a person's session cookies are signed with; None where there is no such person.

        A new token changes it, so that whoever used the old one is signed out.
        """
        with self.engine.connect() as connection:
            person = sa.select(ANNOTATORS.c.token_hash).where(ANNOTATORS.c.name == name)
            token_hash = connection.execute(person).scalar()
        return None if token_hash is None else f"{self._secret}{token_hash}"

    @cached_property
    def _secret(self) -> str:
        with self.engine.connect() as connection:
            return str(connection.execute(sa.select(META.c.value).where(META.c.key == "secret")).scalar_one())

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Add the tasks that are not there yet; returns how many."""
        with self.engine.begin() as connection:
            known = set(connection.execute(sa.select(TASKS.c.key)).scalars())
            new = {task.key: task for task in tasks if task.key not in known}
            rows = [
                {"key": key, "prompt": t.messages, "response_1": t.response_1, "response_2": t.response_2}
                for key, t in new.items()
            ]
            if rows:
                connection.execute(sa.insert(TASKS), rows)
            return len(rows)

    def add_annotator(self, name: str, *, adjudicates: bool = False) -> str:
        """Add a person, or give a known one a new token; returns the token, which is stored as a hash
        only."""
        token = secrets.token_urlsafe(24)
        values = {"token_hash": _hash(token), "adjudicates": adjudicates}
        with self.engine.begin() as connection:
            changed = connection.execute(
                sa.update(ANNOTATORS).where(ANNOTATORS.c.name == name).values(**values)
            )
            if not changed.rowcount:
                connection.execute(sa.insert(ANNOTATORS).values(name=name, **values))
        return token

    def annotators(self) -> list[Annotator]:
        """Everybody with a token, by name."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(ANNOTATORS).order_by(ANNOTATORS.c.name)).all()
        return [Annotator(row.name, row.adjudicates) for row in rows]

    def annotator_of(self, token: str) -> Annotator | None:
        """Whose token this is."""
        return self._annotator(ANNOTATORS.c.token_hash == _hash(token))

    def annotator(self, name: str) -> Annotator | None:
        """The person of this name."""
        return self._annotator(ANNOTATORS.c.name == name)

    def _annotator(self, condition: Any) -> Annotator | None:
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(ANNOTATORS).where(condition)).first()
        return None if row is None else Annotator(row.name, row.adjudicates)

    def tasks(self) -> dict[int, Task]:
        """All tasks by number."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(TASKS).order_by(TASKS.c.id)).all()
        return {row.id: Task(as_messages(row.prompt), row.response_1, row.response_2) for row in rows}

    def count_tasks(self) -> int:
        """How many tasks there are."""
        with self.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(TASKS)).scalar_one())

    def count_untouched(self) -> int:
        """Number of tasks that nobody has opened."""
        opened = sa.select(ANNOTATIONS.c.task)
        with self.engine.begin() as connection:
            query = sa.select(sa.func.count()).select_from(TASKS).where(TASKS.c.id.not_in(opened))
            return int(connection.execute(query).scalar() or 0)

    def task(self, number: int) -> Task | None:
        """One task, or None."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(TASKS).where(TASKS.c.id == number)).first()
        return None if row is None else Task(as_messages(row.prompt), row.response_1, row.response_2)

    def annotations(self, *, task: int | None = None) -> list[Annotation]:
        """Final annotations by task and time, of all tasks or of one."""
        query = sa.select(ANNOTATIONS).order_by(
            ANNOTATIONS.c.task, ANNOTATIONS.c.updated, ANNOTATIONS.c.annotator
        )
        query = query.where(ANNOTATIONS.c.final)
        if task is not None:
            query = query.where(ANNOTATIONS.c.task == task)
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        return [_annotation(row) for row in rows]

    def adjudications(self) -> dict[int, Submission]:
        """The adjudicator's decisions by task."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(ADJUDICATIONS)).all()
        return {row.task: Submission.model_validate(row.content) for row in rows}

    def claim(self, annotator: str, per_task: int) -> int | None:
        """The number of the next task for a person, which counts as taken from now on; None where nothing is
        left.

        A draft of their own comes first, then the task with the most annotations that is not complete: tasks
        are finished one after another. A task that others opened and left for longer than `LEASE` is free
        again.
        """
        now = time.time()
        with self._claims, self.engine.begin() as connection:
            annotated = connection.execute(
                sa.select(ANNOTATIONS).where(ANNOTATIONS.c.annotator == annotator)
            ).all()
            drafts = sorted((row for row in annotated if not row.final), key=lambda row: row.updated)
            if drafts:
                return int(drafts[0].task)
            counted = sa.case((ANNOTATIONS.c.final | (ANNOTATIONS.c.updated > now - LEASE), 1), else_=0)
            taken = sa.func.coalesce(sa.func.sum(counted), 0)
            query = (
                sa.select(TASKS.c.id)
                .outerjoin(ANNOTATIONS, ANNOTATIONS.c.task == TASKS.c.id)
                .where(TASKS.c.id.not_in([row.task for row in annotated]))
                .group_by(TASKS.c.id)
                .having(taken < per_task)
                .order_by(taken.desc(), TASKS.c.id)
                .limit(1)
            )
            number = connection.execute(query).scalar()
            if number is not None:
                row = {"task": number, "annotator": annotator, "final": False, "seconds": 0.0}
                connection.execute(sa.insert(ANNOTATIONS).values(**row, content={}, updated=now))
            return number

    def save(
        self,
        task: int,
        annotator: str,
        submission: Submission,
        *,
        final: bool,
        seconds: float,
        version: float | None = None,
    ) -> float | None:
        """Save a draft or a final annotation; returns its version, or None for a draft in place of a final
        one, which stays.

        Args:
            version: the version that was changed, 0 where there was none; None replaces any.

        Raises:
            ChangedElsewhereError: another version with other content was saved since.
        """
        content, now = submission.model_dump(), time.time()
        values = {"content": content, "final": final, "seconds": seconds, "updated": now}
        is_own = (ANNOTATIONS.c.task == task) & (ANNOTATIONS.c.annotator == annotator)
        with self._claims, self.engine.begin() as connection:
            row = connection.execute(sa.select(ANNOTATIONS).where(is_own)).first()
            _expect_version(row, version, content)
            if row is None:
                connection.execute(sa.insert(ANNOTATIONS).values(task=task, annotator=annotator, **values))
            elif final or not row.final:
                connection.execute(sa.update(ANNOTATIONS).where(is_own).values(**values))
            else:
                return None
        return now

    def saved(self, task: int, annotator: str) -> Annotation | None:
        """What a person saved of a task."""
        is_own = (ANNOTATIONS.c.task == task) & (ANNOTATIONS.c.annotator == annotator)
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(ANNOTATIONS).where(is_own)).first()
        return None if row is None else _annotation(row)

    def adjudicate(
        self, task: int, annotator: str, submission: Submission, *, version: float | None = None
    ) -> float:
        """Save the adjudicator's decision; returns its version.

        Raises:
            ChangedElsewhereError: see `save`.
        """
        content, now = submission.model_dump(), time.time()
        values = {"annotator": annotator, "content": content, "updated": now}
        with self._claims, self.engine.begin() as connection:
            row = connection.execute(sa.select(ADJUDICATIONS).where(ADJUDICATIONS.c.task == task)).first()
            if row is None:
                connection.execute(sa.insert(ADJUDICATIONS).values(task=task, **values))
            else:
                _expect_version(row, version, content)
                connection.execute(
                    sa.update(ADJUDICATIONS).where(ADJUDICATIONS.c.task == task).values(**values)
                )
        return now

    def decision(self, task: int) -> Annotation | None:
        """The adjudicator's decision of a task, and who took it."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(ADJUDICATIONS).where(ADJUDICATIONS.c.task == task)).first()
        if row is None:
            return None
        submission = Submission.model_validate(row.content)
        return Annotation(task, row.annotator, True, submission, 0.0, row.updated)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


@contextmanager
def opened(location: str | Path) -> Iterator[Store]:
    """A store that exists already, closed at the end.

    Raises:
        DataError: there is no such file.
    """
    if "://" not in str(location) and not Path(location).is_file():
        raise DataError(
            f"There is no annotation store {location}.",
            allowed="the file that `rlhf annotate serve` wrote (--store)",
        )
    store = Store(location)
    try:
        yield store
    finally:
        store.close()


SaveError = SQLAlchemyError
"""What a save raises where the disk is full or the database is gone."""


def _annotation(row: Any) -> Annotation:
    submission = Submission.model_validate(row.content or {})
    return Annotation(row.task, row.annotator, row.final, submission, row.seconds, row.updated)


def _expect_version(row: Any, version: float | None, content: dict[str, Any]) -> None:
    """Refuse to replace a row by a change of another version; the same content again is no change."""
    if version is None or row is None or row.updated == version or row.content == content:
        return
    raise ChangedElsewhereError


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
