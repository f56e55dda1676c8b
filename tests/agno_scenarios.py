"""Agno driven through a Db, without a network: scripted models, and scenarios that check themselves.

A scenario takes ``make_db``, which returns a new Db on the same database at every call (called again it
stands for another process), and returns the ids of the sessions it made. A Db is closed when its part ends.
"""

import asyncio
import inspect
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

from agno.agent import Agent
from agno.db.base import SessionType
from agno.exceptions import ModelProviderError
from agno.media import Image
from agno.metrics import MessageMetrics
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.run import RunContext
from agno.session.summary import SessionSummaryManager
from agno.team import Team
from agno.tools import tool
from agno.workflow import Step, StepInput, StepOutput, Workflow
from sqlalchemy import create_engine, text
from sqlalchemy import inspect as inspect_engine

AGENT, TEAM, WORKFLOW = SessionType.AGENT, SessionType.TEAM, SessionType.WORKFLOW
USER = "ada"
INPUT_TOKENS, OUTPUT_TOKENS = 10, 5
JSON_COLUMNS = {
    "session_data", "agent_data", "team_data", "workflow_data", "metadata", "summary", "runs", "run_data",
}  # fmt: skip
SYNC_DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}


# --- The model -------------------------------------------------------------------------------------------


def call(name: str, **args) -> dict:
    """A tool call as a model answers it."""
    function = {"name": name, "arguments": json.dumps(args)}
    return {"id": f"call_{uuid4().hex[:12]}", "type": "function", "function": function}


class FakeModel(Model):
    """A model that answers from a script and keeps what it was sent, call by call, in ``seen``."""

    def __init__(self, script: Any = (), *, id: str = "fake-1"):
        """The script: a list of answers, or a callable that gets the messages and returns an answer.

        An answer is a text, a list of tool calls, an exception to raise, a ModelResponse, or a callable.
        """
        super().__init__(id=id, name="FakeModel", provider="Fake")
        self.script = script if callable(script) else list(script)
        self.seen: list[list[tuple[str, Any]]] = []

    def __deepcopy__(self, memo):
        return self  # A copied agent goes on in the same script.

    def _answer(self, messages) -> ModelResponse:
        self.seen.append([(message.role, message.content) for message in messages])
        answer = self.script
        if isinstance(answer, list):
            if len(self.seen) > len(answer):
                raise AssertionError(f"{self.id} has no answer for call {len(self.seen)}: {self.seen[-1]}")
            answer = answer[len(self.seen) - 1]
        if callable(answer):
            answer = answer(messages)
        if isinstance(answer, BaseException):
            raise answer
        response = answer if isinstance(answer, ModelResponse) else ModelResponse(role="assistant")
        if isinstance(answer, str):
            response.content = answer
        elif isinstance(answer, (list, tuple)):
            response.tool_calls = list(answer)
        total = INPUT_TOKENS + OUTPUT_TOKENS
        response.response_usage = MessageMetrics(
            input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, total_tokens=total
        )
        return response

    def _chunks(self, messages) -> Iterator[ModelResponse]:
        response = self._answer(messages)
        for word in (response.content or "").split(" "):
            if word:
                yield ModelResponse(role="assistant", content=word + " ")
        response.content = None
        yield response

    def invoke(self, messages, *args, **kwargs) -> ModelResponse:
        return self._answer(messages)

    async def ainvoke(self, messages, *args, **kwargs) -> ModelResponse:
        await asyncio.sleep(0)
        return self._answer(messages)

    def invoke_stream(self, messages, *args, **kwargs) -> Iterator[ModelResponse]:
        yield from self._chunks(messages)

    async def ainvoke_stream(self, messages, *args, **kwargs) -> AsyncIterator[ModelResponse]:
        for chunk in self._chunks(messages):
            await asyncio.sleep(0)
            yield chunk

    def _parse_provider_response(self, response, **kwargs) -> ModelResponse:
        return response

    def _parse_provider_response_delta(self, response) -> ModelResponse:
        return response


# --- Reading back ----------------------------------------------------------------------------------------


