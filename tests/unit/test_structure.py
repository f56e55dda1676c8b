"""What the code must not contain, read from its syntax trees."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

import kern_events
import projections
from kern_events import aio, errors, spi, turn

PACKAGES = [Path(package.__path__[0]) for package in (kern_events, projections)]
FILES = sorted(file for package in PACKAGES for file in package.rglob("*.py"))

SQL = re.compile(
    r"\s*(SELECT\b.+\bFROM|INSERT\b.*\bINTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|TRUNCATE\s|MERGE\s+INTO|PRAGMA\s|"
    r"(CREATE|DROP|ALTER)\s+(TABLE|INDEX|UNIQUE|SCHEMA|TRIGGER|VIEW|FUNCTION|ROLE)|BEGIN\s+(IMMEDIATE|ISOLATION)|"
    r"SAVEPOINT|FOR\s+UPDATE|SET\s+LOCAL|LISTEN\s|NOTIFY\s|pg_[a-z_]+\()",
    re.DOTALL,
)
BARE = re.compile(r"(BEGIN|COMMIT|ROLLBACK|VACUUM|ANALYZE)( TRANSACTION| WORK)?;?")
FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def texts(tree):
    """Every text in a module that is no docstring."""
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node


@functools.cache
def trees():
    return [(file, ast.parse(file.read_text(encoding="utf-8"))) for file in FILES]


def test_there_is_something_to_look_at():
    assert len(FILES) > 20


def test_sql_stands_in_one_file():
    """Adapters excepted: their statements are on tables of the framework's, and not the log's."""
    found = [
        f"{file.name}:{node.lineno}: {node.value[:60]}"
        for file, tree in trees()
        if file.name != "sql.py" and "adapters" not in file.parts
        for node in texts(tree)
        if SQL.match(node.value) or BARE.fullmatch(node.value.strip())
    ]

    assert found == []


STATEMENTS = ["SELECT 1 FROM x", "INSERT OR REPLACE INTO x", "UPDATE x SET y", "DELETE FROM x", "PRAGMA x"]


@pytest.mark.parametrize("text", STATEMENTS)
def test_sql_is_told_from_prose(text):
    """Positive control of the test before."""
    assert SQL.match(text)
    assert not SQL.match("the transaction has to begin with BEGIN IMMEDIATE")


def test_every_statement_says_what_it_is_for():
    """A comment stands above it, or above the group that it belongs to."""
    source = (PACKAGES[0] / "store" / "sql.py").read_text(encoding="utf-8")
    lines, bare, tree = source.splitlines(), [], ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    local = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if id(node) in local and isinstance(getattr(node, "targets", [None])[0], ast.Name):
            continue  # It is a part of a statement.
        if isinstance(node, ast.AnnAssign) and node.value is None:
            continue
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        for target in targets:
            name = getattr(target, "attr", None) or getattr(target, "id", "_")
            if not name.startswith("_") and not lines[node.lineno - 2].strip().startswith("#"):
                bare.append(name)

    assert set(bare) <= {
        "HEAD",
        "ROLLBACK",
        "RELEASE",
        "UNDO",
        "values",
        "append_keyed",
        "append_listing",
        "append_listing_keyed",
        "append_owned_keyed",
    }


def test_nothing_is_rebuilt_from_stored_data_as_an_object():
    found = []
    for file, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & FORBIDDEN_MODULES:
                found.append(f"{file.name}:{node.lineno}")
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
                found.append(f"{file.name}:{node.lineno}")

    assert found == []


def test_modules_are_imported_by_name_in_two_places_alone():
    """From a fixed table at the front door, or as the user types them; never from what was stored."""
    found = {
        (file.parent.name, file.name)
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "import_module"
        and not isinstance(node.args[0], ast.Constant)
    }

    assert found <= {("kern_events", "__init__.py"), ("cli", "named.py")}


def test_nobody_is_warned_or_printed_at_from_the_library():
    edges = {"cli", "demo", "__main__"}
    found = [
        f"{file.name}:{node.lineno}"
        for file, tree in trees()
        if not edges & {file.stem, file.parent.name}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", "") == "print" or ast.unparse(node.func) == "warnings.warn")
        and "ResourceWarning" not in ast.unparse(node)
    ]

    assert found == []


def test_every_module_and_public_function_says_what_it_does():
    found = []
    for file, tree in trees():
        if ast.get_docstring(tree) is None:
            found.append(file.name)
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                found.append(f"{file.name}:{node.lineno} {node.name}")

    assert found == []


def public_functions():
    """Everything that a user calls: the functions and methods of the public names."""
    for module in (kern_events, spi, errors, aio, turn):
        for name in getattr(module, "__all__", []):
            value = getattr(module, name, None)
            if inspect.isfunction(value):
                yield f"{name}", value
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                function = function.fget if isinstance(function, property) else function
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function


def test_public_functions_say_what_they_return():
    untyped = [name for name, function in public_functions() if "return" not in function.__annotations__]
    vague = [name for name, function in public_functions() if function.__annotations__.get("return") == "Any"]

    assert untyped == []
    assert set(vague) <= {"Sessions.load", "AsyncSessions.load"}  # What a view is, its projector says.


def test_public_functions_say_what_they_take():
    found = [
        f"{name}({parameter})"
        for name, function in public_functions()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self" and parameter.annotation in (inspect.Parameter.empty, "Any")
    ]

    assert found == []
