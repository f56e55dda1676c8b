-- A long deletion erases in slices. Until the last one, a head row has the version of its tombstone here: what is
-- below it counts as erased, whatever the rows hold yet, and the next deletion goes on with it.

ALTER TABLE kern_sessions ADD COLUMN erasing INTEGER;
CREATE INDEX kern_sessions_erasing ON kern_sessions (namespace, session_id) WHERE erasing IS NOT NULL;
