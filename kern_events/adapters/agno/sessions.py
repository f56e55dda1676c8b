"""The log of an Agno Db: Sessions whose restores and forks Agno sees at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from kern_events import Branches, Draft, Event, Head, PendingReceipt, Receipt, Report, spi
from kern_events.adapters.agno.folding import AgnoProjector, Stored
from kern_events.adapters.agno.wholes import whole_at
from kern_events.errors import SessionNotFound, VersionConflict
from projections.aio import AsyncSessions
from projections.sessions import DeleteReceipt, Progress, Sessions
from projections.travel import Diff, Step

if TYPE_CHECKING:
    from kern_events.adapters.agno.recorder import Recorder
    from kern_events.batch import Batch
    from kern_events.store.base import Expected, Landed
    from kern_events.turn import Claims


class AgnoSessions(Sessions):
    """Sessions of an Agno Db: everything that Sessions does, on what Agno has stored.

    A turn is a top-level run. What Agno's tables have of a session and the log does not is recorded before
    any verb here does something with that session (what is about all sessions, as `sessions`, has those that
    are recorded: see `adopt` of the Db), and what `restore` and `fork` make is in Agno's tables when they
    return.

    What Agno stores at once, as a run with its messages, is many events. A restore or a fork to a version
    between them goes back to before them: of half a run there is no row.

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
            version: As of a version; of one within what Agno has stored at once, before that.

        Raises:
            As load.
        """
        if turn is not None or version is not None:
            self._settle(session_id)
            point = spi.point(self, session_id, self.head(session_id), turn=turn, version=version)
            version = whole_at(self, session_id, point)
        found: Stored = self.load(session_id, version=version, projector=AgnoProjector())
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

    def diff(self, session_id: str, a: int, b: int) -> Diff:
        """See Sessions.diff."""
        self._settle(session_id)
        return super().diff(session_id, a, b)

    def preview_restore(self, session_id: str, **options: Any) -> Diff:
        """See Sessions.preview_restore."""
        self._settle(session_id)
        return super().preview_restore(session_id, **options)

    def branches(self, session_id: str) -> Branches:
        """See SessionLog.branches."""
        self._settle(session_id)
        return super().branches(session_id)

    def head(self, session_id: str) -> Head:
        """See SessionLog.head."""
        self._kern.take_over(session_id)
        return super().head(session_id)

    def verify(self, session_id: str | None = None, **options: Any) -> Report:
        """See SessionLog.verify."""
        if session_id is not None:
            self._kern.settle(session_id)
        return super().verify(session_id, **options)

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

    def delete(
        self, session_id: str, *, actor: str | None = None, progress: Progress | None = None
    ) -> DeleteReceipt:
        """See Sessions.delete; Agno's rows go too."""
        self._kern.settle(session_id)
        receipt = super().delete(session_id, actor=actor, progress=progress)
        self.forget(session_id)
        return receipt

    def append(self, session_id: str, drafts: Sequence[Draft], **options: Any) -> Any:
        """See SessionLog.append; what Agno's tables have of the session comes first."""
        if options.get("connection") is not None:
            self._kern.take_over(session_id, erasing=True, within=options["connection"])
        return super().append(session_id, drafts, **options)

    # What the other verbs, and those of AsyncSessions, do their work with.

    def _record(self, batch: Batch, expected: Expected = None) -> Landed:
        self._kern.take_over(batch.session_id, erasing=True)
        return super()._record(batch, expected)

    def _record_batches(
        self, batches: Sequence[tuple[Batch, Expected]], *, connection: Connection | None = None
    ) -> list[Receipt] | list[PendingReceipt]:
        for batch, _ in batches:
            self._kern.take_over(batch.session_id, erasing=True, within=connection)
        return super()._record_batches(batches, connection=connection)

    def _head_for(self, session_id: str, user_id: str | None) -> Head:
        self._kern.take_over(session_id, erasing=True)
        return super()._head_for(session_id, user_id)

    def _claims(self, session_id: str, turn: int | None, expected: Head | None) -> Claims:
        claims = super()._claims(session_id, turn, expected)

        def settled(conflict: VersionConflict | None) -> spi.Claim:
            self._settle(session_id)
            return claims(conflict)

        return settled

    def _read_pages(self, session_id: str, **options: Any) -> Iterator[Iterator[Event]]:
        self._settle(session_id)
        return super()._read_pages(session_id, **options)

    def _export_pages(self, session_id: str) -> Iterator[Iterator[bytes]]:
        self._settle(session_id)
        return super()._export_pages(session_id)

    def _replayed(self, session_id: str, *options: Any) -> Iterator[Step]:
        self._settle(session_id)
        return super()._replayed(session_id, *options)

    def _point_back(
        self, session_id: str, head: Head, turn: int | None, version: int | None, at_us: int | None
    ) -> int:
        found = super()._point_back(session_id, head, turn, version, at_us)
        whole = found if found == head.version else whole_at(self, session_id, found)
        return whole if whole == found else super()._point_back(session_id, head, None, whole, None)

    def _settle(self, session_id: str) -> None:
        """Bring Agno's rows and the log together, if they are apart.

        Raises:
            SessionNotFound: Others have deleted the session in Agno's tables.
        """
        if not self._kern.settle(session_id):
            raise SessionNotFound(session_id)


class AsyncAgnoSessions(AsyncSessions):
    """The log of an async Agno Db: AgnoSessions, awaited."""

    def __init__(self, sessions: AgnoSessions) -> None:
        super().__init__(sessions)
        self._agno = sessions

    async def stored(
        self, session_id: str, *, turn: int | None = None, version: int | None = None
    ) -> Stored:
        """See AgnoSessions.stored."""
        return await spi.in_thread(self, self._agno.stored, session_id, turn=turn, version=version)

    async def _record(self, batch: Batch, expected: Expected = None) -> Landed:
        await spi.in_thread(self, self._agno._kern.take_over, batch.session_id, erasing=True)
        return await super()._record(batch, expected)
