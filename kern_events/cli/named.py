"""Objects that the command line names as `module:name`: event types, projectors.

Only what the user types is imported, never a name from a database.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from typing import Any

import click


def named(what: str, value: str, example: str) -> Any:
    """The object behind `module:name`, from what is installed or from the current directory.

    Raises:
        BadParameter: There is no such module or no such name in it, or the module fails.
    """
    module, separator, name = value.partition(":")
    if not (separator and name.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise click.BadParameter(f"{value!r} is not {what} as in {example}")
    try:
        _reach(module.partition(".")[0])
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise click.BadParameter(f"there is no module {error.name!r}") from None
    except Exception as error:
        raise failing(f"the module {module!r}", error) from error
    try:
        return getattr(found, name)
    except AttributeError:
        place = getattr(found, "__file__", None) or "built in"
        raise click.BadParameter(f"the module {module!r} ({place}) has no {name!r}") from None


def failing(what: str, error: Exception) -> click.BadParameter:
    """Code of the user's that raises, on one line."""
    from kern_events.cli.text import one_line

    return click.BadParameter(one_line(f"{what} fails: {type(error).__name__}: {error}"))


def _reach(package: str) -> None:
    """Have a package found in the current directory if it is nowhere else.

    At the end of the path, where no file stands for a module of Python's own or for one that is installed.
    """
    if importlib.util.find_spec(package) is None:
        with suppress(FileNotFoundError):  # The directory may have been deleted.
            sys.path.append(os.getcwd())
