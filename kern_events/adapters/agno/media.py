"""Media that Agno is told not to store, or to store elsewhere, before it has done so."""

from __future__ import annotations

from typing import Any, Final

from kern_events.adapters.agno.folding import Row

_KINDS: Final = frozenset(
    {"images", "videos", "audio", "audios", "files", "response_audio"}
    | {"image_output", "video_output", "audio_output", "file_output"}
)
_LEFT_OUT: Final = "_kern_leaves_out_media"


def leave_out(component: Any, run: Any) -> None:
    """Before a background run: with `store_media=False` its media are not stored while it waits, either.

    Agno scrubs a run when it ends, and by then a log would have them.
    """
    if run is not None and getattr(component, "store_media", True) is False:
        run.__dict__[_LEFT_OUT] = True


def data_of(run: Any) -> Row:
    """A run as Agno serialises it, without the media of its input if they are not to be stored."""
    data: Row = run if isinstance(run, dict) else run.to_dict()
    said = data.get("input")
    if isinstance(run, dict) or _LEFT_OUT not in run.__dict__ or not isinstance(said, dict):
        return data
    return {**data, "input": {key: value for key, value in said.items() if key not in _KINDS}}


def leaves_out_media(run: Any) -> bool:
    """Whether media of a run's input are not to be stored."""
    return not isinstance(run, dict) and _LEFT_OUT in run.__dict__


def has_media(value: Any) -> bool:
    """Whether there are media anywhere in what Agno serialises a run to."""
    if isinstance(value, dict):
        return any((key in _KINDS and bool(item)) or has_media(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and any(map(has_media, value))
