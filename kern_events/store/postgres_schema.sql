-- Schema 7 in the words of Postgres: what verify compares with, and migrate mends.

-- table kern_consumers
CREATE TABLE kern_consumers ()

-- table kern_events
CREATE TABLE kern_events ()

-- table kern_migrations
CREATE TABLE kern_migrations ()

-- table kern_parked
CREATE TABLE kern_parked ()

-- table kern_sessions
CREATE TABLE kern_sessions ()

-- table kern_snapshots
CREATE TABLE kern_snapshots ()

-- column kern_consumers.epoch
ALTER TABLE kern_consumers ADD COLUMN epoch bigint NOT NULL

-- column kern_consumers.expires_at
ALTER TABLE kern_consumers ADD COLUMN expires_at bigint

-- column kern_consumers.name
ALTER TABLE kern_consumers ADD COLUMN name text COLLATE "C" NOT NULL

-- column kern_consumers.namespace
ALTER TABLE kern_consumers ADD COLUMN namespace text COLLATE "C" NOT NULL

-- column kern_consumers.owner
ALTER TABLE kern_consumers ADD COLUMN owner text COLLATE "C"

-- column kern_consumers.position
ALTER TABLE kern_consumers ADD COLUMN "position" bigint NOT NULL

-- column kern_consumers.updated_at
ALTER TABLE kern_consumers ADD COLUMN updated_at bigint NOT NULL

-- column kern_events.actor
ALTER TABLE kern_events ADD COLUMN actor text COLLATE "C"

-- column kern_events.at
ALTER TABLE kern_events ADD COLUMN at bigint NOT NULL

-- column kern_events.codec
ALTER TABLE kern_events ADD COLUMN codec smallint NOT NULL

-- column kern_events.event_id
ALTER TABLE kern_events ADD COLUMN event_id bytea NOT NULL

-- column kern_events.hash
ALTER TABLE kern_events ADD COLUMN hash bytea NOT NULL

-- column kern_events.idempotency_key
ALTER TABLE kern_events ADD COLUMN idempotency_key text COLLATE "C"

-- column kern_events.key_commit
ALTER TABLE kern_events ADD COLUMN key_commit bytea

-- column kern_events.kind
ALTER TABLE kern_events ADD COLUMN kind smallint NOT NULL

-- column kern_events.meta
ALTER TABLE kern_events ADD COLUMN meta bytea

-- column kern_events.namespace
ALTER TABLE kern_events ADD COLUMN namespace text COLLATE "C" NOT NULL

-- column kern_events.native
ALTER TABLE kern_events ADD COLUMN native bytea

-- column kern_events.payload
ALTER TABLE kern_events ADD COLUMN payload bytea

-- column kern_events.payload_commit
ALTER TABLE kern_events ADD COLUMN payload_commit bytea

-- column kern_events.position
ALTER TABLE kern_events ADD COLUMN "position" bigint NOT NULL GENERATED ALWAYS AS IDENTITY

-- column kern_events.ref
ALTER TABLE kern_events ADD COLUMN ref bigint

-- column kern_events.salt
ALTER TABLE kern_events ADD COLUMN salt bytea

-- column kern_events.session_id
ALTER TABLE kern_events ADD COLUMN session_id text COLLATE "C" NOT NULL

-- column kern_events.turn
ALTER TABLE kern_events ADD COLUMN turn bigint NOT NULL

-- column kern_events.type
ALTER TABLE kern_events ADD COLUMN type text COLLATE "C" NOT NULL

-- column kern_events.type_version
ALTER TABLE kern_events ADD COLUMN type_version integer NOT NULL

-- column kern_events.version
ALTER TABLE kern_events ADD COLUMN version bigint NOT NULL

-- column kern_migrations.applied_at
ALTER TABLE kern_migrations ADD COLUMN applied_at bigint NOT NULL

-- column kern_migrations.min_writer
ALTER TABLE kern_migrations ADD COLUMN min_writer integer NOT NULL

-- column kern_migrations.name
ALTER TABLE kern_migrations ADD COLUMN name text NOT NULL

-- column kern_migrations.number
ALTER TABLE kern_migrations ADD COLUMN number integer NOT NULL

-- column kern_migrations.sha256
ALTER TABLE kern_migrations ADD COLUMN sha256 text NOT NULL

-- column kern_parked.attempts
ALTER TABLE kern_parked ADD COLUMN attempts bigint NOT NULL

-- column kern_parked.consumer
ALTER TABLE kern_parked ADD COLUMN consumer text COLLATE "C" NOT NULL

-- column kern_parked.error
ALTER TABLE kern_parked ADD COLUMN error text COLLATE "C" NOT NULL

