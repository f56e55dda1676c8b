-- Sessions that a consumer of the feed has set aside: from `version` on, their events wait.

CREATE TABLE kern_parked (
    version    bigint NOT NULL,
    attempts   bigint NOT NULL,
    retry_at   bigint,
    parked_at  bigint NOT NULL,
    namespace  text COLLATE "C" NOT NULL,
    consumer   text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    error      text COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, consumer, session_id)
);

-- Those that are to be tried again; the others wait for somebody.
CREATE INDEX kern_parked_due ON kern_parked (namespace, consumer, retry_at) WHERE retry_at IS NOT NULL;
