"""Every SQL statement of the project, one line of purpose each. Values are always bound.

SQLite's take `?`, Postgres' `%b` (binary) with `{s}` before a table for the optional schema, which
`for_schema` fills in once with a quoted identifier. The tables themselves are in migrations/.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from kern_events import chain
from kern_events.batch import LISTING, ROW_COLUMNS, STORED_COLUMNS
from kern_events.clock import AHEAD_US
from kern_events.store import base

HEAD: Final = "version, head_hash, turn, branch, epoch, status, updated_at"
_ROW: Final = ", ".join(ROW_COLUMNS)
_STORED: Final = ", ".join(STORED_COLUMNS)
_STORED_E: Final = ", ".join(f"e.{column}" for column in STORED_COLUMNS)
_HEAD_S: Final = ", ".join(f"s.{column}" for column in HEAD.split(", "))
_LISTING: Final = ", ".join(LISTING)
_TOMBSTONES: Final = "('session.erased', 'session.deleted')"
_OF_FORKS: Final = "e.version <> 1 AND e.type >= 'session.' AND e.type < 'session/'"
_CONTENT: Final = ("payload", "native", "meta")
# Of a row that a deletion covers and has not come to yet: a commitment that none is; see base.shown.
_COVERED: Final = "coalesce({}payload_commit, {}) AS payload_commit"
_INFO: Final = (
    "session_id, status, version, turn, " + _LISTING + ", fork_parent, fork_version, created_at, updated_at"
)
_HEAD_ROW: Final = (
    f"session_id, {HEAD}, {_LISTING}, fork_parent, fork_version, created_at, updated_hour, fork_owner"
)


_NAMESPACES: Final = (
    "WITH RECURSIVE found (namespace) AS (SELECT min(namespace) FROM {s}kern_sessions UNION ALL "
    "SELECT (SELECT min(s.namespace) FROM {s}kern_sessions AS s WHERE s.namespace > found.namespace) "
    "FROM found WHERE found.namespace IS NOT NULL) SELECT namespace FROM found WHERE namespace IS NOT NULL"
)


def _descendants(namespace: str, session_id: str) -> str:
    """A recursive query `found`: the forks of a session and theirs."""
    return (
        f"found (session_id) AS (SELECT session_id FROM {{s}}kern_sessions WHERE namespace = {namespace} "
        f"AND fork_parent = {session_id} UNION SELECT s.session_id FROM found JOIN {{s}}kern_sessions AS s "
        f"ON s.namespace = {namespace} AND s.fork_parent = found.session_id)"
    )


# ---------------------------------------------------------------------------------------- SQLite

# CROSS JOIN fixes the order: from those found to their forks, whatever statistics there are.
_SQLITE_FOUND: Final = _descendants("?1", "?2").replace("{s}", "").replace("JOIN", "CROSS JOIN")
_SHOWN_E: Final = _STORED_E.replace(
    "e.payload_commit",
    _COVERED.format(
        "e.",
        "(SELECT x'' FROM kern_sessions WHERE namespace = ?1 AND session_id = ?2 AND status = 'deleted')",
    ),
)
_SHOWN_S: Final = _STORED_E.replace(
    "e.payload_commit", _COVERED.format("e.", "CASE WHEN s.status = 'deleted' THEN x'' END")
)
_OF_SESSION: Final = "e.session = (SELECT id FROM kern_sessions WHERE namespace = ? AND session_id = ?)"
# The settings of every connection; secure_delete leaves nothing of an erased text in the file.
SQLITE_SETTINGS: Final = (
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
)
# Of a new file: a turn's rows of a kilobyte or two leave less of a page unused than with 4 kB.
SQLITE_PAGE_SIZE: Final = "PRAGMA page_size = 8192"
# Written into the file, so that readers do not block the writer.
SQLITE_WAL: Final = "PRAGMA journal_mode = WAL"
# Which journal the file is in.
SQLITE_JOURNAL: Final = "PRAGMA journal_mode"
# Whether every page is there and makes sense; one finding is enough.
SQLITE_QUICK_CHECK: Final = "PRAGMA quick_check(1)"
# How safely commits of this connection are written: 2 is FULL, 3 EXTRA.
SQLITE_SYNCHRONOUS: Final = "PRAGMA synchronous"
# A reader never writes.
SQLITE_QUERY_ONLY: Final = "PRAGMA query_only = ON"
# ... and a connection that was one writes again.
SQLITE_WRITES: Final = "PRAGMA query_only = OFF"
# The driver's own wait for a lock, in milliseconds; a PRAGMA takes no bound values.
SQLITE_BUSY_TIMEOUT: Final = "PRAGMA busy_timeout = {:d}"
# What it is.
SQLITE_BUSY_WAIT: Final = "PRAGMA busy_timeout"
# Take the write lock now, not at the first write.
SQLITE_BEGIN: Final = "BEGIN IMMEDIATE"
# ... in a transaction that somebody else has begun: a write takes it, whatever it finds.
SQLITE_TAKE_LOCK: Final = "UPDATE kern_consumers SET position = position WHERE FALSE"
# The file that is open: an empty text for one in memory.
SQLITE_FILE: Final = "SELECT file FROM pragma_database_list WHERE name = 'main'"
# A consistent state to read.
SQLITE_BEGIN_READ: Final = "BEGIN"
# What an append in the caller's transaction writes goes together, or not at all.
SAVEPOINT: Final = "SAVEPOINT kern_append"
UNDO: Final = "ROLLBACK TO kern_append"
RELEASE: Final = "RELEASE kern_append"
# End a transaction.
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
# Which of our tables there are.
SQLITE_TABLES: Final = (
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'kern\\_%' ESCAPE '\\'"
)
# What was made of our schema, as it was written: indexes of constraints have no text.
SQLITE_OBJECTS: Final = (
    "SELECT type, name, sql FROM sqlite_master WHERE name LIKE 'kern\\_%' ESCAPE '\\' AND sql IS NOT NULL"
)
# The names of the triggers.
SQLITE_TRIGGERS: Final = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
# Make room for one that is made anew; only ever a name of ours.
SQLITE_DROP_OBJECT: Final = "DROP {kind} IF EXISTS {name}"
# The head that an append links to, and whose session it is.
SQLITE_LOCKED_HEAD: Final = (
    f"SELECT {HEAD}, id, user_id FROM kern_sessions WHERE namespace = ? AND session_id = ?"
)
# Whether an idempotency key is recorded.
SQLITE_KEY: Final = "SELECT 1 FROM kern_events WHERE session = ? AND idempotency_key = ?"
# A new session.
SQLITE_NEW_HEAD: Final = (
    f"INSERT INTO kern_sessions (namespace, session_id, {HEAD}, updated_hour, created_at, {_LISTING}) "
    f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {', '.join('?' * len(LISTING))}) RETURNING id"
)
# What every append changes of a head row.
SQLITE_MOVE_HEAD: Final = (
    "UPDATE kern_sessions SET version = ?, head_hash = ?, turn = ?, branch = ?, epoch = ?, status = ?, "
    "updated_at = ? WHERE id = ?"
)
# As before, with the hour and the listing columns that a session.* event changes.
SQLITE_REWRITE_HEAD: Final = (
    "UPDATE kern_sessions SET version = ?, head_hash = ?, turn = ?, branch = ?, epoch = ?, status = ?, "
    "updated_at = ?, updated_hour = ?, "
    + ", ".join(f"{column} = CASE WHEN ? THEN ? ELSE {column} END" for column in LISTING)
    + " WHERE id = ?"
)
# A session's head.
SQLITE_HEAD: Final = f"SELECT {HEAD} FROM kern_sessions WHERE namespace = ? AND session_id = ?"
# The head and what is recorded after a version, in one statement: the freshness check of every load.
SQLITE_TAIL: Final = (
    f"SELECT {_HEAD_S}, {_STORED_E} FROM kern_sessions AS s "
    "LEFT JOIN kern_events AS e ON e.session = s.id AND e.version > ? "
    "WHERE s.namespace = ? AND s.session_id = ? ORDER BY e.version LIMIT ?"
)
# Events of one session by version.
SQLITE_ROWS: Final = (
    f"SELECT {_SHOWN_E} FROM kern_events AS e WHERE e.session = "
    "(SELECT id FROM kern_sessions WHERE namespace = ?1 AND session_id = ?2) "
    "AND e.version > ?3 AND e.version <= ?4 ORDER BY e.version LIMIT ?5"
)
# After a refusal or a lost answer: the head and the rows behind the base.
SQLITE_LOOK_UP: Final = (
    f"SELECT {_HEAD_S}, s.user_id, 0, 1, {_STORED_E} FROM kern_sessions AS s "
    "LEFT JOIN kern_events AS e ON e.session = s.id AND e.version > ?1 AND e.version <= ?1 + ?2 "
    "WHERE s.namespace = ?3 AND s.session_id = ?4 ORDER BY e.version"
)
# As before, with the key's row and the rows after it, and whether something was erased since: the + keeps
# the planner to the skeleton index.
SQLITE_LOOK_UP_KEYED: Final = (
    f"SELECT {_HEAD_S}, s.user_id, EXISTS (SELECT 1 FROM kern_events AS t WHERE t.session = s.id "
    f"AND t.kind <> 0 AND t.kind IN (5, 6) AND +t.version > k.version AND t.type IN {_TOMBSTONES}), "
    f"e.version > ?1 AND e.version <= ?1 + ?2, {_STORED_E} FROM kern_sessions AS s "
    "LEFT JOIN kern_events AS k ON k.session = s.id AND k.idempotency_key = ?5 "
    "LEFT JOIN kern_events AS e ON e.session = s.id AND (e.version > ?1 AND e.version <= ?1 + ?2 "
    "OR e.version >= k.version AND e.version < k.version + ?6) "
    "WHERE s.namespace = ?3 AND s.session_id = ?4 ORDER BY e.version"
)
# What a tombstone covers and still has content.
SQLITE_COVERED: Final = (
    f"SELECT {_STORED} FROM kern_events WHERE session = ? AND version < ? "
    "AND kind NOT IN (5, 6) AND payload IS NOT NULL AND version > ? ORDER BY version LIMIT ?"
)
# Erase one event's content; the trigger lets nothing else be updated.
SQLITE_ERASE: Final = (
    "UPDATE kern_events SET payload = NULL, native = NULL, salt = NULL, payload_commit = ? "
    "WHERE session = ? AND version = ?"
)
# Up to which version a deletion covers what it has not come to yet.
SQLITE_ERASING: Final = "SELECT erasing FROM kern_sessions WHERE id = ?"
# ... and that it has come to all of it, or not.
SQLITE_SET_ERASING: Final = "UPDATE kern_sessions SET erasing = ? WHERE id = ?"
# The sessions whose deletion has something left to do.
SQLITE_UNFINISHED: Final = (
    "SELECT session_id FROM kern_sessions WHERE namespace = ? AND erasing IS NOT NULL ORDER BY session_id"
)
# A new fork.
SQLITE_FORK_HEAD: Final = (
    f"INSERT INTO kern_sessions (namespace, session_id, {HEAD}, updated_hour, created_at, {_LISTING}, "
    f"fork_parent, fork_version, fork_owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
    f"{', '.join('?' * len(LISTING))}, ?, ?, ?) RETURNING id"
)
# Where a session comes from.
SQLITE_PARENT: Final = (
    "SELECT fork_parent, fork_version, coalesce(fork_owner, fork_parent) FROM kern_sessions "
    "WHERE namespace = ? AND session_id = ?"
)
# Its restores, from the skeleton index.
SQLITE_RESTORES: Final = (
    f"SELECT e.version, e.ref FROM kern_events AS e WHERE {_OF_SESSION} AND e.kind <> 0 AND e.kind = 3"
)
# Where turns of a number started, from the skeleton index.
SQLITE_TURN_STARTS: Final = (
    f"SELECT e.version FROM kern_events AS e WHERE {_OF_SESSION} AND e.kind <> 0 AND e.kind = 1 "
    "AND e.turn = ? ORDER BY e.version DESC"
)
# Where every turn started, from the skeleton index.
SQLITE_ALL_TURN_STARTS: Final = (
    f"SELECT e.version, e.turn FROM kern_events AS e WHERE {_OF_SESSION} AND e.kind <> 0 AND e.kind = 1 "
    "ORDER BY e.turn, e.version"
)
# Who resumed or ended a turn between two versions, from the skeleton index, which the + keeps the planner to.
SQLITE_RESUMED_OR_ENDED: Final = (
    f"SELECT e.version, e.event_id FROM kern_events AS e WHERE {_OF_SESSION} AND +e.version > ? "
    "AND +e.version <= ? AND e.kind <> 0 AND e.turn = ? AND e.kind IN (?, ?) "
    "ORDER BY +e.version"
)
# The first event of some types between two versions.
SQLITE_OF_TYPES: Final = (
    f"SELECT e.version, e.event_id FROM kern_events AS e WHERE {_OF_SESSION} AND e.version > ? "
    "AND e.version <= ? AND e.type IN (?, ?, ?, ?, ?) ORDER BY e.version LIMIT 1"
)
# The highest turn at a version: a few rows back by version, which the + keeps the planner from changing.
SQLITE_TURN_AT: Final = (
    f"SELECT e.turn FROM kern_events AS e WHERE {_OF_SESSION} AND e.version <= ? AND +e.kind IN (1, 3, 4) "
    "ORDER BY e.version DESC LIMIT 1"
)
# The events that begin a branch, between versions, from the skeleton index.
SQLITE_MARKS: Final = (
    f"SELECT {_STORED_E} FROM kern_events AS e WHERE {_OF_SESSION} AND +e.version > ? "
    "AND +e.version <= ? AND e.kind <> 0 AND e.kind IN (3, 4) ORDER BY +e.version LIMIT ?"
)
# The newest event of some types.
SQLITE_NEWEST_OF: Final = (
    f"SELECT {_SHOWN_E} FROM kern_events AS e WHERE e.session = "
    "(SELECT id FROM kern_sessions WHERE namespace = ?1 AND session_id = ?2) AND e.version < ?3 "
    "AND e.type IN (?4, ?5, ?6, ?7, ?8) ORDER BY e.version DESC LIMIT 1"
)
# As before, of tombstones, from the skeleton index: most sessions have none, and all of them would be read.
SQLITE_NEWEST_TOMBSTONE: Final = (
    f"SELECT {_STORED_E} FROM kern_events AS e WHERE {_OF_SESSION} AND +e.version < ? AND e.kind <> 0 "
    "AND e.kind IN (5, 6) AND e.type IN (?, ?, ?, ?, ?) ORDER BY +e.version DESC LIMIT 1"
)
# The sessions forked from one.
SQLITE_FORKS: Final = (
    "SELECT session_id, fork_version, status FROM kern_sessions WHERE namespace = ? AND fork_parent = ?"
)
# Its forks and theirs.
SQLITE_DESCENDANTS: Final = f"WITH RECURSIVE {_SQLITE_FOUND} SELECT session_id FROM found"
# An erasure touches them too: no view may be folded across it.
SQLITE_TOUCH: Final = (
    f"WITH RECURSIVE {_SQLITE_FOUND} UPDATE kern_sessions SET epoch = epoch + 1 "
    "WHERE namespace = ?1 AND session_id IN (SELECT session_id FROM found)"
)
# ... and none that was stored before may stay.
SQLITE_FORGET: Final = (
    f"WITH RECURSIVE {_SQLITE_FOUND} DELETE FROM kern_snapshots WHERE namespace = ?1 "
    "AND session_id IN (SELECT ?2 UNION ALL SELECT session_id FROM found)"
)
# What says what a fork is, from the index that was made for it.
SQLITE_DESCRIBING: Final = (
    f"SELECT {_STORED_E}, e.session FROM kern_events AS e WHERE {_OF_SESSION} AND {_OF_FORKS} "
    "AND e.type IN (?, ?, ?, ?, ?, ?) ORDER BY +e.version"
)
# The listing columns of a session that goes on without what it was handed down.
SQLITE_RELIST: Final = (
    "UPDATE kern_sessions SET " + ", ".join(f"{column} = ?" for column in LISTING) + " WHERE id = ?"
)
# Copy what is in the WAL into the file and empty it, if nobody is in the way; never waits by itself.
SQLITE_CHECKPOINT: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
# Whether what is deleted is overwritten (1), where that costs nothing (2), or not (0).
SQLITE_SECURE_DELETE: Final = "PRAGMA secure_delete"
# ... from now on, on this connection; a PRAGMA takes no bound values.
SQLITE_OVERWRITES: Final = "PRAGMA secure_delete = {:d}"
# The newest head among stored snapshots; @ sorts after digits and before letters, as chunks are named.
SQLITE_SNAPSHOT_HEAD: Final = (
    "SELECT chunk, version, data FROM kern_snapshots WHERE namespace = ? AND session_id = ? "
    "AND projector = ? AND chunk >= '@' AND chunk <= ? ORDER BY chunk DESC LIMIT 1"
)
# The names of everything that is stored.
SQLITE_SNAPSHOT_NAMES: Final = (
    "SELECT chunk FROM kern_snapshots WHERE namespace = ? AND session_id = ? AND projector = ? ORDER BY chunk"
)
# Store a chunk; one of the same name has the same content.
SQLITE_PUT_SNAPSHOT: Final = (
    "INSERT OR REPLACE INTO kern_snapshots (namespace, session_id, projector, epoch, stored_at, "
    " chunk, version, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
# Drop one.
SQLITE_DROP_SNAPSHOT: Final = (
    "DELETE FROM kern_snapshots WHERE namespace = ? AND session_id = ? AND projector = ? AND chunk = ?"
)
# Sessions by id, and the newest head that a projector has stored of each: names of heads begin with @.
SQLITE_SNAPSHOT_PLAN: Final = (
    "SELECT s.session_id, s.version, coalesce(s.fork_version, 0), (SELECT chunk FROM kern_snapshots AS k "
    "WHERE k.namespace = s.namespace AND k.session_id = s.session_id AND k.projector = ?2 "
    "AND k.chunk >= '@' AND k.chunk < 'A' ORDER BY k.chunk DESC LIMIT 1) FROM kern_sessions AS s "
    "WHERE s.namespace = ?1 AND s.session_id > ?3 AND s.status <> 'deleted' ORDER BY s.session_id LIMIT ?4"
)
# What other versions of a projector have stored of a session.
SQLITE_FORGET_OTHERS: Final = (
    "DELETE FROM kern_snapshots WHERE namespace = ? AND session_id = ? AND projector <> ? "
    "AND substr(projector, 1, length(?)) = ?"
)
# By how many others there are heads of a session.
SQLITE_OTHER_SNAPSHOTS: Final = (
    "SELECT count(DISTINCT projector) FROM kern_snapshots WHERE namespace = ? AND session_id = ? "
    "AND projector <> ? AND substr(projector, 1, length(?)) = ? AND chunk >= '@' AND chunk < 'A'"
)
# How much there is to rebuild.
SQLITE_SIZES: Final = (
    "SELECT count(*), coalesce(sum(version - coalesce(fork_version, 0)), 0) FROM kern_sessions "
    "WHERE namespace = ? AND status <> 'deleted'"
)
# One event's time, a step of the binary search by time.
SQLITE_AT: Final = (
    "SELECT e.version, e.at FROM kern_events AS e WHERE e.session = "
    "(SELECT id FROM kern_sessions WHERE namespace = ? AND session_id = ?) "
    "AND e.version >= ? ORDER BY e.version LIMIT 1"
)
# The last position; commits are in the order of positions, so everything up to it is final.
SQLITE_FEED_END: Final = "SELECT coalesce(max(position), 0) FROM kern_events"
# Events of all sessions of a namespace by position.
SQLITE_FEED: Final = (
    # CROSS JOIN fixes the order: by position, whatever statistics there are.
    f"SELECT s.session_id, {_SHOWN_S} FROM kern_events AS e CROSS JOIN kern_sessions AS s "
    "ON s.id = e.session WHERE s.namespace = ? AND e.position > ? AND e.position <= ? "
    "ORDER BY e.position LIMIT ?"
)
# How many of those there are, up to a limit.
SQLITE_FEED_COUNT: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM kern_events AS e CROSS JOIN kern_sessions AS s ON s.id = e.session "
    "WHERE s.namespace = ? AND e.position > ? LIMIT ?)"
)
# In which namespaces there are sessions: from one to the next, however many there are in each.
SQLITE_NAMESPACES: Final = _NAMESPACES.replace("{s}", "")
# Sessions by last activity: by the hour from the index, then exactly.
SQLITE_SESSIONS: Final = (
    f"SELECT {_INFO} FROM kern_sessions WHERE namespace = ?1 AND status <> 'deleted' AND updated_hour <= ?2 "
    "AND (updated_at < ?3 OR updated_at = ?3 AND session_id > ?4) "
    "ORDER BY updated_hour DESC, updated_at DESC, session_id LIMIT ?5"
)
# As before, of one user.
SQLITE_USER_SESSIONS: Final = SQLITE_SESSIONS.replace("status <>", "user_id = ?6 AND status <>")
# Whole head rows, for verify.
SQLITE_HEAD_ROWS: Final = (
    # By id: a session id that somebody damaged is no text to go on from.
    f"SELECT {_HEAD_ROW}, id FROM kern_sessions WHERE namespace = ? AND id > ? ORDER BY id LIMIT ?"
)
# As before, of one session.
SQLITE_HEAD_ROW: Final = f"SELECT {_HEAD_ROW} FROM kern_sessions WHERE namespace = ? AND session_id = ?"
# Events without a head row, which no API makes.
SQLITE_ORPHANS: Final = (
    "SELECT '#' || e.session, count(*) FROM kern_events AS e "
    "WHERE NOT EXISTS (SELECT 1 FROM kern_sessions AS s WHERE s.id = e.session) GROUP BY e.session"
)


# Insert an event of another log, which may be erased.
SQLITE_ADOPT: Final = (
    f"INSERT INTO kern_events (session, {_ROW}, payload_commit) "
    f"VALUES ({', '.join('?' * (len(ROW_COLUMNS) + 2))})"
)


@functools.cache
def sqlite_insert(count: int) -> str:
    """Insert so many events in one statement."""
    values = "(" + ", ".join("?" * (len(ROW_COLUMNS) + 1)) + ")"
    return f"INSERT INTO kern_events (session, {_ROW}) VALUES " + ", ".join([values] * count)


@functools.cache
def sqlite_snapshot_chunks(count: int) -> str:
    """So many stored chunks by name."""
    return (
        "SELECT chunk, data FROM kern_snapshots WHERE namespace = ? AND session_id = ? AND projector = ? "
        f"AND chunk IN ({', '.join('?' * count)})"
    )


# -------------------------------------------------------------------------------------- Postgres

# The server's clock, in microseconds since 1970.
POSTGRES_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
_NEW_ROWS: Final = (
    "INSERT INTO {s}kern_events (namespace, session_id, version, at, idempotency_key, event_id, type, "
    "type_version, kind, turn, ref, actor, meta, codec, key_commit, payload, native, salt, hash) "
    "SELECT %b::text, %b::text, %b::bigint + e.n, %b::bigint, CASE WHEN e.n = 1 THEN %b::text END, "
    "e.event_id, e.type, e.type_version, e.kind, e.turn, e.ref, e.actor, e.meta, e.codec, e.key_commit, "
    "e.payload, e.native, e.salt, e.hash FROM head, "
    "unnest(%b::bytea[], %b::text[], %b::int4[], %b::int2[], %b::int8[], %b::int8[], %b::text[], "
    "%b::bytea[], %b::int2[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[]) "
    "WITH ORDINALITY AS e (event_id, type, type_version, kind, turn, ref, actor, meta, codec, key_commit, "
    "payload, native, salt, hash, n) ORDER BY e.n RETURNING position"
)
# A time may be ahead of the server's clock by a minute, or as far as the time before it, as times never fall.
_LATEST: Final = f"greatest({{}}, {POSTGRES_NOW} + {AHEAD_US})"
# The whole head, so that one that somebody made up can never be written behind.
_GUARD: Final = (
    "WHERE namespace = %b AND session_id = %b AND version = %b AND head_hash = %b AND turn = %b "
    f"AND branch = %b AND epoch = %b AND status = %b AND updated_at = %b AND %b <= "
    f"{_LATEST.format('updated_at')} AND {{open}}"
)
# A newer release may close the schema to this one while it is open; see migrate.py.
_OPEN: Final = "NOT EXISTS (SELECT FROM {s}kern_migrations WHERE min_writer > {latest})"
_OWNER: Final = " AND (user_id IS NULL OR user_id = %b)"
_NO_KEY: Final = (
    " AND NOT EXISTS (SELECT FROM {s}kern_events "
    "WHERE namespace = %b AND session_id = %b AND idempotency_key = %b)"
)
_MOVE: Final = (
    "UPDATE {s}kern_sessions SET version = %b, head_hash = %b, turn = %b, branch = %b, epoch = %b, "
    "status = %b, updated_at = %b"
)
_REWRITE: Final = (
    _MOVE
    + ", updated_hour = %b, "
    + ", ".join(f"{column} = CASE WHEN %b THEN %b ELSE {column} END" for column in LISTING)
)
_NEW_HEAD: Final = (
    f"INSERT INTO {{s}}kern_sessions (namespace, session_id, {HEAD}, updated_hour, created_at, {_LISTING}"
)
_HEAD_TYPES: Final = (
    *("text", "text", "bigint", "bytea", "bigint", "bigint", "bigint", "text", "bigint", "bigint", "bigint"),
    *["text"] * len(LISTING),
)
_FORKED: Final = ", fork_parent, fork_version, fork_owner"
_FORKED_TYPES: Final = ("text", "bigint", "text")


def _new_head(*more: str, columns: str = "") -> str:
    """A new head row, in time."""
    values = ", ".join(f"%b::{each}" for each in (*_HEAD_TYPES, *more))
    when = f"WHERE %b <= {_LATEST.format('%b')} AND {{open}}"
    return f"{_NEW_HEAD}{columns}) SELECT {values} {when} ON CONFLICT DO NOTHING"


class Paged(NamedTuple):
    """A page of rows: `by_rows`, where nothing is large, as almost always, and `by_bytes`.

    By rows costs as much as without pages. What is large comes without its contents, told by a hash
    that is NULL; of a tail it is passed over. By bytes ends where a page is full, and costs a third more.
    """

    by_rows: str
    by_bytes: str


_MOST: Final = base.PAGE_BYTES // base.PAGE_ROWS
# Of a tail, what is large is passed over: versions are dense, so it is missed where it should stand. To say
# what is to be shown of a row costs the freshness check of every load 15 µs, also where there is none.
_SMALL: Final = " AND ".join(f"(octet_length({column}) > {_MOST}) IS NOT TRUE" for column in _CONTENT)


def _paged(select: str, source: str, order: str, covered: str) -> Paged:
    """What is selected beside the events' columns, from where, and the column that orders it.

    `covered` is not NULL where a deletion covers the row, and may not have come to it yet.
    """
    commit = _COVERED.format("", covered) if covered else "payload_commit"
    large = " OR ".join(f"octet_length({column}) > {_MOST}" for column in _CONTENT)
    shown = {column: f"CASE WHEN octet_length({column}) <= {_MOST} THEN {column} END" for column in _CONTENT}
    shown["hash"] = f"CASE WHEN {large} THEN NULL ELSE hash END"
    by_bytes = f"{select}{_STORED}".replace("payload_commit", commit)
    size = " + ".join(f"coalesce(octet_length({column}), 0)" for column in _CONTENT)
    rows = ", ".join(f"{shown[each]} AS {each}" if each in shown else each for each in STORED_COLUMNS)
    rows = rows.replace("payload_commit", commit)
    found = f"{select}{_STORED}"
    return Paged(
        f"SELECT {select}{rows} {source} ORDER BY {order} LIMIT %b",
        f"SELECT {by_bytes} FROM (SELECT {found}, sum({size}) OVER (ORDER BY {order} "
        f"ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_it {source} "
        f"ORDER BY {order} LIMIT %b) AS page "
        f"WHERE before_it IS NULL OR before_it < {base.PAGE_BYTES} ORDER BY {order}",
    )


class PostgresSQL:
    """The statements of Postgres, for one schema; `prefix` is empty or a quoted name and a dot.

    Those that write do nothing where only releases beyond the schema number `latest` may write.
    """

    def __init__(self, prefix: str, latest: int) -> None:
        is_open = _OPEN.replace("{latest}", str(latest))

        def filled(statement: str) -> str:
            return statement.replace("{open}", is_open).replace("{s}", prefix)

        def paged(select: str, source: str, order: str = "version", covered: str = "") -> Paged:
            return Paged(*map(filled, _paged(select, source, order, covered)))

        is_covered = (
            "(SELECT '\\x'::bytea FROM {s}kern_sessions AS h "
            "WHERE h.namespace = %b AND h.session_id = %b AND h.status = 'deleted')"
        )

        def guarded(head: str) -> str:
            return filled(f"WITH head AS ({head} RETURNING 1) {_NEW_ROWS}")

        # Append behind a known head, in one round trip: with or without a key and listing columns.
        self.append = guarded(f"{_MOVE} {_GUARD}")
        self.append_keyed = guarded(f"{_MOVE} {_GUARD}{_NO_KEY}")
        self.append_listing = guarded(f"{_REWRITE} {_GUARD}")
        self.append_listing_keyed = guarded(f"{_REWRITE} {_GUARD}{_NO_KEY}")
        # As before, for a user: in a session of another one it lands nowhere.
        self.append_owned = guarded(f"{_REWRITE} {_GUARD}{_OWNER}")
        self.append_owned_keyed = guarded(f"{_REWRITE} {_GUARD}{_OWNER}{_NO_KEY}")
        # The first append of a session.
        self.create = guarded(_new_head())
        # A session's head.
        self.head = filled(f"SELECT {HEAD} FROM {{s}}kern_sessions WHERE namespace = %b AND session_id = %b")
        # As head, with whose session it is, and hold it until the end of the transaction.
        self.locked_head = self.head.replace(HEAD, f"{HEAD}, user_id") + " FOR UPDATE"
        # As locked_head, with the isolation level of the caller's transaction.
        self.joined_head = filled(
            f"SELECT {HEAD}, user_id, current_setting('transaction_isolation') FROM {{s}}kern_sessions "
            "WHERE namespace = %b AND session_id = %b FOR UPDATE"
        )
        of_session = "FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
        # Events of one session by version.
        self.rows = paged("", of_session + "AND version > %b AND version <= %b", covered=is_covered)
        behind = (
            "FROM {s}kern_events WHERE namespace = s.namespace AND session_id = s.session_id AND version > %b"
        )
        # The head and what is recorded after a version: the freshness check of every load.
        self.tail = Paged(
            *(
                filled(
                    f"SELECT {_HEAD_S}, {_STORED_E} FROM {{s}}kern_sessions AS s "
                    f"LEFT JOIN LATERAL ({page}) AS e ON true "
                    "WHERE s.namespace = %b AND s.session_id = %b ORDER BY e.version"
                )
                for page in (
                    f"SELECT {_STORED} {behind} AND {_SMALL} ORDER BY version LIMIT %b",
                    _paged("", behind, "version", "").by_bytes,
                )
            )
        )
        # After a refusal or a lost answer: the head and the rows behind the base.
        self.look_up = filled(
            f"SELECT {_HEAD_S}, s.user_id, false, true, {_STORED_E} FROM {{s}}kern_sessions AS s "
            "LEFT JOIN {s}kern_events AS e ON e.namespace = s.namespace AND e.session_id = s.session_id "
            "AND e.version > %(base)b AND e.version <= %(last)b "
            "WHERE s.namespace = %(namespace)b AND s.session_id = %(session_id)b ORDER BY e.version"
        )
        # As before, with the key's row and the rows after it, and whether something was erased since.
        self.look_up_keyed = filled(
            f"SELECT {_HEAD_S}, s.user_id, EXISTS (SELECT FROM {{s}}kern_events AS t "
            "WHERE t.namespace = s.namespace AND t.session_id = s.session_id AND t.kind <> 0 "
            f"AND t.kind IN (5, 6) AND t.version > k.version AND t.type IN {_TOMBSTONES}), "
            f"e.version > %(base)b AND e.version <= %(last)b, {_STORED_E} "
            "FROM {s}kern_sessions AS s LEFT JOIN {s}kern_events AS k ON k.namespace = s.namespace "
            "AND k.session_id = s.session_id AND k.idempotency_key = %(key)b "
            "LEFT JOIN {s}kern_events AS e ON e.namespace = s.namespace AND e.session_id = s.session_id "
            "AND (e.version > %(base)b AND e.version <= %(last)b "
            "OR e.version >= k.version AND e.version < k.version + %(count)b) "
            "WHERE s.namespace = %(namespace)b AND s.session_id = %(session_id)b ORDER BY e.version"
        )
        content = "octet_length(payload) + coalesce(octet_length(native), 0)"
        erasable = of_session + "AND version > %b AND version < %b AND kind NOT IN (5, 6) " \
            "AND payload IS NOT NULL"  # fmt: skip
        # Up to which version so many rows go, or so much content, that a tombstone covers and that have any.
        self.erasable = filled(
            f"SELECT max(version), count(*) FROM (SELECT version, sum({content}) OVER (ORDER BY version "
            f"ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_it {erasable} "
            f"ORDER BY version LIMIT %b) AS page WHERE before_it IS NULL OR before_it < {base.PAGE_BYTES}"
        )
        # Erase them; the triggers let nothing else be updated. The server computes the commitments, as
        # chain.payload_commit does, so that no content has to go to and fro.
        self.erase_range = filled(
            f"UPDATE {{s}}kern_events SET payload = NULL, native = NULL, salt = NULL, "
            f"payload_commit = sha256('\\x{chain.PAYLOAD.hex()}'::bytea || salt "
            "|| int4send(octet_length(payload)) || payload "
            "|| coalesce(int4send(octet_length(native)) || native, '\\xffffffff'::bytea)) "
            "WHERE namespace = %b AND session_id = %b AND version > %b AND version <= %b "
            "AND kind NOT IN (5, 6) AND payload IS NOT NULL"
        )
        # Erase the content of some events of several sessions.
        self.erase = filled(
            "UPDATE {s}kern_events AS e "
            "SET payload = NULL, native = NULL, salt = NULL, payload_commit = c.commit "
            "FROM unnest(%b::text[], %b::int8[], %b::bytea[]) AS c (session_id, version, commit) "
            "WHERE e.namespace = %b AND e.session_id = c.session_id AND e.version = c.version"
        )
        # Up to which version a deletion covers what it has not come to yet, held until the transaction ends.
        self.erasing = filled(
            "SELECT erasing FROM {s}kern_sessions WHERE namespace = %b AND session_id = %b FOR UPDATE"
        )
        # ... and that it has come to all of it, or not.
        self.set_erasing = filled(
            "UPDATE {s}kern_sessions SET erasing = %b WHERE namespace = %b AND session_id = %b"
        )
        # The sessions whose deletion has something left to do.
        self.unfinished = filled(
            "SELECT session_id FROM {s}kern_sessions WHERE namespace = %b AND erasing IS NOT NULL "
            "ORDER BY session_id"
        )
        # A new fork.
        self.fork = guarded(_new_head(*_FORKED_TYPES, columns=_FORKED))
        # The head of a session of another log, a fork or not.
        self.adopt_head = filled(
            f"{_NEW_HEAD}{_FORKED}) SELECT "
            + ", ".join(f"%b::{each}" for each in (*_HEAD_TYPES, *_FORKED_TYPES))
            + " WHERE {open} ON CONFLICT DO NOTHING"
        )
        # The parent's head; no erasure may come between it and the fork.
        self.parent_head = self.head + " FOR KEY SHARE"
        # Where a session comes from.
        self.parent = filled(
            "SELECT fork_parent, fork_version, coalesce(fork_owner, fork_parent) FROM {s}kern_sessions "
            "WHERE namespace = %b AND session_id = %b"
        )
        # Its restores, from the skeleton index.
        self.restores = filled(
            "SELECT version, ref FROM {s}kern_events "
            "WHERE namespace = %b AND session_id = %b AND kind <> 0 AND kind = 3"
        )
        # Where turns of a number started, from the skeleton index.
        self.turn_starts = filled(
            "SELECT version FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND kind <> 0 AND kind = 1 AND turn = %b ORDER BY version DESC"
        )
        # Where every turn started, from the skeleton index.
        self.all_turn_starts = filled(
            "SELECT version, turn FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND kind <> 0 AND kind = 1 ORDER BY turn, version"
        )
        # Who resumed or ended a turn between two versions, from the skeleton index.
        self.resumed_or_ended = filled(
            "SELECT version, event_id FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version > %b AND version <= %b AND kind <> 0 AND turn = %b AND kind IN (%b, %b) "
            "ORDER BY version"
        )
        # The first event of some types between two versions.
        self.of_types = filled(
            "SELECT version, event_id FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version > %b AND version <= %b AND type = ANY(%b::text[]) ORDER BY version LIMIT 1"
        )
        # The highest turn at a version: a few rows back by version, which the + 0 keeps the planner to.
        self.turn_at = filled(
            "SELECT turn FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version <= %b AND kind + 0 IN (1, 3, 4) ORDER BY version DESC LIMIT 1"
        )
        # The events that begin a branch, between versions.
        self.marks = paged(
            "", of_session + "AND version > %b AND version <= %b AND kind <> 0 AND kind IN (3, 4)"
        )
        newest = _STORED.replace("payload_commit", _COVERED.format("", is_covered))
        # The newest event of some types.
        self.newest_of = filled(
            f"SELECT {newest} FROM {{s}}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version < %b AND type = ANY(%b::text[]) ORDER BY version DESC LIMIT 1"
        )
        # As before, of tombstones, from the skeleton index, which the + 0 keeps the planner to.
        self.newest_tombstone = filled(
            f"SELECT {_STORED} FROM {{s}}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version + 0 < %b AND kind <> 0 AND kind BETWEEN 5 AND 6 AND type = ANY(%b::text[]) "
            "ORDER BY version + 0 DESC LIMIT 1"
        )
        # The sessions forked from one.
        self.forks = filled(
            "SELECT session_id, fork_version, status FROM {s}kern_sessions "
            "WHERE namespace = %b AND fork_parent = %b"
        )
        # Its forks and theirs.
        self.descendants = filled(
            f"WITH RECURSIVE {_descendants('%(namespace)b', '%(session_id)b')} SELECT session_id FROM found"
        )
        # An erasure touches them too, so nobody may store a snapshot of them meanwhile.
        self.locked_forks = filled(
            "SELECT session_id FROM {s}kern_sessions WHERE namespace = %b AND session_id = ANY(%b::text[]) "
            "ORDER BY session_id FOR UPDATE"
        )
        # No view of theirs may be folded across it.
        self.touch = filled(
            "UPDATE {s}kern_sessions SET epoch = epoch + 1 "
            "WHERE namespace = %b AND session_id = ANY(%b::text[])"
        )
        # Where forks come from.
        self.parents = filled(
            "SELECT session_id, fork_parent FROM {s}kern_sessions "
            "WHERE namespace = %b AND session_id = ANY(%b::text[])"
        )
        # What says what each of some forks is, from the index that was made for it.
        self.describing = filled(
            f"SELECT {_STORED_E}, e.session_id FROM unnest(%b::text[]) AS f (session_id) "
            "CROSS JOIN LATERAL (SELECT * FROM {s}kern_events AS e WHERE e.namespace = %b "
            f"AND e.session_id = f.session_id AND {_OF_FORKS} AND e.type = ANY(%b::text[])) AS e "
            "ORDER BY e.session_id, e.version"
        )
        # The listing columns of sessions that go on without what they were handed down.
        self.relist = filled(
            "UPDATE {s}kern_sessions AS s SET "
            + ", ".join(f"{column} = c.{column}" for column in LISTING)
            + f" FROM unnest(%b::text[], {', '.join(['%b::text[]'] * len(LISTING))}) "
            f"AS c (session_id, {_LISTING}) WHERE s.namespace = %b AND s.session_id = c.session_id"
        )
        # ... and none that was stored before may stay.
        self.forget = filled(
            "DELETE FROM {s}kern_snapshots WHERE namespace = %b AND session_id = ANY(%b::text[])"
        )
        # The newest head among stored snapshots; @ sorts after digits and before letters.
        self.snapshot_head = filled(
            "SELECT chunk, version, data FROM {s}kern_snapshots WHERE namespace = %b AND session_id = %b "
            "AND projector = %b AND chunk >= '@' AND chunk <= %b ORDER BY chunk DESC LIMIT 1"
        )
        # The names of everything that is stored.
        self.snapshot_names = filled(
            "SELECT chunk FROM {s}kern_snapshots WHERE namespace = %b AND session_id = %b "
            "AND projector = %b ORDER BY chunk"
        )
        # Stored chunks by name.
        self.snapshot_chunks = filled(
            "SELECT chunk, data FROM {s}kern_snapshots WHERE namespace = %b AND session_id = %b "
            "AND projector = %b AND chunk = ANY(%b::text[])"
        )
        # Whether a session still is of an epoch; no erasure may come before what is stored then.
        self.snapshot_guard = filled(
            "SELECT 1 FROM {s}kern_sessions WHERE namespace = %b AND session_id = %b AND epoch = %b "
            "AND status <> 'deleted' AND {open} FOR KEY SHARE"
        )
        # Store chunks; one of the same name has the same content.
        self.put_snapshot = filled(
            "INSERT INTO {s}kern_snapshots (namespace, session_id, projector, epoch, stored_at, "
            "chunk, version, data) SELECT %b::text, %b::text, %b::text, %b::int8, %b::int8, c.* "
            "FROM unnest(%b::text[], %b::int8[], %b::bytea[]) AS c "
            "ON CONFLICT (namespace, session_id, projector, chunk) DO UPDATE SET version = excluded.version, "
            "epoch = excluded.epoch, data = excluded.data, stored_at = excluded.stored_at"
        )
        # Drop some.
        self.drop_snapshots = filled(
            "DELETE FROM {s}kern_snapshots WHERE namespace = %b AND session_id = %b AND projector = %b "
            "AND chunk = ANY(%b::text[])"
        )
        # Sessions by id, and the newest head that a projector has stored of each.
        self.snapshot_plan = filled(
            "SELECT s.session_id, s.version, coalesce(s.fork_version, 0), (SELECT chunk FROM "
            "{s}kern_snapshots AS k WHERE k.namespace = s.namespace AND k.session_id = s.session_id "
            "AND k.projector = %b AND k.chunk >= '@' AND k.chunk < 'A' ORDER BY k.chunk DESC LIMIT 1) "
            "FROM {s}kern_sessions AS s WHERE s.namespace = %b AND s.session_id > %b "
            "AND s.status <> 'deleted' ORDER BY s.session_id LIMIT %b"
        )
        # What other versions of a projector have stored of a session.
        self.forget_others = filled(
            "DELETE FROM {s}kern_snapshots WHERE namespace = %b AND session_id = %b AND projector <> %b "
            "AND starts_with(projector, %b)"
        )
        # By how many others there are heads of a session.
        self.other_snapshots = filled(
            "SELECT count(DISTINCT projector) FROM {s}kern_snapshots WHERE namespace = %b "
            "AND session_id = %b AND projector <> %b AND starts_with(projector, %b) "
            "AND chunk >= '@' AND chunk < 'A'"
        )
        # How much there is to rebuild.
        self.sizes = filled(
            "SELECT count(*), coalesce(sum(version - coalesce(fork_version, 0)), 0)::int8 "
            "FROM {s}kern_sessions WHERE namespace = %b AND status <> 'deleted'"
        )
        # One event's time, a step of the binary search by time.
        self.at = filled(
            "SELECT version, at FROM {s}kern_events WHERE namespace = %b AND session_id = %b "
            "AND version >= %b ORDER BY version LIMIT 1"
        )
        # The highest position that this transaction can see.
        self.last_position = filled("SELECT coalesce(max(position), 0) FROM {s}kern_events")
        # Who may still commit an event at a position that was passed, and whether this is a standby.
        self.lockers = filled(
            "SELECT pg_is_in_recovery(), pg_postmaster_start_time(), l.virtualtransaction, l.pid "
            "FROM (SELECT 1) AS one "
            "LEFT JOIN pg_locks AS l ON l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' "
            "AND l.granted AND l.relation = '{s}kern_events'::regclass "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND l.pid IS DISTINCT FROM pg_backend_pid()"
        )
        # As before: whom the feed waits for, and for how many seconds it has been at work.
        self.feed_held_by = filled(
            "SELECT l.pid, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 "
            "FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid "
            "WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' "
            "AND l.granted AND l.relation = '{s}kern_events'::regclass "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY 2 DESC"
        )
        # The sequence that gives positions, and whether this role may read it; none where there is no table.
        self.sequence = filled(
            "SELECT s, coalesce(has_sequence_privilege(s, 'SELECT'), false) FROM (SELECT CASE WHEN "
            "to_regclass('{s}kern_events') IS NOT NULL "
            "THEN pg_get_serial_sequence('{s}kern_events', 'position') END AS s) AS sequence"
        )
        # The highest position, and the one that the sequence, as it names itself, gives next.
        self.positions_of = filled(
            "SELECT (SELECT coalesce(max(position), 0) FROM {s}kern_events), "
            "last_value + CASE WHEN is_called THEN 1 ELSE 0 END FROM {sequence}"
        )
        # Nobody draws a position until the end of the transaction.
        self.lock_events = filled("LOCK TABLE {s}kern_events IN SHARE ROW EXCLUSIVE MODE")
        # Whether row-level security is in force for this role.
        self.row_security = filled(
            "SELECT coalesce(row_security_active(to_regclass('{s}kern_sessions')), false) "
            "OR coalesce(row_security_active(to_regclass('{s}kern_events')), false)"
        )
        # Whether it hides events of a session, whose versions have no gaps.
        self.hides_events = filled(
            "SELECT row_security_active('{s}kern_events'::regclass) AND (SELECT count(*) FROM {s}kern_events "
            "WHERE namespace = %(namespace)b AND session_id = %(session_id)b) <> %(version)b "
            "- (SELECT coalesce(max(fork_version), 0) FROM {s}kern_sessions "
            "WHERE namespace = %(namespace)b AND session_id = %(session_id)b)"
        )
        # Whether positions are drawn one by one.
        self.sequence_cache = filled(
            "SELECT seqcache FROM pg_sequence WHERE seqrelid = "
            "pg_get_serial_sequence('{s}kern_events', 'position')::regclass"
        )
        of_all = "FROM {s}kern_events WHERE namespace = %b AND position > %b AND position <= %b"
        erasing = "SELECT h.session_id FROM {s}kern_sessions AS h WHERE h.namespace = %b " \
            "AND h.erasing IS NOT NULL"  # fmt: skip
        covered = f"CASE WHEN session_id = ANY(ARRAY({erasing})) THEN '\\x'::bytea END"
        # Events of all sessions of a namespace by position.
        self.feed = paged("session_id, ", of_all, "position", covered)
        # As before, of an older schema, in which a deletion leaves nothing.
        self.older_feed = paged("session_id, ", of_all, "position")
        # How many of those there are, up to a limit.
        self.feed_count = filled(
            "SELECT count(*) FROM (SELECT FROM {s}kern_events WHERE namespace = %b AND position > %b "
            "LIMIT %b) AS counted"
        )
        # In which namespaces there are sessions: from one to the next, however many there are in each.
        self.namespaces = filled(_NAMESPACES)
        # Sessions by last activity: by the hour from the index, then exactly.
        self.sessions = filled(
            f"SELECT {_INFO} FROM {{s}}kern_sessions WHERE namespace = %(namespace)b AND status <> 'deleted' "
            "AND updated_hour >= 0 AND updated_hour <= %(hour)b "
            "AND (updated_at < %(at)b OR updated_at = %(at)b AND session_id > %(session_id)b) "
            "ORDER BY updated_hour DESC, updated_at DESC, session_id LIMIT %(limit)b"
        )
        # As before, of one user.
        self.user_sessions = self.sessions.replace("status <>", "user_id = %(user_id)b AND status <>")
        # Whole head rows, for verify.
        self.head_rows = filled(
            f"SELECT {_HEAD_ROW} FROM {{s}}kern_sessions "
            "WHERE namespace = %b AND session_id > %b ORDER BY session_id LIMIT %b"
        )
        # As before, of one session.
        self.head_row = filled(
            f"SELECT {_HEAD_ROW} FROM {{s}}kern_sessions WHERE namespace = %b AND session_id = %b"
        )
        # Events without a head row, which no API makes.
        self.orphans = filled(
            "SELECT e.session_id, count(*) FROM {s}kern_events AS e WHERE e.namespace = %b "
            "AND NOT EXISTS (SELECT FROM {s}kern_sessions AS s WHERE s.namespace = e.namespace "
            "AND s.session_id = e.session_id) GROUP BY e.session_id"
        )
        # The schema number, and the lowest that may write.
        self.applied = filled(
            "SELECT coalesce(max(number), 0), coalesce(max(min_writer), 0) FROM {s}kern_migrations"
        )
        # Heads of several new sessions.
        self.create_heads = filled(
            f"INSERT INTO {{s}}kern_sessions (namespace, session_id, {HEAD}, updated_hour, created_at, "
            f"{_LISTING}) "
            "SELECT %b::text, h.* FROM unnest(%b::text[], %b::int8[], %b::bytea[], %b::int8[], %b::int8[], "
            "%b::int8[], %b::text[], %b::int8[], %b::int8[], %b::int8[], "
            + ", ".join(["%b::text[]"] * len(LISTING))
            + ") AS h WHERE {open} ON CONFLICT DO NOTHING"
        )
        # Heads of several sessions, held until the end of the transaction, in the order of their keys.
        self.locked_heads = filled(
            f"SELECT session_id, {HEAD}, user_id FROM {{s}}kern_sessions WHERE namespace = %b "
            "AND session_id = ANY(%b::text[]) ORDER BY session_id FOR UPDATE"
        )
        # Move a head that this transaction holds.
        self.move_locked = filled(_REWRITE + " WHERE namespace = %b AND session_id = %b AND {open}")
        # Where the last events of several sessions ended up in the log, and the server's clock.
        self.positions = filled(
            f"SELECT e.position, {POSTGRES_NOW} FROM unnest(%b::text[], %b::int8[]) "
            "WITH ORDINALITY AS w (session_id, version, n) "
            "JOIN {s}kern_events AS e ON e.namespace = %b AND e.session_id = w.session_id "
            "AND e.version = w.version ORDER BY w.n"
        )
        # Many events of many sessions.
        self.copy = filled(
            f"COPY {{s}}kern_events (namespace, session_id, {_ROW}) FROM STDIN (FORMAT BINARY)"
        )
        # As before, one by one, and either: under row-level security there is no COPY.
        self.insert = filled(
            f"INSERT INTO {{s}}kern_events (namespace, session_id, {_ROW}, payload_commit) "
            f"VALUES ({', '.join(['%b'] * (len(ROW_COLUMNS) + 3))})"
        )
        # Events of another log, which may be erased.
        self.adopt = self.copy.replace(f"{_ROW})", f"{_ROW}, payload_commit)")


# The server's clock.
POSTGRES_CLOCK: Final = f"SELECT {POSTGRES_NOW}"
# The isolation level of the caller's transaction.
POSTGRES_ISOLATION: Final = "SELECT current_setting('transaction_isolation')"
# Begin as a reader of one consistent state.
POSTGRES_BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# Begin a writing transaction.
POSTGRES_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Something in the WAL, so that COMMIT waits for it; no table and no lock is needed, and everybody may do it.
POSTGRES_BARRIER: Final = "SELECT pg_logical_emit_message(true, 'kern_events', '')"
# How long the transaction waits for a lock, where a session may not have a setting of its own.
POSTGRES_LOCK_TIMEOUT: Final = "SELECT set_config('lock_timeout', %b, true)"
# One migrator at a time; the number is ours alone and means nothing.
POSTGRES_MIGRATION_LOCK: Final = "SELECT pg_advisory_xact_lock(7308332046109602405)"
# Nobody appends while a schema is changed, nor after it who must not: appends wait for this, and then look.
POSTGRES_STOP_APPENDS: Final = "LOCK TABLE kern_sessions IN SHARE ROW EXCLUSIVE MODE"
# Where the tables of a migration go.
POSTGRES_SCHEMA: Final = "SELECT set_config('search_path', %s, true)"
# Whether there is a schema of that name.
POSTGRES_SCHEMA_EXISTS: Final = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
# The schema that the caller named; only ever a checked, quoted identifier.
POSTGRES_CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {name}"
# Which of our tables there are.
POSTGRES_TABLES: Final = (
    "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = coalesce(%s, current_schema()) AND c.relname LIKE 'kern\\_%%' "
    "AND c.relkind IN ('r', 'p')"
)

# What was made of our schema, each with the statement that makes it, without the name of a schema: of the
# columns of a table, of functions those that the triggers call, wherever they are.
POSTGRES_OBJECTS: Final = """
WITH tables AS (
    SELECT c.oid, c.relname AS name, c.relkind AS kind, quote_ident(n.nspname) || '.' AS prefix
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = coalesce(%(schema)b::text, current_schema()) AND c.relname LIKE 'kern\\_%%'
), triggers AS (
    SELECT t.oid, t.tgname, t.tgfoid, r.name, r.prefix, CASE t.tgenabled
        WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE'
        END AS fires
    FROM tables AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
)
SELECT 'table', name::text, 'CREATE TABLE ' || name || ' ()' FROM tables WHERE kind IN ('r', 'p')
UNION ALL
SELECT 'column', r.name || '.' || a.attname,
    concat('ALTER TABLE ', r.name, ' ADD COLUMN ', quote_ident(a.attname), ' ',
        format_type(a.atttypid, a.atttypmod), CASE WHEN o.collname <> 'default' THEN
        ' COLLATE ' || quote_ident(o.collname) END, CASE WHEN a.attnotnull THEN ' NOT NULL' END,
        CASE a.attidentity WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
        WHEN 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY' END)
FROM tables AS r JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_collation AS o ON o.oid = a.attcollation WHERE r.kind IN ('r', 'p')
UNION ALL
SELECT 'constraint', k.conname,
    concat('ALTER TABLE ', r.name, ' ADD CONSTRAINT ', k.conname, ' ', pg_get_constraintdef(k.oid))
FROM tables AS r JOIN pg_constraint AS k ON k.conrelid = r.oid AND k.contype IN ('p', 'u', 'c')
UNION ALL
SELECT 'index', r.name, regexp_replace(replace(pg_get_indexdef(r.oid), prefix, ''), ' WITH \\([^)]*\\)', '')
    || CASE WHEN NOT x.indisvalid THEN ' -- invalid' ELSE '' END
FROM tables AS r JOIN pg_index AS x ON x.indexrelid = r.oid
WHERE NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = r.oid)
UNION ALL
SELECT 'function', proname, definition FROM (
    SELECT DISTINCT ON (p.proname) p.proname,
        replace(pg_get_functiondef(p.oid), quote_ident(n.nspname) || '.kern_', 'kern_') AS definition
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE p.proname LIKE 'kern\\_%%' AND p.prorettype = 'trigger'::regtype
        AND (n.nspname = coalesce(%(schema)b::text, current_schema())
        OR p.oid IN (SELECT tgfoid FROM triggers))
    ORDER BY p.proname, p.oid IN (SELECT tgfoid FROM triggers) DESC
) AS functions
UNION ALL
SELECT 'trigger', t.tgname, concat(
    regexp_replace(replace(pg_get_triggerdef(t.oid), ' ON ' || t.prefix, ' ON '),
    ' EXECUTE FUNCTION .*kern_', ' EXECUTE FUNCTION kern_'),
    '; ALTER TABLE ', t.name, ' ', t.fires, ' TRIGGER ', t.tgname) FROM triggers AS t
