-- The SQLite store, schema step 4: what jobs leave on their way: finished steps and log lines.

-- Not WITHOUT ROWID: results may be long.
CREATE TABLE steps (
    job    INTEGER NOT NULL,                        -- its seq
    name   TEXT    NOT NULL,
    lease  INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    result BLOB    NOT NULL,                        -- JSON, opaque here
    PRIMARY KEY (job, name)
) STRICT;

-- The last lines of a job; `number` counts those of one claim.
CREATE TABLE lines (
    job    INTEGER NOT NULL,                        -- its seq
    lease  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    text   TEXT    NOT NULL,
    PRIMARY KEY (job, lease, number)
) STRICT, WITHOUT ROWID;
