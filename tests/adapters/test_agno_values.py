"""Whatever Agno can store is stored, and comes back exactly as from Agno's own Db; what it cannot is told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from agno.db.utils import json_serializer
from agno.media import Image
from agno.metrics import ModelMetrics, RunMetrics, SessionMetrics
from agno.models.message import Message
from agno.run.agent import RunOutput
from agno.run.base import RunStatus
from agno.run.team import TeamRunOutput
from agno.run.workflow import WorkflowRunOutput
from agno.session.agent import AgentSession
from agno.session.summary import SessionSummary
from agno.session.team import TeamSession
from agno.session.workflow import WorkflowSession
from pydantic import BaseModel
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from kern_events.adapters.agno import NotStored
from tests.adapters.conftest import KINDS as KINDS_OF
from tests.agno_replay import check_replay


@dataclass
class Address:
    street: str
    tags: list[Any] = field(default_factory=list)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Plain(Enum):
    ONE = 1


class Trip(BaseModel):
    to: str = "Paris"


Pair = namedtuple("Pair", "left right")

VALUES = {
    # What JSON has, and Python's own that is written as such.
    "none": None, "numbers": [0, -1, 1.5, True, 2**62], "text": "ü \ud83d\ude00 \u2028",
    "empty": [{}, [], ""], "tuple": (1, ("two", 3)), "pair": Pair(1, Pair(2, None)),
    "keys": {1: "a", None: "b", 1.5: "d"}, "colour": Colour.RED, "level": Level.HIGH,
    "subclass": type("Text", (str,), {})("words"),
    # What Agno's encoder takes.
    "uuid": UUID(int=7), "date": date(2026, 1, 2), "time": datetime(2026, 1, 2, 3, tzinfo=UTC),
    "message": Message(id="m", role="user", content="Hi.", created_at=1), "type": Address,
    "run metrics": RunMetrics(input_tokens=3), "session metrics": SessionMetrics(total_tokens=4),
    "model metrics": ModelMetrics(id="x", provider="y"),
    # What `asdict` of the session's own class takes, and what only looks like it.
    "dataclass": Address("Rue", [Address("Place", [UUID(int=1)]), (Address("Quai"),)]),
    "summary": SessionSummary("short", ["a"], datetime(2026, 1, 2)), "output": RunOutput(run_id="r9"),
    "set": {1}, "frozenset": frozenset("a"), "decimal": Decimal("1.5"), "bytes": b"x",
    "plain enum": Plain.ONE,
    "model": Trip(), "image": Image(url="http://x/y.png"), "object": object(), "complex": 1j,
    "dataclass as a key": {Address: 1}, "range": range(3),
}  # fmt: skip
UNSTORABLE = {"set", "frozenset", "decimal", "bytes", "plain enum", "model", "image", "object", "complex",
              "dataclass as a key", "range"}  # fmt: skip
_SAID = ("state", "data", "metadata", "component", "run_metadata", "content")
PLACES = {"agent": (*_SAID, "run_state", "args"), "team": (*_SAID, "run_state", "args"), "workflow": _SAID}
KINDS = {"agent": (AgentSession, RunOutput), "team": (TeamSession, TeamRunOutput),
         "workflow": (WorkflowSession, WorkflowRunOutput)}  # fmt: skip


def having(kind, **said):
    """A session, and its run, that have values in these places."""
    session_class, run_class = KINDS[kind]
    data = {"session_state": {"n": 1, "value": said.get("state")}, "value": said.get("data")}
    session = session_class(session_id=kind, user_id="ada", session_data=data, created_at=1)
    run = run_class(run_id=kind, session_id=kind, status=RunStatus.completed, created_at=1)
    for each in (session, run):
        setattr(each, f"{kind}_id", kind)
    session.metadata, run.metadata = {"value": [said.get("metadata")]}, {"value": said.get("run_metadata")}
    setattr(session, f"{kind}_data", {"value": said.get("component")})
    run.content = {"value": said.get("content")}
    if kind != "workflow":
        run.session_state = {"value": said.get("run_state")}
        said_by_tool = {"role": "tool", "tool_call_id": "c", "tool_args": said.get("args")}
        run.messages = [Message(id="m", created_at=1, **said_by_tool)]
    return session, run


def storable(kind, place):
    """The values that Agno's own serialisation takes in a place."""
    taken = {}
    for name, value in VALUES.items():
        session, run = having(kind, **{place: {name: value}})
        with suppress(Exception):
            json_serializer([session.to_dict(include_runs=False), run.to_dict()])
            taken[name] = value
    return taken


