-- The SQLite store, schema step 1. Instants are microseconds UTC; ids are the 16 bytes of a UUID.
-- State codes: 0 pending, 1 running, 2 completed, 3 failed, 4 cancelled. Roles: 0 single, 1 head, 2 item.

CREATE TABLE jobs (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of insertion; never used twice
    id          BLOB    NOT NULL UNIQUE,
    kind        TEXT    NOT NULL,
    queue       TEXT    NOT NULL,
    role        INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    payload     BLOB    NOT NULL,                   -- JSON, opaque here
    state       INTEGER NOT NULL,
    rank        INTEGER,                            -- place in the ready line; NULL: not due yet
    priority    INTEGER NOT NULL,
    run_at      INTEGER NOT NULL,
    attempt     INTEGER NOT NULL DEFAULT 0,
    lease       INTEGER NOT NULL DEFAULT 0,         -- rises with every claim and never falls
    lost        INTEGER NOT NULL DEFAULT 0,
    cancel      INTEGER NOT NULL DEFAULT 0,
    key         TEXT,
    batch       BLOB,
    position    INTEGER,
    retry       TEXT,                               -- the job's own policy as JSON; NULL: its task's
    worker      BLOB,                               -- NULL while running: a head that waits
    created_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    progress    INTEGER,
    message     TEXT,
    result      BLOB,
    error       TEXT
) STRICT;

-- Each index is partial, so that a job's row sits only in those that its state needs.
CREATE INDEX jobs_ready     ON jobs (queue, rank, seq, kind) WHERE state = 0 AND rank IS NOT NULL;
CREATE INDEX jobs_scheduled ON jobs (run_at)                 WHERE state = 0 AND rank IS NULL;
CREATE INDEX jobs_running   ON jobs (worker, cancel)         WHERE state = 1;
CREATE INDEX jobs_failed    ON jobs (batch, seq)             WHERE state = 3;
CREATE INDEX jobs_items     ON jobs (batch, seq)             WHERE batch IS NOT NULL;
CREATE INDEX jobs_top       ON jobs (seq)                    WHERE role < 2;

CREATE TABLE batches (
    id           BLOB    PRIMARY KEY,               -- its head job's id
    own_expander INTEGER NOT NULL,                  -- 1: a worker runs the head to make the items
    sealed       INTEGER NOT NULL DEFAULT 0,
    draining     INTEGER NOT NULL DEFAULT 0,        -- a cancel (1), retry (2) or delete (3) in slices
    cancel       INTEGER NOT NULL DEFAULT 0,
    total        INTEGER NOT NULL DEFAULT 0,
    pending      INTEGER NOT NULL DEFAULT 0,
    running      INTEGER NOT NULL DEFAULT 0,
    completed    INTEGER NOT NULL DEFAULT 0,
    failed       INTEGER NOT NULL DEFAULT 0,
    cancelled    INTEGER NOT NULL DEFAULT 0,
    started_at   INTEGER,
    finish_kind  TEXT,
    finish_queue TEXT,
    finish_job   BLOB,
    round        INTEGER NOT NULL DEFAULT 0         -- how often it has settled
) STRICT, WITHOUT ROWID;

CREATE INDEX batches_draining ON batches (id) WHERE draining > 0;

-- Kept by every transition, so that no question needs COUNT(*).
CREATE TABLE counts (
    queue TEXT    NOT NULL,
    kind  TEXT    NOT NULL,
    role  INTEGER NOT NULL,
    state INTEGER NOT NULL,
    n     INTEGER NOT NULL,
    PRIMARY KEY (queue, kind, role, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE workers (
    id         BLOB    PRIMARY KEY,                 -- one incarnation, random, never reused
    host       TEXT    NOT NULL,
    pid        INTEGER NOT NULL,
    queues     TEXT    NOT NULL,
    kinds      TEXT    NOT NULL,
    slots      INTEGER NOT NULL,
    boot       TEXT    NOT NULL,                    -- expiry is in this boot's own time,
    expires    INTEGER NOT NULL,                    -- which no clock change can move
    started_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,
    ended_at   INTEGER
) STRICT, WITHOUT ROWID;
