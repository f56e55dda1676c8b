-- Forks are found by the session that they were made from: an erasure has to reach them.

CREATE INDEX kern_sessions_forks ON kern_sessions (namespace, fork_parent) WHERE fork_parent IS NOT NULL;

-- Stands in `projector`: snapshots of old code and of new code lie side by side, in one key.
ALTER TABLE kern_snapshots DROP COLUMN fingerprint;

-- Only the listing says `updated_hour >= 0`. A plan that was made for an append while the table was small
-- could otherwise search by the namespace alone, and stay.
DROP INDEX kern_sessions_recent;
CREATE INDEX kern_sessions_recent ON kern_sessions (namespace, updated_hour) WHERE updated_hour >= 0;

-- A cold load reads whole chunks at once; decompressing them would take longer than reading them.
ALTER TABLE kern_snapshots ALTER COLUMN data SET STORAGE EXTERNAL;