def test_whatever_agno_can_store_comes_back_as_from_agnos_own(place):
    plain = place.plain(session_table="plain", runs_table="plain_runs")
    ours, awaited = place.open(session_table="sync", runs_table="sync_runs"), place.open_async()
    values = {kind: {each: storable(kind, each) for each in PLACES[kind]} for kind in KINDS}

    async def written():
        for kind, db in itertools.product(KINDS, (plain, ours, awaited)):
            session, run = having(kind, **values[kind])
            for done in (db.upsert_session(session), db.upsert_run(run, kind, "ada", 0)):
                if db is awaited:
                    await done
        found = {kind: await awaited.get_session(kind, deserialize=False) for kind in KINDS}
        await awaited.close()
        return found

    found = asyncio.run(written())
    for kind, db in itertools.product(KINDS, (plain, ours)):
        again = db.get_session(kind, deserialize=False)
        assert {**again, "updated_at": 0} == {**found[kind], "updated_at": 0}
    for kind, db in itertools.product(KINDS, (ours, place.open())):
        check_replay(db, kind)
    assert "dataclass" in values["agent"]["state"] and "dataclass" in values["team"]["metadata"]
    assert not {each for kind in values.values() for one in kind.values() for each in one} & UNSTORABLE


def test_a_value_that_changes_in_place_is_merged_as_agno_writes_it(place):
    db, other = place.open(), place.open()
    session, _ = having("agent", state=Address("Rue"))
    db.upsert_session(session)
    theirs = other.get_session("agent")
    theirs.session_data["session_state"]["n"] = 2
    other.upsert_session(theirs)
    session.session_data["session_state"]["value"].street = "Quai"
    db.upsert_session(session)

    state = db.get_session("agent").session_data["session_state"]
    assert state == {"n": 2, "value": {"street": "Quai", "tags": []}}
    check_replay(db, "agent")


def test_what_agno_cannot_store_is_not_taken_for_stored(place):
    db = place.open()
    for name in sorted(UNSTORABLE):
        session, run = having("agent", state=VALUES[name], run_metadata=VALUES[name])
        with pytest.raises(NotStored):
            db.upsert_session(session)
        with pytest.raises(NotStored):
            db.upsert_run(run, "agent", "ada", 0)
    assert db.get_sessions() == []


def test_an_engine_that_writes_more_values_stores_them(place):
    """Whoever gives an engine says with it what JSON makes of a value."""
    given = dict(place.options)
    url = given.pop("db_url", None) or f"sqlite:///{given.pop('db_file')}"
    url = make_url(url).set(drivername={"postgres": "postgresql+psycopg"}.get(place.backend, "sqlite"))
    kinds = KINDS_OF[place.backend]
    writes = lambda value: json.dumps(value, default=list)  # noqa: E731
    db = kinds[0](db_engine=create_engine(url, json_serializer=writes), **given)
    driver = {"postgres": "postgresql+psycopg_async"}.get(place.backend, "sqlite+aiosqlite")
    engine = create_async_engine(url.set(drivername=driver), json_serializer=writes)
    awaited = kinds[1](db_engine=engine, **given)
    session, run = having("agent", state={7})
    run.metadata = {"value": {8}}

    async def changed():
        session.session_data["session_state"]["n"] = {9}
        await awaited.upsert_session(session)
        await awaited.upsert_run(run, "agent", "ada", 0)
        await awaited.close()

    db.upsert_session(session)
    asyncio.run(changed())
    assert db.get_session("agent").session_data["session_state"] == {"n": [9], "value": [7]}
    assert db.get_run("agent").metadata == {"value": [8]}
    check_replay(db, "agent")
    db.close()
