"""The error that projections adds to the tree in `kern_events.errors`."""

from __future__ import annotations

from kern_events.errors import KernError


class ProjectionFailed(KernError):
    """A projector raised while it folded the event at `version`; what it raised is `__cause__`.

    Only loads with this projector fail: the session stays appendable and readable by others.
    """

    def __init__(self, projector: str, session_id: str, version: int) -> None:
        super().__init__(f"projector {projector!r} failed at version {version} of session {session_id!r}")
        self.projector = projector
        self.session_id = session_id
        self.version = version
