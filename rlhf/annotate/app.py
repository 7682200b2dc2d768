"""The server behind the page: FastAPI, JSON in and out, a session cookie on every request but the sign-in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from rlhf.annotate.agreement import is_disputed, progress
from rlhf.annotate.records import STRENGTHS, Annotation, Annotator, Submission, by_task
from rlhf.annotate.store import ChangedElsewhereError, SaveError, Store
from rlhf.annotate.tasks import Task
from rlhf.core.records import HELPSTEER_ATTRIBUTES
from rlhf.web import sessions
from rlhf.web.guard import add_files, add_guard

FILES = {
    "/": ("annotate.html", "text/html"),
    "/annotate.js": ("annotate.js", "text/javascript"),
    "/annotate.css": ("annotate.css", "text/css"),
}
LARGEST_NUMBER = 2**31 - 1
"""Of a task, in any database."""
LONGEST_SECONDS = 86_400.0
"""Time on one task that is counted: a page may stay open for days."""
SIDES = ("left response", "right response")


@dataclass(frozen=True)
class Settings:
    """How a project is annotated."""

    per_task: int = 3
    """Annotators of each task."""
    seed: int = 0
    """Of the side on which a response is shown."""
    session_hours: float = sessions.HOURS


class Saved(BaseModel):
    """What the page sends: a submission in terms of the sides that were shown."""

    model_config = ConfigDict(extra="forbid")

    submission: Submission
    final: bool = False
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    version: float | None = None
    """The version that the page showed, 0 where nothing was saved; None replaces any."""


def is_swapped(task: int, annotator: str, seed: int) -> bool:
    """Whether response 2 is shown on the left: random, and the same whenever a person sees a task."""
    return hashlib.sha256(f"{seed}/{task}/{annotator}".encode()).digest()[0] % 2 == 1


def cookie_of(store: Store) -> str:
    """The session cookie's name. A browser shares cookies between the ports of a host, so projects differ."""
    return f"rlhf_annotate_{store.project}"


def person(request: Request) -> Annotator:
    """The annotator whose cookie came with a request.

    Raises:
        HTTPException: 401, where there is none, or it is forged or expired.
    """
    store: Store = request.app.state.store
    name = sessions.name_of(request.cookies.get(cookie_of(store), ""), store.session_secret)
    annotator = None if name is None else store.annotator(name)
    if annotator is None:
        raise HTTPException(401, "Sign in again; what you wrote is kept in this browser.")
    return annotator


Person = Annotated[Annotator, Depends(person)]


