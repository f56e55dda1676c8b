"""The log of an Agno Db: Sessions whose restores and forks Agno sees at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kern_events import Branches, Receipt, Report, spi
from kern_events.adapters.agno.folding import AgnoProjector, Stored
from kern_events.errors import SessionNotFound
from projections.sessions import DeleteReceipt, Sessions

if TYPE_CHECKING:
    from kern_events.adapters.agno.recorder import Recorder


class AgnoSessions(Sessions):
    """Sessions of an Agno Db: everything that Sessions does, on what Agno has stored.

    A turn is a top-level run. What Agno's tables have of a session and the log does not is recorded before
    that session is read here (lists and exports have what is recorded: see `adopt` of the Db), and what
    `restore` and `fork` make is in Agno's tables when they return.

    A session that others have deleted in Agno's tables is not found here, though the log has it until the
    next write to it, or `adopt`: reading erases nothing.
    """

    _kern: Recorder

    def bind(self, recorder: Recorder) -> None:
        """For the Db that makes this."""
        self._kern = recorder

    def stored(self, session_id: str, *, turn: int | None = None, version: int | None = None) -> Stored:
        """What Agno had stored of a session, now or earlier: the row of the session, and those of its runs.

        Args:
            session_id: The session.
            turn: As of a turn: before the next one started.
            version: As of a version.

        Raises:
            As load.
        """
        found: Stored = self.load(session_id, turn=turn, version=version, projector=AgnoProjector())
        return found

    def forget(self, session_id: str) -> None:
        """Forget what is cached of a session that was deleted, and what its forks shared with it."""
        self._loader.erased(session_id)
        for touched in (session_id, *spi.descendants(self, session_id)):
            self._kern.settle(touched)
        self._kern.leave_nothing()

    def load(self, session_id: str, **options: Any) -> Any:
        """See Sessions.load."""
        self._settle(session_id)
        return super().load(session_id, **options)

    def history(self, session_id: str, **options: Any) -> Any:
        """See Sessions.history."""
        self._settle(session_id)
        return super().history(session_id, **options)

    def replay(self, session_id: str, **options: Any) -> Any:
        """See Sessions.replay."""
        self._settle(session_id)
        return super().replay(session_id, **options)

    def read(self, session_id: str, **options: Any) -> Any:
        """See SessionLog.read."""
        self._settle(session_id)
        return super().read(session_id, **options)

    def branches(self, session_id: str) -> Branches:
        """See SessionLog.branches."""
        self._settle(session_id)
        return super().branches(session_id)

    def verify(self, session_id: str | None = None, **options: Any) -> Report:
        """See SessionLog.verify."""
        if session_id is not None:
            self._kern.settle(session_id)
        return super().verify(session_id, **options)

    def export(self, session_id: str) -> Iterator[bytes]:
        """See SessionLog.export."""
        self._settle(session_id)
        return super().export(session_id)

    def restore(self, session_id: str, **options: Any) -> Receipt:
        """See Sessions.restore; Agno goes on from there: its next run sees the history and state of then."""
        self._kern.settle(session_id, erasing=True)
        receipt = super().restore(session_id, **options)
        self._kern.settle(session_id)
        return receipt

    def fork(self, session_id: str, into: str, **options: Any) -> Receipt:
        """See SessionLog.fork; run ids are keys over all sessions, so the runs have others in the fork."""
        self._kern.settle(session_id, erasing=True)
        self._kern.settle(into)
        receipt = super().fork(session_id, into, **options)
        self._kern.settle(into)
        return receipt

    def delete(self, session_id: str, *, actor: str | None = None) -> DeleteReceipt:
        """See Sessions.delete; Agno's rows go too."""
        self._kern.settle(session_id)
        receipt = super().delete(session_id, actor=actor)
        self.forget(session_id)
        return receipt

    def _settle(self, session_id: str) -> None:
        """Bring Agno's rows and the log together, if they are apart.

        Raises:
            SessionNotFound: Others have deleted the session in Agno's tables.
        """
        if not self._kern.settle(session_id):
            raise SessionNotFound(session_id)
