-- The PostgreSQL store, step 11: what jobs leave on their way: finished steps and log lines.

CREATE TABLE steps (
    job    bigint  NOT NULL,                        -- its seq
    name   text    COLLATE "C" NOT NULL,
    lease  integer NOT NULL,
    at     bigint  NOT NULL,
    result bytea   NOT NULL,                        -- JSON, opaque here
    PRIMARY KEY (job, name)
);

-- The last lines of a job; `number` counts those of one claim.
CREATE TABLE lines (
    job    bigint  NOT NULL,                        -- its seq
    lease  integer NOT NULL,
    number integer NOT NULL,
    at     bigint  NOT NULL,
    text   text    NOT NULL,
    PRIMARY KEY (job, lease, number)
);
