-- Sessions that a consumer of the feed has set aside: from `version` on, their events wait.

CREATE TABLE kern_parked (
    namespace  TEXT NOT NULL,
    consumer   TEXT NOT NULL,
    session_id TEXT NOT NULL,
    version    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    retry_at   INTEGER,
    parked_at  INTEGER NOT NULL,
    error      TEXT NOT NULL,
    PRIMARY KEY (namespace, consumer, session_id)
) STRICT;

-- Those that are to be tried again; the others wait for somebody.
CREATE INDEX kern_parked_due ON kern_parked (namespace, consumer, retry_at) WHERE retry_at IS NOT NULL;
