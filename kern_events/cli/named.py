"""Objects that the command line names as `module:name`: event types, projectors.

Only what the user types is imported, never a name from a database.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click


def named(what: str, value: str) -> Any:
    """The object behind `module:name`, from the current directory or what is installed.

    Raises:
        BadParameter: There is no such module, or no such name in it.
    """
    module, separator, name = value.partition(":")
    if not (separator and module and name):
        raise click.BadParameter(f"{value!r} is not {what} as in shop.events:TYPES")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise click.BadParameter(f"there is no module {error.name!r}") from None
    except AttributeError:
        raise click.BadParameter(f"the module {module!r} has no {name!r}") from None
