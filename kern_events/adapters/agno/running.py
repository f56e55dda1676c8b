"""Where Agno's runs end: what could not be stored leaves them as an Exception, and with its say.

`NotStored` is no Exception, so that it goes through what Agno catches around its writes. Whoever runs Agno,
its own background tasks and AgentOS too, catches Exception alone: one that goes past them cuts a stream off
and leaves a background run as it was. So Agno's functions that make up a run are wrapped, each at its outer
edge, where nothing swallows any more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

from agno.agent import _run as agent_runs
from agno.run import status_persist
from agno.run.base import RunStatus
from agno.run.team import TeamRunOutput
from agno.run.workflow import WorkflowErrorEvent, WorkflowRunOutput
from agno.team import _run as team_runs
from agno.utils.events import create_run_error_event, create_team_run_error_event
from agno.workflow import workflow as workflow_runs

from kern_events.adapters.agno.aio import KernAsyncDb
from kern_events.adapters.agno.db import KernDb, NotStored
from kern_events.adapters.agno.media import leave_out

_RUNS: Final = (
    *("_run", "_arun", "_run_stream", "_arun_stream", "_continue_run", "_acontinue_run"),
    *("_continue_run_stream", "_acontinue_run_stream", "_continue_run_dispatch_stream_with_member_events"),
)
_WORKFLOWS: Final = (
    *("_execute", "_aexecute", "_execute_stream", "_aexecute_stream", "_continue_execute"),
    *("_acontinue_execute", "_continue_execute_stream", "_acontinue_execute_stream"),
    *("_run_workflow_agent", "_arun_workflow_agent"),
    *("_run_workflow_agent_stream", "_arun_workflow_agent_stream"),
)
_BACKGROUND: Final = (
    *("_arun_background", "_arun_background_stream", "_arun_background_stream_ws"),
    *("_acontinue_run_background_stream", "_acontinue_run_background_stream_ws"),
)
_TRANSITION: Final = "apersist_run_transition"
_unseen: ContextVar[bool] = ContextVar("_unseen", default=False)
"""Whether nobody but Agno's background task sees what a run raises."""


class RunNotStored(NotStored, Exception):
    """NotStored, as it leaves Agno's run: an Exception, which nobody between here and the caller swallows."""

    def __init__(self, failure: NotStored) -> None:
        BaseException.__init__(self, *failure.args)
        self.operation, self.session_id, self.run_id = failure.operation, failure.session_id, failure.run_id


@contextmanager
def _leaving(options: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except NotStored as failure:
        run = _run_of(options)
        if run is not None:
            run.status, run.content = RunStatus.error, str(failure)
        left = failure if isinstance(failure, RunNotStored) else RunNotStored(failure)
        raise left from failure.__cause__


def _run_of(options: dict[str, Any]) -> Any:
    return options.get("run_response") or options.get("workflow_run_response")


def _ending(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a run, of whatever kind, from which NotStored comes as an Exception."""
    if inspect.isasyncgenfunction(work):

        async def stream(*args: Any, **options: Any) -> Any:
            try:
                with _leaving(options):
                    async with aclosing(work(*args, **options)) as events:
                        async for event in events:
                            yield event
            except RunNotStored as failure:
                if _unseen.get() and (run := _run_of(options)) is not None:
                    yield _error_event(run, failure)
                raise

        return wraps(work)(stream)
    if inspect.isgeneratorfunction(work):

        def streamed(*args: Any, **options: Any) -> Any:
            with _leaving(options):
                return (yield from work(*args, **options))

        return wraps(work)(streamed)
    if inspect.iscoroutinefunction(work):

        async def awaited(*args: Any, **options: Any) -> Any:
            with _leaving(options):
                return await work(*args, **options)

        return wraps(work)(awaited)

    def called(*args: Any, **options: Any) -> Any:
        with _leaving(options):
            return work(*args, **options)

    return wraps(work)(called)


def _error_event(run: Any, failure: RunNotStored) -> Any:
    """As Agno ends a stream that failed."""
    if isinstance(run, WorkflowRunOutput):
        ids = {key: getattr(run, key) for key in ("workflow_id", "workflow_name", "session_id")}
        return WorkflowErrorEvent(run_id=run.run_id or "", error=str(failure), **ids)
    make = create_team_run_error_event if isinstance(run, TeamRunOutput) else create_run_error_event
    return make(run, error=str(failure))


def _beginning(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function that begins a run in a background task: the task takes over that nobody sees it."""
    ending = _ending(work)
    if inspect.isasyncgenfunction(work):

        async def stream(self: Any, *args: Any, **options: Any) -> Any:
            leave_out(self, _run_of(options))
            async with aclosing(ending(self, *args, **options)) as events:
                while True:
                    seen = _unseen.set(True)  # Its first step makes the task; no other code runs within one.
                    try:
                        event = await anext(events, None)
                    finally:
                        _unseen.reset(seen)
                    if event is None:
                        return
                    yield event

        return wraps(work)(stream)

    async def awaited(self: Any, *args: Any, **options: Any) -> Any:
        leave_out(self, _run_of(options))
        seen = _unseen.set(True)
        try:
            return await ending(self, *args, **options)
        finally:
            _unseen.reset(seen)

    return wraps(work)(awaited)


def _owned(work: Callable[..., Any]) -> Callable[..., Any]:
    """Agno's write of a run that a worker of its queue owns, around which it catches every Exception, too."""
    signature = inspect.signature(work)

    def told(error: Exception, arguments: dict[str, Any]) -> Any:
        db, run_id = arguments["db"], arguments["run"].run_id

        def fail() -> None:
            raise error

        told_by = db._taken if inspect.iscoroutinefunction(db.upsert_run) else db._stored
        return told_by("upsert_run", arguments["session_id"], run_id, fail, lambda: [run_id])

    async def awaited(*args: Any, **options: Any) -> Any:
        try:
            return await work(*args, **options)
        except Exception as error:
            arguments = signature.bind(*args, **options).arguments
            if not isinstance(arguments["db"], (KernDb, KernAsyncDb)):
                raise
            answer = told(error, arguments)
            return await answer if inspect.isawaitable(answer) else answer

    def called(*args: Any, **options: Any) -> Any:
        try:
            return work(*args, **options)
        except Exception as error:
            arguments = signature.bind(*args, **options).arguments
            if not isinstance(arguments["db"], KernDb):
                raise
            return told(error, arguments)

    return wraps(work)(awaited if inspect.iscoroutinefunction(work) else called)


def _wrap(owner: Any, names: tuple[str, ...], wrapped: Callable[[Any], Any]) -> None:
    for name in names:
        if name in vars(owner):
            setattr(owner, name, wrapped(vars(owner)[name]))


_wrap(status_persist, (_TRANSITION,), _ending)
_wrap(status_persist, ("persist_worker_owned_run", "apersist_worker_owned_run"), _owned)
for _module in (agent_runs, team_runs, workflow_runs):
    _wrap(_module, (_TRANSITION,), lambda _: getattr(status_persist, _TRANSITION))
for _module in (agent_runs, team_runs):
    _wrap(_module, _RUNS, _ending)
    _wrap(_module, _BACKGROUND, _beginning)
_wrap(workflow_runs.Workflow, _WORKFLOWS, _ending)
_wrap(workflow_runs.Workflow, _BACKGROUND, _beginning)