-- column kern_parked.namespace
ALTER TABLE kern_parked ADD COLUMN namespace text COLLATE "C" NOT NULL

-- column kern_parked.parked_at
ALTER TABLE kern_parked ADD COLUMN parked_at bigint NOT NULL

-- column kern_parked.retry_at
ALTER TABLE kern_parked ADD COLUMN retry_at bigint

-- column kern_parked.session_id
ALTER TABLE kern_parked ADD COLUMN session_id text COLLATE "C" NOT NULL

-- column kern_parked.version
ALTER TABLE kern_parked ADD COLUMN version bigint NOT NULL

-- column kern_sessions.agent_id
ALTER TABLE kern_sessions ADD COLUMN agent_id text COLLATE "C"

-- column kern_sessions.branch
ALTER TABLE kern_sessions ADD COLUMN branch bigint NOT NULL

-- column kern_sessions.created_at
ALTER TABLE kern_sessions ADD COLUMN created_at bigint NOT NULL

-- column kern_sessions.epoch
ALTER TABLE kern_sessions ADD COLUMN epoch bigint NOT NULL

-- column kern_sessions.erasing
ALTER TABLE kern_sessions ADD COLUMN erasing bigint

-- column kern_sessions.fork_owner
ALTER TABLE kern_sessions ADD COLUMN fork_owner text COLLATE "C"

-- column kern_sessions.fork_parent
ALTER TABLE kern_sessions ADD COLUMN fork_parent text COLLATE "C"

-- column kern_sessions.fork_version
ALTER TABLE kern_sessions ADD COLUMN fork_version bigint

-- column kern_sessions.head_hash
ALTER TABLE kern_sessions ADD COLUMN head_hash bytea NOT NULL

-- column kern_sessions.name
ALTER TABLE kern_sessions ADD COLUMN name text COLLATE "C"

-- column kern_sessions.namespace
ALTER TABLE kern_sessions ADD COLUMN namespace text COLLATE "C" NOT NULL

-- column kern_sessions.session_id
ALTER TABLE kern_sessions ADD COLUMN session_id text COLLATE "C" NOT NULL

-- column kern_sessions.session_type
ALTER TABLE kern_sessions ADD COLUMN session_type text COLLATE "C"

-- column kern_sessions.status
ALTER TABLE kern_sessions ADD COLUMN status text COLLATE "C" NOT NULL

-- column kern_sessions.team_id
ALTER TABLE kern_sessions ADD COLUMN team_id text COLLATE "C"

-- column kern_sessions.turn
ALTER TABLE kern_sessions ADD COLUMN turn bigint NOT NULL

-- column kern_sessions.updated_at
ALTER TABLE kern_sessions ADD COLUMN updated_at bigint NOT NULL

-- column kern_sessions.updated_hour
ALTER TABLE kern_sessions ADD COLUMN updated_hour bigint NOT NULL

-- column kern_sessions.user_id
ALTER TABLE kern_sessions ADD COLUMN user_id text COLLATE "C"

-- column kern_sessions.version
ALTER TABLE kern_sessions ADD COLUMN version bigint NOT NULL

-- column kern_sessions.workflow_id
ALTER TABLE kern_sessions ADD COLUMN workflow_id text COLLATE "C"

-- column kern_snapshots.chunk
ALTER TABLE kern_snapshots ADD COLUMN chunk text COLLATE "C" NOT NULL

-- column kern_snapshots.data
ALTER TABLE kern_snapshots ADD COLUMN data bytea NOT NULL

-- column kern_snapshots.epoch
ALTER TABLE kern_snapshots ADD COLUMN epoch bigint NOT NULL

-- column kern_snapshots.namespace
ALTER TABLE kern_snapshots ADD COLUMN namespace text COLLATE "C" NOT NULL

-- column kern_snapshots.projector
ALTER TABLE kern_snapshots ADD COLUMN projector text COLLATE "C" NOT NULL

-- column kern_snapshots.session_id
ALTER TABLE kern_snapshots ADD COLUMN session_id text COLLATE "C" NOT NULL

-- column kern_snapshots.stored_at
ALTER TABLE kern_snapshots ADD COLUMN stored_at bigint NOT NULL

-- column kern_snapshots.version
ALTER TABLE kern_snapshots ADD COLUMN version bigint NOT NULL

-- constraint kern_consumers_pkey
ALTER TABLE kern_consumers ADD CONSTRAINT kern_consumers_pkey PRIMARY KEY (namespace, name)

-- constraint kern_events_event_id_check
ALTER TABLE kern_events ADD CONSTRAINT kern_events_event_id_check CHECK ((length(event_id) = 16))

