-- A long deletion erases in slices. Until the last one, a head row has the version of its tombstone here: what is
-- below it counts as erased, whatever the rows hold yet, and the next deletion goes on with it.

ALTER TABLE kern_sessions ADD COLUMN erasing bigint;
CREATE INDEX kern_sessions_erasing ON kern_sessions (namespace, session_id) WHERE erasing IS NOT NULL;

-- An UPDATE may only erase: content and salt go, the commitment comes, a tombstone stands after it. The first of it
-- is seen from the row alone, and the tombstone is looked for once for all rows of a session in a statement: looked
-- for at each row, it cost three times the erasure, and the square of it under plans that were made for few rows.

DROP TRIGGER kern_events_rows ON kern_events;

CREATE OR REPLACE FUNCTION kern_append_only() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

-- A temporary table comes before all others on a search path that does not name pg_temp: of the name of one of ours,
-- it could show the trigger a tombstone that is none.
CREATE FUNCTION kern_only_under_tombstones() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
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
END $$;

REVOKE ALL ON FUNCTION kern_append_only() FROM PUBLIC;
REVOKE ALL ON FUNCTION kern_only_under_tombstones() FROM PUBLIC;

CREATE TRIGGER kern_events_rows BEFORE DELETE ON kern_events
    FOR EACH ROW EXECUTE FUNCTION kern_append_only();
CREATE TRIGGER kern_events_update BEFORE UPDATE ON kern_events
    FOR EACH ROW WHEN ((
        (NEW.namespace, NEW.session_id, NEW.version, NEW.position, NEW.event_id, NEW.type,
         NEW.type_version, NEW.kind, NEW.turn, NEW.ref, NEW.at, NEW.actor, NEW.meta,
         NEW.idempotency_key, NEW.codec, NEW.key_commit, NEW.hash)
        IS NOT DISTINCT FROM
        (OLD.namespace, OLD.session_id, OLD.version, OLD.position, OLD.event_id, OLD.type,
         OLD.type_version, OLD.kind, OLD.turn, OLD.ref, OLD.at, OLD.actor, OLD.meta,
         OLD.idempotency_key, OLD.codec, OLD.key_commit, OLD.hash)
        AND OLD.kind NOT IN (5, 6) AND OLD.payload IS NOT NULL
        AND NEW.payload IS NULL AND NEW.native IS NULL AND NEW.salt IS NULL
        AND length(NEW.payload_commit) = 32) IS NOT TRUE)
    EXECUTE FUNCTION kern_append_only();
CREATE TRIGGER kern_events_erased AFTER UPDATE ON kern_events REFERENCING OLD TABLE AS erased
    FOR EACH STATEMENT EXECUTE FUNCTION kern_only_under_tombstones();

ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_rows;
ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_update;
ALTER TABLE kern_events ENABLE ALWAYS TRIGGER kern_events_erased;