UNION ALL
SELECT 'view', name, concat('CREATE VIEW ', name, ' AS ', pg_get_viewdef(oid)) FROM tables WHERE kind = 'v'
"""

# Which of the triggers of our tables fire, whatever session_replication_role is.
POSTGRES_TRIGGERS: Final = (
    "SELECT t.tgname::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = coalesce(%b::text, current_schema()) "
    "AND c.relname LIKE 'kern\\_%%' AND t.tgenabled = 'A' AND NOT t.tgisinternal"
)
# What is made anew goes first, by kind; only ever names of ours.
POSTGRES_DROP_OBJECT: Final = {
    "constraint": "ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}",
    "index": "DROP INDEX IF EXISTS {name}",
    "trigger": "DROP TRIGGER IF EXISTS {name} ON {table}",
}
# Let a sequence go on behind a number.
POSTGRES_SET_SEQUENCE: Final = "SELECT setval(%s::regclass, %s)"
# Nobody has a use for a trigger's function.
POSTGRES_REVOKE: Final = "REVOKE ALL ON FUNCTION {name}() FROM PUBLIC"

# ------------------------------------------------------------------------------------- consumers

_LEASED: Final = " WHERE namespace = :namespace AND name = :name AND owner = :owner AND epoch = :epoch"
_PARKED_OF: Final = " WHERE namespace = :namespace AND consumer = :name"
_AS_IT_WAS: Final = (
    " AND session_id = :session_id AND version = :was_version AND attempts = :was_attempts "
    "AND retry_at = :was_retry_at"
)


class ConsumerSQL:
    """The statements about consumers, run by SQLAlchemy on either database; `now` is the database's clock."""

    def __init__(self, prefix: str, now: str, lock: str) -> None:
        def filled(statement: str) -> str:
            return statement.replace("{s}", prefix).replace("{now}", now)

        # A consumer that is new begins behind a position.
        self.begin = filled(
            "INSERT INTO {s}kern_consumers (namespace, name, position, epoch, updated_at) "
            "VALUES (:namespace, :name, :after, 0, {now}) ON CONFLICT (namespace, name) DO NOTHING"
        )
        # Its row, for as long as the transaction lasts; on Postgres nothing while another one has it.
        self.hold = filled(
            "SELECT position FROM {s}kern_consumers WHERE namespace = :namespace AND name = :name" + lock
        )
        # How far it has come, and by whom.
        self.move = filled(
            "UPDATE {s}kern_consumers SET position = :position, owner = :owner, updated_at = {now} "
            "WHERE namespace = :namespace AND name = :name"
        )
        # Take or renew a lease that is ours, free or over; another owner is another epoch. One that ends
        # later than a lease lasts is from a time when the clock was ahead, and would hold everybody up.
        self.lease = filled(
            "UPDATE {s}kern_consumers SET epoch = CASE WHEN owner = :owner THEN epoch ELSE epoch + 1 END, "
            "owner = :owner, expires_at = {now} + :lease_us, updated_at = {now} "
            "WHERE namespace = :namespace AND name = :name AND (owner = :owner OR expires_at IS NULL "
            "OR expires_at < {now} OR expires_at > {now} + :lease_us) RETURNING position, epoch"
        )
        # Make a lease last, while it is ours.
        self.renew = filled("UPDATE {s}kern_consumers SET expires_at = {now} + :lease_us" + _LEASED)
        # How far it has come, while the lease is ours.
        self.move_leased = filled(
            "UPDATE {s}kern_consumers SET position = :position, expires_at = {now} + :lease_us, "
            "updated_at = {now}" + _LEASED
        )
        # Give a lease back, so that the next need not wait for its end.
        self.release = filled(
            "UPDATE {s}kern_consumers SET expires_at = NULL "
            "WHERE namespace = :namespace AND name = :name AND owner = :owner"
        )
        # Whether a lease is still ours, held until the end of the transaction.
        self.held = filled("SELECT 1 FROM {s}kern_consumers" + _LEASED + lock.replace(" SKIP LOCKED", ""))
        # All consumers.
        self.all = filled(
            "SELECT name, position, owner, expires_at, updated_at FROM {s}kern_consumers "
            "WHERE namespace = :namespace ORDER BY name"
        )
        # Set a session aside, or say when it is to be tried again.
        self.park = filled(
            "INSERT INTO {s}kern_parked (namespace, consumer, session_id, version, attempts, retry_at, "
            "parked_at, error) VALUES (:namespace, :name, :session_id, :version, :attempts, "
            "CASE WHEN :again THEN {now} + :delay_us END, {now}, :error) "
            "ON CONFLICT (namespace, consumer, session_id) DO UPDATE SET version = excluded.version, "
            "attempts = excluded.attempts, retry_at = excluded.retry_at, error = excluded.error"
        )
        # As before, if it is still set aside as it was when it was tried again.
        self.park_again = filled(
            "UPDATE {s}kern_parked SET version = :version, attempts = :attempts, "
            "retry_at = CASE WHEN :again THEN {now} + :delay_us END, error = :error" + _PARKED_OF + _AS_IT_WAS
        )
        # The sessions that are set aside: what follows in them waits.
        self.parked_ids = filled("SELECT session_id FROM {s}kern_parked" + _PARKED_OF)
        # The first that is to be tried again; a time that is further away than any pause is a wrong one.
        self.due = filled(
            "SELECT session_id, version, attempts, retry_at FROM {s}kern_parked" + _PARKED_OF + " "
            "AND (retry_at <= {now} OR retry_at > {now} + :retry_most_us) ORDER BY retry_at LIMIT 1"
            + lock.replace(" SKIP LOCKED", "")
        )
        # Nothing of it waits any more.
        self.unpark = filled("DELETE FROM {s}kern_parked" + _PARKED_OF + _AS_IT_WAS)
        # Everything that is set aside.
        self.parked = filled(
            "SELECT session_id, version, attempts, retry_at, parked_at, error FROM {s}kern_parked"
            + _PARKED_OF
            + " ORDER BY parked_at, session_id"
        )
        # Try one again now.
        self.retry = filled(
            "UPDATE {s}kern_parked SET retry_at = {now}, attempts = 0"
            + _PARKED_OF
            + " AND session_id = :session_id"
        )
        # Pass over the event that one fails at.
        self.skip = filled(
            "UPDATE {s}kern_parked SET version = version + 1, retry_at = {now}, attempts = 0"
            + _PARKED_OF
            + " AND session_id = :session_id AND version = :version"
        )


