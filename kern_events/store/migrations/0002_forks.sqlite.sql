-- Forks are found by the session that they were made from: an erasure has to reach them.

CREATE INDEX kern_sessions_forks ON kern_sessions (namespace, fork_parent) WHERE fork_parent IS NOT NULL;

-- Stands in `projector`: snapshots of old code and of new code lie side by side, in one key.
ALTER TABLE kern_snapshots DROP COLUMN fingerprint;
