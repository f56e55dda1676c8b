-- The log: one head row per session, its events, and what keeps them append-only.

CREATE TABLE kern_sessions (
    version      bigint NOT NULL,
    turn         bigint NOT NULL,
    branch       bigint NOT NULL,
    epoch        bigint NOT NULL,
    fork_version bigint,
    created_at   bigint NOT NULL,
    updated_at   bigint NOT NULL,
    updated_hour bigint NOT NULL,
    namespace    text COLLATE "C" NOT NULL CHECK (namespace <> ''),
    session_id   text COLLATE "C" NOT NULL CHECK (session_id <> ''),
    head_hash    bytea NOT NULL CHECK (length(head_hash) = 32),
    status       text COLLATE "C" NOT NULL CHECK (status IN ('open', 'closed', 'deleted')),
    session_type text COLLATE "C",
    agent_id     text COLLATE "C",
    team_id      text COLLATE "C",
    workflow_id  text COLLATE "C",
    user_id      text COLLATE "C",
    name         text COLLATE "C",
    fork_parent  text COLLATE "C",
    PRIMARY KEY (namespace, session_id)
) WITH (fillfactor = 70);

-- On the hour, which few appends change, so that the others stay HOT updates.
CREATE INDEX kern_sessions_recent ON kern_sessions (namespace, updated_hour);
CREATE INDEX kern_sessions_user ON kern_sessions (namespace, user_id, updated_hour) WHERE user_id IS NOT NULL;

CREATE TABLE kern_events (
    version         bigint NOT NULL CHECK (version >= 1),
    position        bigint NOT NULL GENERATED ALWAYS AS IDENTITY (CACHE 1),
    at              bigint NOT NULL,
    turn            bigint NOT NULL,
    ref             bigint,
    type_version    integer NOT NULL,
    kind            smallint NOT NULL,
    codec           smallint NOT NULL,
    namespace       text COLLATE "C" NOT NULL,
    session_id      text COLLATE "C" NOT NULL,
    event_id        bytea NOT NULL CHECK (length(event_id) = 16),
    type            text COLLATE "C" NOT NULL,
    actor           text COLLATE "C",
    meta            bytea,
    idempotency_key text COLLATE "C",
    key_commit      bytea,
    salt            bytea,
    hash            bytea NOT NULL CHECK (length(hash) = 32),
    payload_commit  bytea,
    payload         bytea,
    native          bytea,
    PRIMARY KEY (namespace, session_id, version)
);

-- Not a constraint: a partitioned table could not have one, and only the feed uses it.
CREATE INDEX kern_events_position ON kern_events (position);

-- Turns, restores and closes of a session, without touching a payload.
CREATE INDEX kern_events_skeleton ON kern_events (namespace, session_id, kind, turn, version)
    INCLUDE (ref) WHERE kind <> 0;

CREATE UNIQUE INDEX kern_events_key ON kern_events (namespace, session_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE kern_snapshots (
    version     bigint NOT NULL,
    epoch       bigint NOT NULL,
    stored_at   bigint NOT NULL,
    namespace   text COLLATE "C" NOT NULL,
    session_id  text COLLATE "C" NOT NULL,
    projector   text COLLATE "C" NOT NULL,
    chunk       text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    data        bytea NOT NULL,
    PRIMARY KEY (namespace, session_id, projector, chunk)
);

CREATE TABLE kern_consumers (
    position   bigint NOT NULL,
    epoch      bigint NOT NULL,
    expires_at bigint,
    updated_at bigint NOT NULL,
    namespace  text COLLATE "C" NOT NULL,
    name       text COLLATE "C" NOT NULL,
    owner      text COLLATE "C",
    PRIMARY KEY (namespace, name)
);

-- An UPDATE may only erase: content and salt go, the commitment comes, a tombstone stands after it.
CREATE FUNCTION kern_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.namespace, NEW.session_id, NEW.version, NEW.position, NEW.event_id, NEW.type,
            NEW.type_version, NEW.kind, NEW.turn, NEW.ref, NEW.at, NEW.actor, NEW.meta,
            NEW.idempotency_key, NEW.codec, NEW.key_commit, NEW.hash)
           IS NOT DISTINCT FROM
           (OLD.namespace, OLD.session_id, OLD.version, OLD.position, OLD.event_id, OLD.type,
            OLD.type_version, OLD.kind, OLD.turn, OLD.ref, OLD.at, OLD.actor, OLD.meta,
            OLD.idempotency_key, OLD.codec, OLD.key_commit, OLD.hash)
           AND OLD.kind NOT IN (5, 6) AND OLD.payload IS NOT NULL
           AND NEW.payload IS NULL AND NEW.native IS NULL AND NEW.salt IS NULL
           AND length(NEW.payload_commit) = 32
           AND EXISTS (
               SELECT FROM kern_events AS tombstone
               WHERE tombstone.namespace = OLD.namespace AND tombstone.session_id = OLD.session_id
                 AND tombstone.kind IN (5, 6) AND tombstone.version > OLD.version
                 AND tombstone.type IN ('session.erased', 'session.deleted'))
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION kern_heads_stay() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION '% rows stay: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER kern_events_rows BEFORE UPDATE OR DELETE ON kern_events
    FOR EACH ROW EXECUTE FUNCTION kern_append_only();
CREATE TRIGGER kern_events_truncate BEFORE TRUNCATE ON kern_events
    FOR EACH STATEMENT EXECUTE FUNCTION kern_append_only();
CREATE TRIGGER kern_sessions_delete BEFORE DELETE ON kern_sessions
    FOR EACH ROW EXECUTE FUNCTION kern_heads_stay();
CREATE TRIGGER kern_sessions_truncate BEFORE TRUNCATE ON kern_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION kern_heads_stay();
CREATE TRIGGER kern_sessions_identity BEFORE UPDATE OF namespace, session_id ON kern_sessions
    FOR EACH ROW WHEN ((NEW.namespace, NEW.session_id) IS DISTINCT FROM (OLD.namespace, OLD.session_id))
    EXECUTE FUNCTION kern_heads_stay();

-- ALWAYS: session_replication_role = replica does not switch them off.
ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_rows;
ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_truncate;
ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_delete;
ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_truncate;
ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_identity;

-- For a person with psql.
CREATE VIEW kern_events_readable AS
SELECT position, namespace, session_id, version, turn, type, type_version,
       to_timestamp(at / 1000000.0) AS at, actor, convert_from(meta, 'UTF8') AS meta,
       CASE WHEN codec = 0 THEN convert_from(payload, 'UTF8') END AS payload,
       payload IS NULL AS erased, encode(event_id, 'hex') AS event_id, encode(hash, 'hex') AS hash
FROM kern_events;