def rows(db) -> dict[str, dict]:
    """What Agno's two tables hold, by session id, read past the Db: its session row and its run rows."""
    engine, own = db.db_engine, False
    if hasattr(engine, "sync_engine"):  # Asynchronous: read with an engine of our own.
        driver = engine.url.drivername
        engine, own = create_engine(engine.url.set(drivername=SYNC_DRIVERS.get(driver, driver))), True
    try:
        found: dict[str, dict] = {}
        for row in _table(engine, db, db.session_table_name):
            found[row["session_id"]] = {"session": row, "runs": []}
        runs = _table(engine, db, db.runs_table_name)
        for row in sorted(runs, key=lambda run: (run["run_index"] or 0, run["created_at"], run["run_id"])):
            found.setdefault(row["session_id"], {"session": None, "runs": []})["runs"].append(row)
        return found
    finally:
        if own:
            engine.dispose()


def _table(engine, db, name: str) -> list[dict]:
    schema = getattr(db, "db_schema", None) if engine.dialect.name != "sqlite" else None
    if not inspect_engine(engine).has_table(name, schema=schema):
        return []
    quote = engine.dialect.identifier_preparer.quote
    table = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
    with engine.connect() as connection:
        result = connection.execute(text(f"select * from {table}")).mappings().all()
    return [{key: _decoded(key, value) for key, value in row.items()} for row in result]


def _decoded(column: str, value):
    while column in JSON_COLUMNS and isinstance(value, str | bytes):  # SqliteDb encodes some columns twice.
        value = json.loads(value)
    return value


def statuses(session) -> list[str]:
    """The statuses of a session's runs, in order."""
    return [str(getattr(run.status, "value", run.status)) for run in session.runs or []]


def _stored(make_db, session_id: str, kind=AGENT):
    with _opened(make_db) as db:
        return db.get_session(session_id=session_id, session_type=kind)


async def _astored(make_db, session_id: str, kind=AGENT):
    async with _aopened(make_db) as db:
        return await db.get_session(session_id=session_id, session_type=kind)


@contextmanager
def _opened(make_db):
    db = make_db()
    try:
        yield db
    finally:
        db.close()


@asynccontextmanager
async def _aopened(make_db):
    db = make_db()
    try:
        yield db
    finally:
        await db.close()


def _new_id(name: str) -> str:
    return f"{name}-{uuid4().hex[:10]}"


def _was_sent(model: FakeModel, *contents: str, at: int = 0) -> bool:
    """Whether the model was sent messages with these contents at a call."""
    sent = [content for _, content in model.seen[at]]
    return all(content in sent for content in contents)


def _same(actual, expected) -> None:
    assert actual == expected, f"{actual!r} is not {expected!r}"


# --- The parts -------------------------------------------------------------------------------------------


def _agent(db, script, session_id: str | None, **options) -> Agent:
    options.setdefault("model", script if isinstance(script, FakeModel) else FakeModel(script))
    options.setdefault("add_history_to_context", True)
    return Agent(
        id="waiter", name="Waiter", user_id=USER, session_id=session_id, db=db, telemetry=False, **options
    )


def note(run_context: RunContext, item: str) -> str:
    """Puts an item on the list."""
    run_context.session_state.setdefault("items", []).append(item)
    return f"noted {item}"


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def fail(reason: str) -> str:
    """Fails."""
    raise RuntimeError(reason)


def stop(run_context: RunContext) -> str:
    """Cancels the run it is called in."""
    Agent.cancel_run(run_context.run_id)
    return "stopping"


async def astop(run_context: RunContext) -> str:
    """Cancels the run it is called in."""
    await Agent.acancel_run(run_context.run_id)
    return "stopping"


def _pay_tool():
    @tool(requires_confirmation=True)
    def pay(amount: int) -> str:
        """Pays an amount."""
        return f"paid {amount}"

    return pay


def _two_turns(db, session_id: str, turn: int) -> tuple[Agent, FakeModel]:
    item = ["tea", "cake"][turn]
    model = FakeModel([[call("note", item=item)], f"I noted {item}."])
    return _agent(db, model, session_id, tools=[note], session_state={"table": 7}), model


