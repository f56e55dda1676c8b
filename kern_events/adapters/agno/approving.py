"""Approvals, which Agno keeps in a table of their own, as events of the session that waits for them.

Arguments are there as a digest: SHA-256 over their JSON with sorted keys and no spaces. So what was asked for
can be held against what ran, whose arguments the call of the tool has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from kern_events import Draft
from kern_events.codec import check_id
from kern_events.errors import InvalidEvent

Row = dict[str, Any]

REQUESTED: Final = "approval.requested"
RESOLVED: Final = "approval.resolved"
_PENDING: Final = "pending"
_REFUSED: Final = frozenset({"rejected", "refused", "denied"})
_SAID: Final = ("note", "feedback")


class Approval(NamedTuple):
    """An approval that is to be recorded.

    Attributes:
        session_id: The session.
        run_id: The run that waits.
        drafts: Its events.
    """

    session_id: str
    run_id: str
    drafts: tuple[Draft, ...]


def digest(arguments: Any) -> str | None:
    """A digest of a tool's arguments; None where there are none."""
    if arguments is None:
        return None
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def is_id(session_id: Any) -> bool:
    """Whether the log can have a session of that id; Agno's tables take any text."""
    try:
        check_id(session_id, "session_id")
    except InvalidEvent:
        return False
    return True


def requested(row: Mapping[str, Any]) -> Approval:
    """What a row of Agno's says when it is made: a request, or, if it comes afterwards, what was decided."""
    if row.get("status") in (None, _PENDING):
        return _approval(row, Draft(REQUESTED, _request(row)))
    return _approval(row, _resolution(row, row))


def resolved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Approval | None:
    """What an update of a row has decided; None if nothing."""
    if after.get("status") in (None, _PENDING, before.get("status")):
        return None
    return _approval(after, _resolution(before, after))


def _approval(row: Mapping[str, Any], *drafts: Draft) -> Approval:
    return Approval(str(row.get("session_id") or ""), str(row.get("run_id") or ""), drafts)


def _request(row: Mapping[str, Any]) -> Row:
    calls = [_call(each) for each in _executions(row)]
    said = {**_which(row, row), "hint": row.get("pause_type"), "user_id": row.get("user_id")}
    if len(calls) > 1:
        said["calls"] = calls
    return {key: value for key, value in said.items() if value is not None}


def _resolution(before: Mapping[str, Any], after: Mapping[str, Any]) -> Draft:
    data = after.get("resolution_data")
    given = data if isinstance(data, dict) else {}
    note = next((given[key] for key in _SAID if isinstance(given.get(key), str)), None)
    said = {
        **_which(before, after),
        "decision": _decision(before, after, given),
        "by": after.get("resolved_by"),
        "at_s": after.get("resolved_at"),
        "note": note,
        "resolution": given or None,
    }
    return Draft(RESOLVED, {key: value for key, value in said.items() if value is not None})


def _which(shown: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
    """Which approval it is, of which call, and what was shown of its arguments."""
    call = next((_call(each) for each in _executions(shown)), {})
    arguments = shown.get("tool_args")
    return {
        "approval_id": row.get("id"),
        "run_id": row.get("run_id"),
        "call_id": call.get("call_id"),
        "name": shown.get("tool_name") or call.get("name"),
        "arguments_digest": call.get("arguments_digest") if arguments is None else digest(arguments),
    }


def _decision(before: Mapping[str, Any], after: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """approved, modified (with other arguments than were shown) or refused; else Agno's own word."""
    status = after.get("status")
    if status in _REFUSED:
        return "refused"
    if status != "approved":
        return str(status)
    is_other = digest(before.get("tool_args")) != digest(after.get("tool_args"))
    return "modified" if is_other or given.get("values") or given.get("tool_args") else "approved"


def _executions(row: Mapping[str, Any]) -> list[Row]:
    waits = row.get("requirements")
    listed = waits if isinstance(waits, list) else []
    found = [each.get("tool_execution") for each in listed if isinstance(each, dict)]
    return [each for each in found if isinstance(each, dict)]


def _call(execution: Row) -> Row:
    said = {
        "call_id": execution.get("tool_call_id"),
        "name": execution.get("tool_name"),
        "arguments_digest": digest(execution.get("tool_args")),
    }
    return {key: value for key, value in said.items() if value is not None}


class Approving:
    """Mixed into a Db class of Agno's: approvals that are made or decided are recorded with their row."""

    def create_approval(self, approval_data: dict[str, Any]) -> Any:
        """See Agno; recorded as `approval.requested`, or `approval.resolved` where it was decided before."""
        this, plain = cast(Any, self), cast(Any, super()).create_approval
        approval = requested(approval_data)
        if not is_id(approval.session_id):
            return plain(approval_data)
        this._get_table(table_type="approvals", create_table_if_not_found=True)
        return self._approve("create_approval", approval, lambda: (plain(approval_data), approval))

    def update_approval(self, approval_id: str, expected_status: str | None = None, **values: Any) -> Any:
        """See Agno; a decision is recorded as `approval.resolved`."""
        this, plain = cast(Any, self), cast(Any, super()).update_approval
        found = this.get_approval(approval_id)
        if found is None or not is_id(found.get("session_id")):
            return plain(approval_id, expected_status, **values)

        def work() -> tuple[Any, Approval | None]:
            before = this.get_approval(approval_id) or found
            done = plain(approval_id, expected_status, **values)
            approval = None if done is None else resolved(before, done)
            if approval is None or this._kern.has_recorded(approval.session_id, REQUESTED, approval_id):
                return done, approval
            asked = requested({**before, "status": _PENDING}).drafts
            return done, approval._replace(drafts=(*asked, *approval.drafts))

        return self._approve("update_approval", requested(found), work)

    def _approve(
        self, operation: str, approval: Approval, work: Callable[[], tuple[Any, Approval | None]]
    ) -> Any:
        this, place = cast(Any, self), (approval.session_id, approval.run_id)
        return this._stored(operation, *place, lambda: this._kern.beside(*place, work))
