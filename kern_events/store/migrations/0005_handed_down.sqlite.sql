-- What a fork was handed down (name, user and metadata of its parent, in session.forked, and in restores that
-- carry them on) goes when that is erased: with a tombstone in the parent, or with what was handed down to it.

-- What a fork says of itself is found without its other rows. Version 1, which no fork has, is where most
-- sessions begin: it stays out, so that a new session costs no more.
-- Not `version > 1`: SQLite would compare that with the value that each statement has for `version > ?`, and plan
-- the statement anew at every use.
CREATE INDEX kern_events_describing ON kern_events (session, type, version)
    WHERE version <> 1 AND type >= 'session.' AND type < 'session/';

DROP TRIGGER kern_events_append_only;

-- An UPDATE may only erase: content and salt go, the commitment comes, a tombstone stands after it. What is asked
-- of tombstones is asked of the skeleton index: kind <> 0 is its condition, and the + keeps the planner from
-- going through all versions that follow, for every row that is erased.
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
    AND (
        EXISTS (
            SELECT 1 FROM kern_events AS tombstone
            WHERE tombstone.session = OLD.session AND tombstone.kind <> 0 AND tombstone.kind IN (5, 6)
              AND +tombstone.version > OLD.version AND tombstone.type IN ('session.erased', 'session.deleted')
        )
        OR OLD.kind IN (3, 4) AND EXISTS (
            SELECT 1 FROM kern_sessions AS fork
            JOIN kern_sessions AS parent
              ON parent.namespace = fork.namespace AND parent.session_id = fork.fork_parent
            JOIN kern_events AS above ON above.session = parent.id
             AND above.kind <> 0 AND above.kind IN (4, 5, 6)
            WHERE fork.id = OLD.session
              AND (above.kind = 4 AND above.payload IS NULL
                   OR +above.version > fork.fork_version
                      AND above.type IN ('session.erased', 'session.deleted'))
        )
    )
)
BEGIN
    SELECT RAISE(ABORT, 'kern_events is append-only');
END;