def _check_two_turns(session, second: FakeModel) -> None:
    _same(statuses(session), ["COMPLETED", "COMPLETED"])
    _same(session.session_data["session_state"], {"table": 7, "items": ["tea", "cake"]})
    _same(session.user_id, USER)
    assert _was_sent(second, "Tea, please.", "I noted tea.", "And cake."), second.seen[0]
    assert session.runs[0].metrics.input_tokens == 2 * INPUT_TOKENS


def _paying(db, session_id: str, answers: list) -> Agent:
    return _agent(db, answers, session_id, tools=[_pay_tool()])


def _check_paused(session, run_id: str) -> list:
    _same(statuses(session), ["PAUSED"])
    run = session.runs[0]
    _same(run.run_id, run_id)
    requirements = run.requirements
    assert len(requirements) == 1 and requirements[0].needs_confirmation
    requirements[0].confirm()
    return requirements


def _check_paid(session, run_id: str) -> None:
    _same(statuses(session), ["COMPLETED"])
    run = session.runs[0]
    _same(run.run_id, run_id)
    _same([execution.result for execution in run.tools], ["paid 12"])
    _same(run.content, "It is paid.")


def _check_skipped(session, status: str, third: FakeModel) -> None:
    _same(statuses(session), ["COMPLETED", status, "COMPLETED"])
    assert _was_sent(third, "One", "First."), third.seen[0]
    assert not _was_sent(third, "Two"), third.seen[0]


def _failure() -> ModelProviderError:
    return ModelProviderError("The quota is used up.", status_code=400)


def _team(db, session_id: str, turn: int) -> tuple[Team, FakeModel]:
    task = ["Find a tea.", "Find a cake."][turn]
    who = ["cook", "baker"][turn]
    models = {name: FakeModel([f"{name}: done"], id=f"fake-{name}") for name in ("cook", "baker")}
    members = [Agent(id=id, name=id.title(), model=model, telemetry=False) for id, model in models.items()]
    model = FakeModel([[call("delegate_task_to_member", member_id=who, task=task)], f"The {who} did it."])
    team = Team(
        id="kitchen",
        name="Kitchen",
        members=members,
        model=model,
        db=db,
        session_id=session_id,
        user_id=USER,
        session_state={"orders": 0},
        tools=[order],
        add_history_to_context=True,
        telemetry=False,
    )
    if turn:
        model.script.insert(0, [call("order")])
    return team, model


def order(run_context: RunContext) -> str:
    """Counts an order."""
    run_context.session_state["orders"] += 1
    return "ordered"


def _check_team(session, second: FakeModel) -> None:
    # A member's run is stored before the run of the team that delegated to it.
    _same(statuses(session), ["COMPLETED"] * 4)
    leaders = [run for run in session.runs if not run.parent_run_id]
    members = [run for run in session.runs if run.parent_run_id]
    _same([run.team_id for run in leaders], ["kitchen", "kitchen"])
    _same([run.agent_id for run in members], ["cook", "baker"])
    _same([run.parent_run_id for run in members], [run.run_id for run in leaders])
    _same(session.session_data["session_state"], {"orders": 1})
    assert _was_sent(second, "Tea, please.", "The cook did it.", "And cake."), second.seen[0]


def count_step(step_input: StepInput, run_context: RunContext) -> StepOutput:
    """Adds the number of the run, which it keeps in the state, to the draft."""
    run_context.session_state["count"] += 1
    return StepOutput(content=f"{step_input.previous_step_content} ({run_context.session_state['count']})")


async def acount_step(step_input: StepInput, run_context: RunContext) -> StepOutput:
    """Adds the number of the run, which it keeps in the state, to the draft."""
    await asyncio.sleep(0)
    return count_step(step_input, run_context)


def _workflow(db, session_id: str, turn: int, counter) -> Workflow:
    writer = Agent(id="writer", name="Writer", model=FakeModel([f"Draft {turn}"]), telemetry=False)
    return Workflow(
        id="letters",
        name="Letters",
        db=db,
        session_id=session_id,
        user_id=USER,
        steps=[Step(name="draft", agent=writer), Step(name="count", executor=counter)],
        session_state={"count": 0},
        telemetry=False,
    )


