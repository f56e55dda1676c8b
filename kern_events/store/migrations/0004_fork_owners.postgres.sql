-- In whose rows a fork's origin lies: in a chain of forks none between needs to be asked. NULL is not known,
-- as of forks that are there already, and their parent is asked.

ALTER TABLE kern_sessions ADD COLUMN fork_owner text COLLATE "C";