# The database's clock, in microseconds since 1970.
SQLITE_NOW: Final = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
# POSTGRES_NOW is above, where appends are held against it.
# A consumer's row that nobody else has, until the end of the transaction.
POSTGRES_LOCK: Final = " FOR UPDATE SKIP LOCKED"

# ------------------------------------------------------------------------------------ migrations

# What was applied; min_writer is the lowest schema number that may still write.
CREATE_MIGRATIONS: Final = (
    "CREATE TABLE kern_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, "
    "min_writer INTEGER NOT NULL, applied_at BIGINT NOT NULL)"
)
# As before, STRICT.
SQLITE_CREATE_MIGRATIONS: Final = CREATE_MIGRATIONS.replace("BIGINT", "INTEGER") + " STRICT"
# The schema number, and the lowest that may write.
SQLITE_APPLIED: Final = "SELECT coalesce(max(number), 0), coalesce(max(min_writer), 0) FROM kern_migrations"
# Whether a newer release has closed the schema to whoever knows it up to a number alone.
SQLITE_CLOSED: Final = "SELECT 1 FROM kern_migrations WHERE min_writer > ? LIMIT 1"
# Remember what was applied.
SQLITE_NOTE_MIGRATION: Final = "INSERT INTO kern_migrations VALUES (?, ?, ?, ?, ?)"
# As for SQLite.
POSTGRES_NOTE_MIGRATION: Final = "INSERT INTO kern_migrations VALUES (%s, %s, %s, %s, %s)"