def _check_workflow(session) -> None:
    _same(statuses(session), ["COMPLETED", "COMPLETED"])
    _same(session.session_data["session_state"], {"count": 2})
    _same([run.content for run in session.runs], ["Draft 0 (1)", "Draft 1 (2)"])
    _same([[step.step_name for step in run.step_results] for run in session.runs], [["draft", "count"]] * 2)


# --- Scenarios -------------------------------------------------------------------------------------------


def agent_two_turns(make_db) -> list[str]:
    """Two turns in two processes: history, and a tool that changes the session's state."""
    session_id = _new_id("two-turns")
    for turn, said in enumerate(["Tea, please.", "And cake."]):
        with _opened(make_db) as db:
            agent, model = _two_turns(db, session_id, turn)
            agent.run(said)
    _check_two_turns(_stored(make_db, session_id), model)
    return [session_id]


def agent_stream(make_db) -> list[str]:
    """A streamed turn whose events are stored."""
    session_id = _new_id("stream")
    script = [[call("add", a=1, b=2)], "It is 3."]
    with _opened(make_db) as db:
        agent = _agent(db, script, session_id, tools=[add], store_events=True)
        events = list(agent.run("1 + 2?", stream=True, stream_events=True))
    assert len(events) > 4
    session = _stored(make_db, session_id)
    _same(statuses(session), ["COMPLETED"])
    _same(session.runs[0].content.strip(), "It is 3.")
    assert session.runs[0].events
    return [session_id]


def agent_tools(make_db) -> list[str]:
    """A turn with two tool calls at once, then one that fails."""
    session_id = _new_id("tools")
    script = [
        [call("add", a=1, b=2), call("add", a=3, b=4)],
        [call("fail", reason="no luck")],
        "3, 7 and a failure.",
    ]
    with _opened(make_db) as db:
        _agent(db, script, session_id, tools=[add, fail]).run("Calculate.")
    session = _stored(make_db, session_id)
    _same(statuses(session), ["COMPLETED"])
    executions = session.runs[0].tools
    _same([execution.tool_name for execution in executions], ["add", "add", "fail"])
    _same([str(execution.result) for execution in executions[:2]], ["3", "7"])
    _same([bool(execution.tool_call_error) for execution in executions], [False, False, True])
    _same([message.role for message in session.runs[0].messages].count("tool"), 3)
    return [session_id]


def agent_pause_continue(make_db) -> list[str]:
    """A run that waits for a confirmation, and is continued by another process."""
    session_id = _new_id("pause")
    with _opened(make_db) as db:
        run = _paying(db, session_id, [[call("pay", amount=12)]]).run("Pay.")
    requirements = _check_paused(_stored(make_db, session_id), run.run_id)
    with _opened(make_db) as db:
        agent = _paying(db, session_id, ["It is paid."])
        agent.continue_run(run_id=run.run_id, session_id=session_id, requirements=requirements)
    _check_paid(_stored(make_db, session_id), run.run_id)
    return [session_id]


def agent_cancel(make_db) -> list[str]:
    """A run that is cancelled from within, between two that complete."""
    session_id = _new_id("cancel")
    for said, script in [("One", ["First."]), ("Two", [[call("stop")], "Never."]), ("Three", ["Third."])]:
        with _opened(make_db) as db:
            model = FakeModel(script)
            _agent(db, model, session_id, tools=[stop]).run(said)
    _check_skipped(_stored(make_db, session_id), "CANCELLED", model)
    return [session_id]


def agent_error(make_db) -> list[str]:
    """A run whose model raises, between two that complete."""
    session_id = _new_id("error")
    for said, script in [("One", ["First."]), ("Two", [_failure()]), ("Three", ["Third."])]:
        with _opened(make_db) as db:
            model = FakeModel(script)
            _agent(db, model, session_id).run(said)
    _check_skipped(_stored(make_db, session_id), "ERROR", model)
    return [session_id]


