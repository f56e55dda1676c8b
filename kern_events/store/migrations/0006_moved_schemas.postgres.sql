-- ALTER SCHEMA ... RENAME and ALTER TABLE ... SET SCHEMA move the tables away from a name that a function has
-- pinned: no session could be erased any more, or the tombstones of another log were asked. So the functions
-- pin what no move changes, and look where the table of the trigger is now.

-- An UPDATE may only erase: content and salt go, the commitment comes, a tombstone stands after it. A temporary
-- table comes before all others on a search path that does not name pg_temp: of the name of one of ours, it could
-- show the triggers a tombstone that is none.
CREATE OR REPLACE FUNCTION kern_append_only() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        -- It ends with the function, as the function has a setting of its own.
        PERFORM set_config('search_path', format('pg_catalog, %I, pg_temp', TG_TABLE_SCHEMA), true);
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
           AND (EXISTS (
               SELECT FROM kern_events AS tombstone
               WHERE tombstone.namespace = OLD.namespace AND tombstone.session_id = OLD.session_id
                 AND tombstone.kind IN (5, 6) AND tombstone.version > OLD.version
                 AND tombstone.type IN ('session.erased', 'session.deleted'))
             OR OLD.kind IN (3, 4) AND EXISTS (
               SELECT FROM kern_sessions AS fork JOIN kern_events AS above
                 ON above.namespace = fork.namespace AND above.session_id = fork.fork_parent
                 AND above.kind <> 0 AND above.kind IN (4, 5, 6)
               WHERE fork.namespace = OLD.namespace AND fork.session_id = OLD.session_id
                 AND (above.kind = 4 AND above.payload IS NULL
                   OR above.version > fork.fork_version
                     AND above.type IN ('session.erased', 'session.deleted'))))
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE OR REPLACE FUNCTION kern_heads_stay() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% rows stay: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- The tables may have been moved already, and the functions left behind.
REVOKE ALL ON FUNCTION kern_append_only() FROM PUBLIC;
REVOKE ALL ON FUNCTION kern_heads_stay() FROM PUBLIC;
