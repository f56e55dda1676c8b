"""Which versions are between two of Agno's writes: what it stores at once is many events.

At a version within them there is half of a run, which has no row, so nobody goes back to there: to go back
to one of its messages is to go back to before it was said.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NamedTuple

from kern_events import SessionLog, spi
from kern_events.adapters.agno.native import group_of, load
from kern_events.errors import SessionClosed, VersionConflict
from kern_events.spi import Kind

_PAGE: Final = 100
_LAST: Final = 2**63 - 1
_KEPT: Final = ("user_id", "name", "metadata")


def whole_at(log: SessionLog, session_id: str, version: int) -> int:
    """The last version up to this one of which Agno's tables have had the rows.

    What a run was asked ahead (`db.asked`) is no row, so it goes with what is stored of that run next.

    Args:
        log: The log.
        session_id: The session.
        version: One of its versions.
    """
    path = spi.live_path(log, session_id, version)
    if not path:
        return version
    owner = path[-1].session_id
    group = _group_behind(log, owner, version)
    if group is None or not 0 <= group.before <= version:
        return version
    return group.before - _asked_at(log, owner, group.before, group.run_id)


class _Group(NamedTuple):
    """What was recorded as one, with what Agno has stored at once: the version before, and the run."""

    before: int
    run_id: Any


def _group_behind(log: SessionLog, owner: str, version: int) -> _Group | None:
    """The one that ends next behind a version, unless a turn begins or another branch does before."""
    after = version
    while True:
        events, _ = spi.page(log, owner, after, _LAST, _PAGE)
        for event in events:
            if event.kind in (Kind.TURN_START, Kind.RESTORE):
                return None
            if group := group_of(event.native):
                return _Group(event.version - group, load(event.native or b"", []).get("run"))
        if not events:
            return None
        after = events[-1].version


def _asked_at(log: SessionLog, owner: str, version: int, run_id: Any) -> int:
    """How many events that end here say what a run was asked ahead; 0 if none does."""
    events, _ = spi.page(log, owner, version - 1, version, 1) if version else ([], 0)
    native = events[0].native if events else None
    if not native or run_id is None or load(native, []).get("asked") != run_id:
        return 0
    return min(max(group_of(native), 1), version)


def step_back(log: SessionLog, session_id: str) -> bool:
    """Have a session not go on from within what Agno has stored at once.

    Who restores or forks by other means than the Db's own may have chosen such a version: one more restore
    goes back to before it.

    Returns:
        Whether that was so.
    """
    head = SessionLog.head(log, session_id)
    target = _gone_back_to(log, session_id, head.version) if head.status == "open" else None
    if target is None:
        return False
    whole = whole_at(log, session_id, target)
    if whole == target:
        return False
    described = spi.described(log, session_id)
    kept = {field: described.get(field) for field in _KEPT}
    with suppress(VersionConflict, SessionClosed):  # Somebody has gone on from there.
        spi.restore(log, session_id, whole, kept, head, actor=None)
    return True


def _gone_back_to(log: SessionLog, session_id: str, version: int) -> int | None:
    """Where a session went back to with its last event, or was forked with it; None if with neither."""
    restores = spi.restores(log, session_id)
    if restores and restores[-1][0] == version:
        return restores[-1][1]
    own = spi.own_path(log, session_id, version)
    return version - 1 if own and own[0].first == version else None