def agent_summary(make_db) -> list[str]:
    """Two turns, after each of which the session is summarized by a model of its own."""
    session_id = _new_id("summary")
    for turn in (1, 2):
        summary = {"summary": f"Said {turn} things.", "topics": ["talk"]}
        writer = FakeModel([json.dumps(summary)], id="fake-summary")
        with _opened(make_db) as db:
            _agent(
                db,
                [f"Answer {turn}."],
                session_id,
                enable_session_summaries=True,
                session_summary_manager=SessionSummaryManager(model=writer),
            ).run(f"Question {turn}?")
        session = _stored(make_db, session_id)
        _same((session.summary.summary, session.summary.topics), (f"Said {turn} things.", ["talk"]))
        assert len(writer.seen) == 1 and f"Question {turn}?" in writer.seen[0][0][1]
    return [session_id]


def agent_media(make_db) -> list[str]:
    """An image of two megabytes in the input, stored with the run."""
    session_id = _new_id("media")
    content = b"\x89PNG\r\n\x1a\n" + random.Random(7).randbytes(2_000_000)
    image = Image(id="photo-1", content=content, mime_type="image/png", format="png")
    with _opened(make_db) as db:
        _agent(db, ["A cup."], session_id, store_media=True).run("What is it?", images=[image])
    session = _stored(make_db, session_id)
    _same(statuses(session), ["COMPLETED"])
    stored = session.runs[0].input.images[0]
    stored = stored if isinstance(stored, Image) else Image.from_base64(stored["content"])
    assert stored.get_content_bytes() == content
    return [session_id]


def agent_rename(make_db) -> list[str]:
    """A session renamed by the Db, then by the agent."""
    session_id = _new_id("rename")
    with _opened(make_db) as db:
        _agent(db, ["Hello."], session_id).run("Hi.")
    with _opened(make_db) as db:
        renamed = db.rename_session(session_id=session_id, session_type=AGENT, session_name="First name")
        _same(renamed.session_data["session_name"], "First name")
    _same(_stored(make_db, session_id).session_data["session_name"], "First name")
    with _opened(make_db) as db:
        _agent(db, [], None).set_session_name(session_id=session_id, session_name="Second name")
    session = _stored(make_db, session_id)
    _same(session.session_data["session_name"], "Second name")
    _same(statuses(session), ["COMPLETED"])
    return [session_id]


def agent_state_update(make_db) -> list[str]:
    """The session's state changed from outside between two runs that change it too."""
    session_id = _new_id("state")
    with _opened(make_db) as db:
        _two_turns(db, session_id, 0)[0].run("Tea, please.")
    with _opened(make_db) as db:
        agent = _agent(db, [], None)
        agent.update_session_state({"table": 9, "guest": "Bo"}, session_id=session_id)
    _same(
        _stored(make_db, session_id).session_data["session_state"],
        {"table": 9, "items": ["tea"], "guest": "Bo"},
    )
    with _opened(make_db) as db:
        _two_turns(db, session_id, 1)[0].run("And cake.")
    session = _stored(make_db, session_id)
    _same(session.session_data["session_state"], {"table": 9, "items": ["tea", "cake"], "guest": "Bo"})
    _same(statuses(session), ["COMPLETED"] * 2)
    return [session_id]


def agent_fork(make_db) -> list[str]:
    """A session copied by Agno's own fork, and both continued."""
    session_id = _new_id("fork")
    for said, answer in [("One", "First."), ("Two", "Second.")]:
        with _opened(make_db) as db:
            _agent(db, [answer], session_id).run(said)
    with _opened(make_db) as db:
        fork_id = _agent(db, [], None).fork_session(source_session_id=session_id, user_id=USER)
    models = {}
    for id in (session_id, fork_id):
        with _opened(make_db) as db:
            models[id] = FakeModel([f"Third in {id}."])
            _agent(db, models[id], id).run("Three")
    source, fork = _stored(make_db, session_id), _stored(make_db, fork_id)
    _same([run.content for run in source.runs], ["First.", "Second.", f"Third in {session_id}."])
    _same([run.content for run in fork.runs], ["First.", "Second.", f"Third in {fork_id}."])
    assert not {run.run_id for run in source.runs} & {run.run_id for run in fork.runs}
    assert _was_sent(models[fork_id], "One", "First.", "Two", "Second.", "Three")
    return [session_id, fork_id]


