"""Where Agno makes a Db again from another or from a stored configuration: it becomes one of ours too.

Agno asks `isinstance` and the class's name, and would make a plain Db that writes around the log. So its two
functions for that are wrapped, for Dbs of ours alone; and our classes have the names that its migrations
look for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from agno.db import utils

MARK: Final = "kern_events"
"""The key of a stored configuration that says that it is one of ours."""

_SHARED: Final = "shared"
_CLONE: Final = "_clone_db_with_table_overrides"
_kinds: dict[str, Any] = {}


def stands_for(plain: type, config_type: str) -> Callable[[Any], Any]:
    """Decorates a class of ours: what Agno does with the plain class by its name, it does with this one."""

    def decorated(ours: Any) -> Any:
        ours.__init__.__signature__ = _signature(plain, ours)
        ours.__name__ = plain.__name__  # Not its __qualname__, by which it is shown and pickled.
        ours.plain = plain
        _kinds[config_type] = ours
        return ours

    return decorated


def marked(db: Any) -> dict[str, Any]:
    """What the stored configuration of one of ours has beside Agno's."""
    return {MARK: True, **({_SHARED: True} if db.shared else {})}


def _signature(plain: Any, ours: Any) -> inspect.Signature:
    """The parameters of Agno's constructor, and those that ours adds."""
    own = [each for each in inspect.signature(ours).parameters.values() if each.kind is each.KEYWORD_ONLY]
    agnos = inspect.signature(plain.__init__).parameters.values()
    return inspect.Signature([*agnos, *own])


def _db_from_dict(db_data: dict[str, Any]) -> Any:
    kind = _kinds.get(str(db_data.get("type")))
    if kind is None or not db_data.get(MARK):
        return _plain_from_dict(db_data)
    db = kind.from_dict(db_data)
    db.shared = bool(db_data.get(_SHARED))
    return db


def _clone(source_db: Any, db_data: dict[str, Any]) -> Any:
    kinds = set(_kinds.values())
    ours: Any = next((kind for kind in type(source_db).__mro__ if kind in kinds), None)
    if ours is None or inspect.iscoroutinefunction(source_db.get_session):
        return _plain_clone(source_db, db_data)
    taken = inspect.signature(ours.plain.__init__).parameters
    options = {key: value for key, value in db_data.items() if key in taken and key.endswith("_table")}
    for key in ("db_file", "db_url", "db_engine", "db_schema", "create_schema", "id"):
        if key in taken and hasattr(source_db, key):
            options[key] = getattr(source_db, key)
    return ours(**options, shared=source_db.shared)


_plain_from_dict: Final = utils.db_from_dict
_plain_clone: Final = getattr(utils, _CLONE, lambda source_db, db_data: None)
utils.db_from_dict = _db_from_dict
if hasattr(utils, _CLONE):
    setattr(utils, _CLONE, _clone)