-- constraint kern_events_hash_check
ALTER TABLE kern_events ADD CONSTRAINT kern_events_hash_check CHECK ((length(hash) = 32))

-- constraint kern_events_pkey
ALTER TABLE kern_events ADD CONSTRAINT kern_events_pkey PRIMARY KEY (namespace, session_id, version)

-- constraint kern_events_version_check
ALTER TABLE kern_events ADD CONSTRAINT kern_events_version_check CHECK ((version >= 1))

-- constraint kern_migrations_pkey
ALTER TABLE kern_migrations ADD CONSTRAINT kern_migrations_pkey PRIMARY KEY (number)

-- constraint kern_parked_pkey
ALTER TABLE kern_parked ADD CONSTRAINT kern_parked_pkey PRIMARY KEY (namespace, consumer, session_id)

-- constraint kern_sessions_head_hash_check
ALTER TABLE kern_sessions ADD CONSTRAINT kern_sessions_head_hash_check CHECK ((length(head_hash) = 32))

-- constraint kern_sessions_namespace_check
ALTER TABLE kern_sessions ADD CONSTRAINT kern_sessions_namespace_check CHECK ((namespace <> ''::text))

-- constraint kern_sessions_pkey
ALTER TABLE kern_sessions ADD CONSTRAINT kern_sessions_pkey PRIMARY KEY (namespace, session_id)

-- constraint kern_sessions_session_id_check
ALTER TABLE kern_sessions ADD CONSTRAINT kern_sessions_session_id_check CHECK ((session_id <> ''::text))

-- constraint kern_sessions_status_check
ALTER TABLE kern_sessions ADD CONSTRAINT kern_sessions_status_check CHECK ((status = ANY (ARRAY['open'::text, 'closed'::text, 'deleted'::text])))

-- constraint kern_snapshots_pkey
ALTER TABLE kern_snapshots ADD CONSTRAINT kern_snapshots_pkey PRIMARY KEY (namespace, session_id, projector, chunk)

-- index kern_events_describing
CREATE INDEX kern_events_describing ON kern_events USING btree (namespace, session_id, type, version) WHERE ((version <> 1) AND (type >= 'session.'::text) AND (type < 'session/'::text))

-- index kern_events_key
CREATE UNIQUE INDEX kern_events_key ON kern_events USING btree (namespace, session_id, idempotency_key) WHERE (idempotency_key IS NOT NULL)

-- index kern_events_position
CREATE INDEX kern_events_position ON kern_events USING btree ("position")

-- index kern_events_skeleton
CREATE INDEX kern_events_skeleton ON kern_events USING btree (namespace, session_id, kind, turn, version) INCLUDE (ref) WHERE (kind <> 0)

-- index kern_parked_due
CREATE INDEX kern_parked_due ON kern_parked USING btree (namespace, consumer, retry_at) WHERE (retry_at IS NOT NULL)

-- index kern_sessions_erasing
CREATE INDEX kern_sessions_erasing ON kern_sessions USING btree (namespace, session_id) WHERE (erasing IS NOT NULL)

-- index kern_sessions_forks
CREATE INDEX kern_sessions_forks ON kern_sessions USING btree (namespace, fork_parent) WHERE (fork_parent IS NOT NULL)

-- index kern_sessions_recent
CREATE INDEX kern_sessions_recent ON kern_sessions USING btree (namespace, updated_hour) WHERE (updated_hour >= 0)

-- index kern_sessions_user
CREATE INDEX kern_sessions_user ON kern_sessions USING btree (namespace, user_id, updated_hour) WHERE (user_id IS NOT NULL)

-- function kern_append_only
CREATE OR REPLACE FUNCTION kern_append_only()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $function$

-- function kern_heads_stay
CREATE OR REPLACE FUNCTION kern_heads_stay()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    RAISE EXCEPTION '% rows stay: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $function$