def agent_regenerate(make_db) -> list[str]:
    """An answer regenerated, then a run started again from its last question beside the old one."""
    session_id = _new_id("regenerate")
    with _opened(make_db) as db:
        first = _agent(db, ["Bad."], session_id).run("Well?")
    with _opened(make_db) as db:
        agent = _agent(db, ["Good."], session_id)
        second = agent.continue_run(run_id=first.run_id, session_id=session_id, regenerate=True)
    session = _stored(make_db, session_id)
    _same(statuses(session), ["REGENERATED", "COMPLETED"])
    _same([run.run_id for run in session.runs], [first.run_id, second.run_id])
    _same(session.runs[1].regenerated_from, first.run_id)
    if "continue_from" in inspect.signature(Agent.continue_run).parameters:
        with _opened(make_db) as db:
            agent = _agent(db, ["Best."], session_id)
            options = {"continue_from": "last_user", "fork": True}
            agent.continue_run(run_id=second.run_id, session_id=session_id, **options)
        session = _stored(make_db, session_id)
        _same(statuses(session), ["REGENERATED", "COMPLETED", "COMPLETED"])
        _same([run.content for run in session.runs], ["Bad.", "Good.", "Best."])
        _same(session.runs[2].forked_from_run_id, second.run_id)
    return [session_id]


def agent_checkpoint(make_db) -> list[str]:
    """A run stored after each of three batches of tool calls, as another process sees it."""
    session_id = _new_id("checkpoint")
    between: list[tuple[list[str], int]] = []

    def look(messages):
        session = _stored(make_db, session_id)
        runs = session.runs if session else []
        between.append((statuses(session) if session else [], len(runs[0].messages or []) if runs else 0))

    def script(messages):
        look(messages)
        batch = sum(message.role == "assistant" for message in messages)
        return [call("add", a=batch, b=1)] if batch < 3 else "Done."

    with _opened(make_db) as db:
        agent = _agent(db, script, session_id, tools=[add], checkpoint="tool-batch")
        agent.run("Go.")
    _same([seen for seen, _ in between], [[], ["RUNNING"], ["RUNNING"], ["RUNNING"]])
    sizes = [size for _, size in between]
    assert sizes == sorted(set(sizes)), sizes
    session = _stored(make_db, session_id)
    _same(statuses(session), ["COMPLETED"])
    _same([execution.tool_name for execution in session.runs[0].tools], ["add"] * 3)
    return [session_id]


def agent_introduction(make_db) -> list[str]:
    """A session that begins with the agent's introduction, a run without a question."""
    session_id = _new_id("introduction")
    for said in ("Hi.", "Still there?"):
        with _opened(make_db) as db:
            model = FakeModel([f"Yes: {said}"])
            _agent(db, model, session_id, introduction="I am the waiter.").run(said)
    session = _stored(make_db, session_id)
    contents = ["I am the waiter.", "Yes: Hi.", "Yes: Still there?"]
    _same([run.content for run in session.runs], contents)
    _same(statuses(session)[1:], ["COMPLETED"] * 2)
    assert _was_sent(model, "I am the waiter.", "Hi.", "Yes: Hi."), model.seen[0]
    return [session_id]


def team_two_turns(make_db) -> list[str]:
    """Two turns in two processes, each delegated to another member of a team."""
    session_id = _new_id("team")
    for turn, said in enumerate(["Tea, please.", "And cake."]):
        with _opened(make_db) as db:
            team, model = _team(db, session_id, turn)
            team.run(said)
    _check_team(_stored(make_db, session_id, TEAM), model)
    return [session_id]


