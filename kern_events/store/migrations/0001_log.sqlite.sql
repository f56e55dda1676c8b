-- The log: one head row per session, its events, and what keeps them append-only.

CREATE TABLE kern_sessions (
    id           INTEGER PRIMARY KEY,
    namespace    TEXT NOT NULL CHECK (namespace <> ''),
    session_id   TEXT NOT NULL CHECK (session_id <> ''),
    version      INTEGER NOT NULL,
    head_hash    BLOB NOT NULL CHECK (length(head_hash) = 32),
    turn         INTEGER NOT NULL,
    branch       INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    status       TEXT NOT NULL CHECK (status IN ('open', 'closed', 'deleted')),
    session_type TEXT,
    agent_id     TEXT,
    team_id      TEXT,
    workflow_id  TEXT,
    user_id      TEXT,
    name         TEXT,
    fork_parent  TEXT,
    fork_version INTEGER,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    updated_hour INTEGER NOT NULL,
    UNIQUE (namespace, session_id)
) STRICT;

CREATE INDEX kern_sessions_recent ON kern_sessions (namespace, updated_hour);
CREATE INDEX kern_sessions_user ON kern_sessions (namespace, user_id, updated_hour) WHERE user_id IS NOT NULL;

CREATE TABLE kern_events (
    position        INTEGER PRIMARY KEY AUTOINCREMENT,
    session         INTEGER NOT NULL,
    version         INTEGER NOT NULL CHECK (version >= 1),
    event_id        BLOB NOT NULL CHECK (length(event_id) = 16),
    type            TEXT NOT NULL,
    type_version    INTEGER NOT NULL,
    kind            INTEGER NOT NULL,
    turn            INTEGER NOT NULL,
    ref             INTEGER,
    at              INTEGER NOT NULL,
    actor           TEXT,
    meta            BLOB,
    idempotency_key TEXT,
    codec           INTEGER NOT NULL,
    key_commit      BLOB,
    payload         BLOB,
    native          BLOB,
    payload_commit  BLOB,
    salt            BLOB,
    hash            BLOB NOT NULL CHECK (length(hash) = 32),
    UNIQUE (session, version)
) STRICT;

-- Turns, restores and closes of a session, without touching a payload.
CREATE INDEX kern_events_skeleton ON kern_events (session, kind, turn, version, ref) WHERE kind <> 0;

CREATE UNIQUE INDEX kern_events_key ON kern_events (session, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE kern_snapshots (
    namespace   TEXT NOT NULL,
    session_id  TEXT NOT NULL,
    projector   TEXT NOT NULL,
    chunk       TEXT NOT NULL,
    version     INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    data        BLOB NOT NULL,
    stored_at   INTEGER NOT NULL,
    PRIMARY KEY (namespace, session_id, projector, chunk)
) STRICT;

CREATE TABLE kern_consumers (
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    position   INTEGER NOT NULL,
    owner      TEXT,
    epoch      INTEGER NOT NULL,
    expires_at INTEGER,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

-- An UPDATE may only erase: content and salt go, the commitment comes, a tombstone stands after it.
CREATE TRIGGER kern_events_append_only BEFORE UPDATE ON kern_events
WHEN NOT (
    NEW.position IS OLD.position AND NEW.session IS OLD.session AND NEW.version IS OLD.version
    AND NEW.event_id IS OLD.event_id AND NEW.type IS OLD.type AND NEW.type_version IS OLD.type_version
    AND NEW.kind IS OLD.kind AND NEW.turn IS OLD.turn AND NEW.ref IS OLD.ref AND NEW.at IS OLD.at
    AND NEW.actor IS OLD.actor AND NEW.meta IS OLD.meta AND NEW.idempotency_key IS OLD.idempotency_key
    AND NEW.codec IS OLD.codec AND NEW.key_commit IS OLD.key_commit AND NEW.hash IS OLD.hash
    AND OLD.kind NOT IN (5, 6) AND OLD.payload IS NOT NULL
    AND NEW.payload IS NULL AND NEW.native IS NULL AND NEW.salt IS NULL
    AND length(NEW.payload_commit) IS 32
    AND EXISTS (
        SELECT 1 FROM kern_events AS tombstone
        WHERE tombstone.session = OLD.session AND tombstone.kind IN (5, 6)
          AND tombstone.version > OLD.version AND tombstone.type IN ('session.erased', 'session.deleted')
    )
)
BEGIN
    SELECT RAISE(ABORT, 'kern_events is append-only');
END;

CREATE TRIGGER kern_events_no_delete BEFORE DELETE ON kern_events
BEGIN
    SELECT RAISE(ABORT, 'kern_events is append-only');
END;

-- INSERT OR REPLACE would delete the row that it collides with, by any of the three keys.
CREATE TRIGGER kern_events_no_replace BEFORE INSERT ON kern_events
WHEN EXISTS (SELECT 1 FROM kern_events WHERE session = NEW.session AND version = NEW.version)
  OR EXISTS (SELECT 1 FROM kern_events WHERE position = NEW.position)
  OR (NEW.idempotency_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM kern_events WHERE session = NEW.session AND idempotency_key = NEW.idempotency_key))
BEGIN
    SELECT RAISE(ABORT, 'kern_events is append-only');
END;

CREATE TRIGGER kern_sessions_no_delete BEFORE DELETE ON kern_sessions
BEGIN
    SELECT RAISE(ABORT, 'kern_sessions rows stay');
END;

CREATE TRIGGER kern_sessions_no_replace BEFORE INSERT ON kern_sessions
WHEN EXISTS (SELECT 1 FROM kern_sessions WHERE id = NEW.id)
  OR EXISTS (SELECT 1 FROM kern_sessions WHERE namespace = NEW.namespace AND session_id = NEW.session_id)
BEGIN
    SELECT RAISE(ABORT, 'kern_sessions rows stay');
END;

CREATE TRIGGER kern_sessions_identity BEFORE UPDATE OF id, namespace, session_id ON kern_sessions
WHEN NEW.id IS NOT OLD.id OR NEW.namespace IS NOT OLD.namespace OR NEW.session_id IS NOT OLD.session_id
BEGIN
    SELECT RAISE(ABORT, 'kern_sessions rows keep their identity');
END;

-- For a person with any SQLite tool. No json(): one row of another codec would make it fail.
CREATE VIEW kern_events_readable AS
SELECT e.position, s.namespace, s.session_id, e.version, e.turn, e.type, e.type_version,
       strftime('%Y-%m-%dT%H:%M:%f', e.at / 1000000.0, 'unixepoch') || 'Z' AS at,
       e.actor, CAST(e.meta AS TEXT) AS meta,
       CASE WHEN e.codec = 0 THEN CAST(e.payload AS TEXT) END AS payload,
       e.payload IS NULL AS erased, lower(hex(e.event_id)) AS event_id, lower(hex(e.hash)) AS hash
FROM kern_events AS e JOIN kern_sessions AS s ON s.id = e.session;