-- function kern_only_under_tombstones
CREATE OR REPLACE FUNCTION kern_only_under_tombstones()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    -- Where the table of the trigger is now; it ends with the function, as the function has a setting of its own.
    PERFORM set_config('search_path', format('pg_catalog, %I, pg_temp', TG_TABLE_SCHEMA), true);
    IF EXISTS (
        SELECT FROM (SELECT namespace, session_id, kind IN (3, 4) AS begins, max(version) AS last
                     FROM erased GROUP BY 1, 2, 3) AS whose
        WHERE NOT EXISTS (
            SELECT FROM kern_events AS tombstone
            WHERE tombstone.namespace = whose.namespace AND tombstone.session_id = whose.session_id
              AND tombstone.kind <> 0 AND tombstone.kind BETWEEN 5 AND 6 AND tombstone.version + 0 > whose.last
              AND tombstone.type IN ('session.erased', 'session.deleted'))
          AND NOT (whose.begins AND EXISTS (
            SELECT FROM kern_sessions AS fork JOIN kern_events AS above
              ON above.namespace = fork.namespace AND above.session_id = fork.fork_parent
              AND above.kind <> 0 AND above.kind BETWEEN 4 AND 6
            WHERE fork.namespace = whose.namespace AND fork.session_id = whose.session_id
              AND (above.kind = 4 AND above.payload IS NULL
                OR above.version + 0 > fork.fork_version
                  AND above.type IN ('session.erased', 'session.deleted')))))
    THEN
        RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $function$

-- trigger kern_events_erased
CREATE TRIGGER kern_events_erased AFTER UPDATE ON kern_events REFERENCING OLD TABLE AS erased FOR EACH STATEMENT EXECUTE FUNCTION kern_only_under_tombstones(); ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_erased

-- trigger kern_events_rows
CREATE TRIGGER kern_events_rows BEFORE DELETE ON kern_events FOR EACH ROW EXECUTE FUNCTION kern_append_only(); ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_rows

-- trigger kern_events_truncate
CREATE TRIGGER kern_events_truncate BEFORE TRUNCATE ON kern_events FOR EACH STATEMENT EXECUTE FUNCTION kern_append_only(); ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_truncate

-- trigger kern_events_update
CREATE TRIGGER kern_events_update BEFORE UPDATE ON kern_events FOR EACH ROW WHEN ((((NOT (((((((((((((((((new.namespace IS DISTINCT FROM old.namespace) OR (new.session_id IS DISTINCT FROM old.session_id)) OR (new.version IS DISTINCT FROM old.version)) OR (new."position" IS DISTINCT FROM old."position")) OR (new.event_id IS DISTINCT FROM old.event_id)) OR (new.type IS DISTINCT FROM old.type)) OR (new.type_version IS DISTINCT FROM old.type_version)) OR (new.kind IS DISTINCT FROM old.kind)) OR (new.turn IS DISTINCT FROM old.turn)) OR (new.ref IS DISTINCT FROM old.ref)) OR (new.at IS DISTINCT FROM old.at)) OR (new.actor IS DISTINCT FROM old.actor)) OR (new.meta IS DISTINCT FROM old.meta)) OR (new.idempotency_key IS DISTINCT FROM old.idempotency_key)) OR (new.codec IS DISTINCT FROM old.codec)) OR (new.key_commit IS DISTINCT FROM old.key_commit)) OR (new.hash IS DISTINCT FROM old.hash))) AND (old.kind <> ALL (ARRAY[5, 6])) AND (old.payload IS NOT NULL) AND (new.payload IS NULL) AND (new.native IS NULL) AND (new.salt IS NULL) AND (length(new.payload_commit) = 32)) IS NOT TRUE)) EXECUTE FUNCTION kern_append_only(); ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_update

-- trigger kern_sessions_delete
CREATE TRIGGER kern_sessions_delete BEFORE DELETE ON kern_sessions FOR EACH ROW EXECUTE FUNCTION kern_heads_stay(); ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_delete

-- trigger kern_sessions_identity
CREATE TRIGGER kern_sessions_identity BEFORE UPDATE OF namespace, session_id ON kern_sessions FOR EACH ROW WHEN (((new.namespace IS DISTINCT FROM old.namespace) OR (new.session_id IS DISTINCT FROM old.session_id))) EXECUTE FUNCTION kern_heads_stay(); ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_identity

-- trigger kern_sessions_truncate
CREATE TRIGGER kern_sessions_truncate BEFORE TRUNCATE ON kern_sessions FOR EACH STATEMENT EXECUTE FUNCTION kern_heads_stay(); ALTER TABLE kern_sessions ENABLE ALWAYS TRIGGER kern_sessions_truncate

-- view kern_events_readable
CREATE VIEW kern_events_readable AS  SELECT "position",
    namespace,
    session_id,
    version,
    turn,
    type,
    type_version,
    to_timestamp((((at)::numeric / 1000000.0))::double precision) AS at,
    actor,
    convert_from(meta, 'UTF8'::name) AS meta,
        CASE
            WHEN (codec = 0) THEN convert_from(payload, 'UTF8'::name)
            ELSE NULL::text
        END AS payload,
    (payload IS NULL) AS erased,
    encode(event_id, 'hex'::text) AS event_id,
    encode(hash, 'hex'::text) AS hash
   FROM kern_events;