def workflow_two_turns(make_db) -> list[str]:
    """Two runs in two processes of an agent step and a function step that counts in the state."""
    session_id = _new_id("workflow")
    for turn in (0, 1):
        with _opened(make_db) as db:
            _workflow(db, session_id, turn, count_step).run(f"Letter {turn}")
    _check_workflow(_stored(make_db, session_id, WORKFLOW))
    return [session_id]


def agent_cache_session(make_db) -> list[str]:
    """Two turns of an agent that keeps its session in memory, then one of another process."""
    session_id = _new_id("cache")
    with _opened(make_db) as db:
        agent = _agent(db, ["First.", "Second."], session_id, cache_session=True)
        for said in ("One", "Two"):
            agent.run(said)
    with _opened(make_db) as db:
        model = FakeModel(["Third."])
        _agent(db, model, session_id, cache_session=True).run("Three")
    assert _was_sent(model, "One", "First.", "Two", "Second.", "Three"), model.seen[0]
    _same(statuses(_stored(make_db, session_id)), ["COMPLETED"] * 3)
    return [session_id]


def agent_delete(make_db) -> list[str]:
    """One of two sessions deleted, and the last and the first run of the other, with a turn between."""
    kept, gone = _new_id("kept"), _new_id("gone")
    runs = {}
    for session_id, said in [(kept, "One"), (gone, "One"), (kept, "Two"), (gone, "Two"), (kept, "Three")]:
        with _opened(make_db) as db:
            runs[session_id, said] = _agent(db, [f"To {said}."], session_id).run(said).run_id
    with _opened(make_db) as db:
        _agent(db, [], None).delete_session(gone)
        assert db.delete_run(runs[kept, "Three"])
        assert not db.delete_run(runs[kept, "Three"])
    assert _stored(make_db, gone) is None
    with _opened(make_db) as db:
        assert db.get_run(runs[gone, "Two"]) is None
        model = FakeModel(["To Four."])
        _agent(db, model, kept).run("Four")
        # Not before that turn: Agno numbers a run by its place in the session, so its number would be taken.
        db.delete_runs([runs[kept, "One"]])
    assert _was_sent(model, "One", "To One.", "Two", "To Two.") and not _was_sent(model, "Three")
    _same([run.content for run in _stored(make_db, kept).runs], ["To Two.", "To Four."])
    return [kept, gone]


# --- The same, asynchronously ----------------------------------------------------------------------------


async def a_agent_two_turns(make_db) -> list[str]:
    """Two turns in two processes: history, and a tool that changes the session's state."""
    session_id = _new_id("a-two-turns")
    for turn, said in enumerate(["Tea, please.", "And cake."]):
        async with _aopened(make_db) as db:
            agent, model = _two_turns(db, session_id, turn)
            await agent.arun(said)
    _check_two_turns(await _astored(make_db, session_id), model)
    return [session_id]


async def a_agent_stream(make_db) -> list[str]:
    """A streamed turn whose events are stored."""
    session_id = _new_id("a-stream")
    script = [[call("add", a=1, b=2)], "It is 3."]
    async with _aopened(make_db) as db:
        agent = _agent(db, script, session_id, tools=[add], store_events=True)
        events = [event async for event in agent.arun("1 + 2?", stream=True, stream_events=True)]
    assert len(events) > 4
    session = await _astored(make_db, session_id)
    _same(statuses(session), ["COMPLETED"])
    _same(session.runs[0].content.strip(), "It is 3.")
    assert session.runs[0].events
    return [session_id]


async def a_agent_pause_continue(make_db) -> list[str]:
    """A run that waits for a confirmation, and is continued by another process."""
    session_id = _new_id("a-pause")
    async with _aopened(make_db) as db:
        run = await _paying(db, session_id, [[call("pay", amount=12)]]).arun("Pay.")
    requirements = _check_paused(await _astored(make_db, session_id), run.run_id)
    async with _aopened(make_db) as db:
        agent = _paying(db, session_id, ["It is paid."])
        await agent.acontinue_run(run_id=run.run_id, session_id=session_id, requirements=requirements)
    _check_paid(await _astored(make_db, session_id), run.run_id)
    return [session_id]