@dataclass(frozen=True)
class Project:
    """The tasks of a store as one annotator sees them: responses by the side on which they are shown."""

    store: Store
    settings: Settings

    def next_task(self, annotator: Annotator) -> int | None:
        """The number of the next task; for an adjudicator a disputed one; None if none is left."""
        if not annotator.adjudicates:
            return self.store.claim(annotator.name, self.settings.per_task)
        decided = self.store.adjudications()
        for number, group in by_task(self.store.annotations()).items():
            if number not in decided and is_disputed(group, self.settings.per_task):
                return number
        return None

    def shown(self, number: int, annotator: Annotator) -> dict[str, Any]:
        """A task and what was saved of it; for an adjudicator also the annotations of others, without names.

        Raises:
            HTTPException: 404, where there is no such task.
        """
        task = self.task(number)
        swapped = is_swapped(number, annotator.name, self.settings.seed)
        saved = self._saved(number, annotator)
        others = self.store.annotations(task=number) if annotator.adjudicates else []

        def by_side(submission: Submission) -> dict[str, Any]:
            return (submission.swapped() if swapped else submission).model_dump()

        return {
            **_sides(task, swapped),
            "number": number,
            "attributes": HELPSTEER_ATTRIBUTES,
            "strengths": STRENGTHS,
            "submission": by_side(Submission() if saved is None else saved.submission),
            "final": saved is not None and saved.final,
            "seconds": 0.0 if saved is None else saved.seconds,
            "version": 0.0 if saved is None else saved.version,
            "others": [
                {"annotator": f"annotator {place}", **by_side(other.submission)}
                for place, other in enumerate(others, 1)
            ],
        }

    def save(self, number: int, content: Saved, annotator: Annotator) -> float | None:
        """Save a submission, or the decision of an adjudicator; returns the version, or None for a draft in
        place of a final one, which stays.

        Raises:
            HTTPException: 404, where there is no such task; 409, where another version was saved since; 422,
                where a final submission is incomplete.
        """
        self.task(number)
        if content.final and (missing := content.submission.missing(SIDES)):
            raise HTTPException(422, f"Still missing: {'; '.join(missing)}.")
        swapped = is_swapped(number, annotator.name, self.settings.seed)
        submission = content.submission.swapped() if swapped else content.submission
        try:
            if annotator.adjudicates and content.final:
                return self.store.adjudicate(number, annotator.name, submission, version=content.version)
            if annotator.adjudicates and self.store.decision(number) is not None:
                return None
            return self.store.save(
                number,
                annotator.name,
                submission,
                final=content.final,
                seconds=min(content.seconds, LONGEST_SECONDS),
                version=content.version,
            )
        except ChangedElsewhereError:
            raise HTTPException(
                409, "This task was changed in another window. Its last version is shown."
            ) from None

    def _saved(self, number: int, annotator: Annotator) -> Annotation | None:
        """What a person sees as theirs: of an adjudicator the decision of the task, or their draft of one."""
        own = self.store.saved(number, annotator.name)
        if not annotator.adjudicates:
            return own
        return self.store.decision(number) or (None if own is None or own.final else own)

    def progress(self, annotator: Annotator) -> dict[str, Any]:
        """Counts of all annotations, and of the annotator's own."""
        annotations, adjudicated = self.store.annotations(), set(self.store.adjudications())
        counts = progress(self.store.count_tasks(), annotations, self.settings.per_task, adjudicated)
        return counts | {"own": sum(a.annotator == annotator.name for a in annotations)}

    def task(self, number: int) -> Task:
        """The task of a number.

        Raises:
            HTTPException: 404, where there is none.
        """
        task = self.store.task(number) if 0 < number <= LARGEST_NUMBER else None
        if task is None:
            raise HTTPException(404, f"There is no task {number}.")
        return task


def build_app(store: Store, settings: Settings, waiting: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application around a store.

    Args:
        waiting: whether further tasks will be added; the page then asks again.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = store
    project = Project(store, settings)
    add_guard(app)
    add_files(app, "rlhf.annotate", FILES)

    @app.exception_handler(SaveError)
    async def not_saved(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"Not saved: {getattr(error, 'orig', error)}"}, 507)

    @app.post("/api/session")
    def sign_in(content: sessions.SignIn, response: Response) -> dict[str, Any]:
        annotator = store.annotator_of(content.token.strip())
        if annotator is None:
            raise HTTPException(401, "This token is not known here.")
        cookie = sessions.sign(
            annotator.name, store.session_secret(annotator.name) or "", settings.session_hours
        )
        response.set_cookie(cookie_of(store), cookie, httponly=True, samesite="strict")
        return session(annotator)

    @app.delete("/api/session")
    def sign_out(response: Response) -> dict[str, bool]:
        response.delete_cookie(cookie_of(store))
        return {"ok": True}

    @app.get("/api/session")
    def session(annotator: Person) -> dict[str, Any]:
        return {"name": annotator.name, "adjudicates": annotator.adjudicates, "project": store.project}

    @app.get("/api/next")
    def next_task(annotator: Person) -> dict[str, Any]:
        more = waiting()  # asked first: a task that is added in between is then not missed
        number = project.next_task(annotator)
        return {"task": None if number is None else project.shown(number, annotator), "waiting": more}

    @app.get("/api/tasks/{number}")
    def one_task(number: int, annotator: Person) -> dict[str, Any]:
        return {"task": project.shown(number, annotator)}

    @app.put("/api/tasks/{number}")
    def save(number: int, content: Saved, annotator: Person) -> dict[str, Any]:
        return {"version": project.save(number, content, annotator)}

    @app.get("/api/progress")
    def whole_progress(annotator: Person) -> dict[str, Any]:
        return project.progress(annotator)

    return app


def _sides(task: Task, swapped: bool) -> dict[str, Any]:
    first, second = (task.response_2, task.response_1) if swapped else (task.response_1, task.response_2)
    return {"prompt": task.messages, "left": first, "right": second}
