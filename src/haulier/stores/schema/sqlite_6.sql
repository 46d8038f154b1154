-- The SQLite store, schema step 6: limits, flows, schedules, configuration of what runs.

-- ── Flows ────────────────────────────────────────────────────────────────────────────────────

-- A job that waits for others has the gate 6. `children`, of one that others wait for: 1 they are to
-- be told when it ends, 2 they were told, 3 it was requeued and those cancelled for it come back.
ALTER TABLE jobs ADD COLUMN children INTEGER;
CREATE INDEX jobs_parents ON jobs (children, state) WHERE children IN (1, 3);

CREATE TABLE edges (
    child     INTEGER NOT NULL,                     -- its seq
    nth       INTEGER NOT NULL,                     -- in the order in which the child names them
    parent    BLOB    NOT NULL,
    otherwise INTEGER NOT NULL,                     -- 0 cancel, 1 run: when the parent does not complete
    state     INTEGER,                              -- what the parent came to; NULL: not told yet
    PRIMARY KEY (child, nth)
) STRICT, WITHOUT ROWID;
CREATE INDEX edges_parent ON edges (parent, child);
CREATE INDEX edges_open   ON edges (parent, child) WHERE state IS NULL;
CREATE INDEX edges_left   ON edges (child) WHERE state IS NULL;

-- What parents came to, kept for as long as a child of theirs is there. `work`: 1 children are being
-- told, 2 those that were cancelled for it are being brought back, from the child `done` on.
CREATE TABLE ends (
    parent BLOB    PRIMARY KEY,
    state  INTEGER NOT NULL,
    result BLOB,
    error  TEXT,
    work   INTEGER NOT NULL,
    done   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX ends_work ON ends (work) WHERE work > 0;

-- ── Schedules ────────────────────────────────────────────────────────────────────────────────

CREATE TABLE schedules (
    name       TEXT    NOT NULL PRIMARY KEY,
    id         BLOB    NOT NULL,
    revision   INTEGER NOT NULL,                    -- rises with every change and every tick
    next       INTEGER,                             -- the next tick; NULL: paused
    last_job   BLOB,                                -- of the latest tick
    kind       TEXT    NOT NULL,                    -- of its jobs
    queue      TEXT    NOT NULL,
    body       TEXT    NOT NULL,                    -- JSON, opaque here
    changed_by TEXT    NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

CREATE INDEX schedules_next ON schedules (next) WHERE next IS NOT NULL;

-- States: 0 fired, 1 manual, 2 missed (from `since` up to this one), 3 left out for an overlap.
CREATE TABLE ticks (
    schedule TEXT    NOT NULL,
    tick     INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    state    INTEGER NOT NULL,
    job      BLOB,
    since    INTEGER,
    PRIMARY KEY (schedule, tick)
) STRICT, WITHOUT ROWID;

CREATE INDEX ticks_job ON ticks (job) WHERE job IS NOT NULL;
-- ── Configuration ────────────────────────────────────────────────────────────────────────────

-- At most one row: what every exchange looks at.
CREATE TABLE configuration (
    version INTEGER NOT NULL,
    paused  TEXT                                    -- a JSON list of queues; NULL: none
) STRICT;

CREATE TABLE settings (
    name       TEXT    PRIMARY KEY,
    value      TEXT    NOT NULL,                    -- JSON
    version    INTEGER NOT NULL,                    -- that set it
    changed_by TEXT    NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The last changes of single settings: NULL where one was not set.
CREATE TABLE alterations (
    version INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    by      TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    before  TEXT,
    after   TEXT,
    PRIMARY KEY (version, name)
) STRICT, WITHOUT ROWID;

-- ── Nested batches ───────────────────────────────────────────────────────────────────────────

-- A job of role 3 is the head of a batch and an item of another one: `within` that one. From here on
-- `paused` is 1 by itself, 2 by the batch around it, 3 both.
ALTER TABLE batches ADD COLUMN within BLOB;
CREATE INDEX batches_within ON batches (within, owed) WHERE within IS NOT NULL;