async def a_agent_cancel(make_db) -> list[str]:
    """A run that is cancelled from within, between two that complete."""
    session_id = _new_id("a-cancel")
    for said, script in [("One", ["First."]), ("Two", [[call("astop")], "Never."]), ("Three", ["Third."])]:
        async with _aopened(make_db) as db:
            model = FakeModel(script)
            await _agent(db, model, session_id, tools=[astop]).arun(said)
    _check_skipped(await _astored(make_db, session_id), "CANCELLED", model)
    return [session_id]


async def a_agent_error(make_db) -> list[str]:
    """A run whose model raises, between two that complete."""
    session_id = _new_id("a-error")
    for said, script in [("One", ["First."]), ("Two", [_failure()]), ("Three", ["Third."])]:
        async with _aopened(make_db) as db:
            model = FakeModel(script)
            await _agent(db, model, session_id).arun(said)
    _check_skipped(await _astored(make_db, session_id), "ERROR", model)
    return [session_id]


async def a_team_two_turns(make_db) -> list[str]:
    """Two turns in two processes, each delegated to another member of a team."""
    session_id = _new_id("a-team")
    for turn, said in enumerate(["Tea, please.", "And cake."]):
        async with _aopened(make_db) as db:
            team, model = _team(db, session_id, turn)
            await team.arun(said)
    _check_team(await _astored(make_db, session_id, TEAM), model)
    return [session_id]


async def a_workflow_two_turns(make_db) -> list[str]:
    """Two runs in two processes of an agent step and a function step that counts in the state."""
    session_id = _new_id("a-workflow")
    for turn in (0, 1):
        async with _aopened(make_db) as db:
            await _workflow(db, session_id, turn, acount_step).arun(f"Letter {turn}")
    _check_workflow(await _astored(make_db, session_id, WORKFLOW))
    return [session_id]


async def a_agent_delete(make_db) -> list[str]:
    """One of two sessions deleted, and the last and the first run of the other, with a turn between."""
    kept, gone = _new_id("a-kept"), _new_id("a-gone")
    runs = {}
    for session_id, said in [(kept, "One"), (gone, "One"), (kept, "Two"), (gone, "Two"), (kept, "Three")]:
        async with _aopened(make_db) as db:
            runs[session_id, said] = (await _agent(db, [f"To {said}."], session_id).arun(said)).run_id
    async with _aopened(make_db) as db:
        await _agent(db, [], None).adelete_session(gone)
        assert await db.delete_run(runs[kept, "Three"])
        assert not await db.delete_run(runs[kept, "Three"])
    assert await _astored(make_db, gone) is None
    async with _aopened(make_db) as db:
        assert await db.get_run(runs[gone, "Two"]) is None
        model = FakeModel(["To Four."])
        await _agent(db, model, kept).arun("Four")
        # Not before that turn: Agno numbers a run by its place in the session, so its number would be taken.
        await db.delete_runs([runs[kept, "One"]])
    assert _was_sent(model, "One", "To One.", "Two", "To Two.") and not _was_sent(model, "Three")
    _same([run.content for run in (await _astored(make_db, kept)).runs], ["To Two.", "To Four."])
    return [kept, gone]


SCENARIOS: dict[str, Callable] = {
    scenario.__name__: scenario
    for scenario in (
        agent_two_turns,
        agent_stream,
        agent_tools,
        agent_pause_continue,
        agent_cancel,
        agent_error,
        agent_summary,
        agent_media,
        agent_rename,
        agent_state_update,
        agent_fork,
        agent_regenerate,
        agent_checkpoint,
        agent_introduction,
        team_two_turns,
        workflow_two_turns,
        agent_cache_session,
        agent_delete,
    )
}

ASYNC_SCENARIOS: dict[str, Callable] = {
    scenario.__name__.removeprefix("a_"): scenario
    for scenario in (
        a_agent_two_turns,
        a_agent_stream,
        a_agent_pause_continue,
        a_agent_cancel,
        a_agent_error,
        a_team_two_turns,
        a_workflow_two_turns,
        a_agent_delete,
    )
}
