-- The SQLite store, schema step 6: limits, flows, schedules, configuration of what runs.

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
