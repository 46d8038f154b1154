-- The SQLite store, schema step 6: limits, flows, schedules, configuration of what runs.

-- ── Limits ───────────────────────────────────────────────────────────────────────────────────

-- told: the limit as JSON; NULL: it was deleted, and one that is declared stays away.
CREATE TABLE limits (
    name       TEXT    NOT NULL PRIMARY KEY,
    told       TEXT,
    declared   TEXT,                                -- what code has declared last
    by_code    INTEGER NOT NULL,                    -- 1: told comes from there
    changed_by TEXT    NOT NULL,
    changed_at INTEGER NOT NULL,
    used       INTEGER NOT NULL DEFAULT 0,          -- jobs that run, of a concurrency for all keys
    full_at    INTEGER NOT NULL DEFAULT 0           -- when the bucket is full, of a rate for all keys
) STRICT;

-- How keys stand under limits that are per key: rates and breakers.
CREATE TABLE meters (
    name        TEXT    NOT NULL,                   -- of the limit
    key         TEXT    NOT NULL,
    rest_at     INTEGER NOT NULL,                   -- then it says no more; of a rate: is full
    open_until  INTEGER,                            -- of a breaker; when that is over, half-open
    half        INTEGER NOT NULL DEFAULT 0,         -- the half window that is counted, and what
    good        INTEGER NOT NULL DEFAULT 0,         -- has succeeded and failed in it
    bad         INTEGER NOT NULL DEFAULT 0,
    good_before INTEGER NOT NULL DEFAULT 0,         -- and in the one before
    bad_before  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;

-- Ready jobs that all have the same limits. why: 0 open, 1 no job is ready, 2 its key has no room,
-- 3 its batch has none. An id is never used twice, since finished jobs still name theirs.
CREATE TABLE lanes (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    queue   TEXT    NOT NULL,
    kind    TEXT    NOT NULL,
    key     TEXT,
    batch   BLOB,
    head    INTEGER NOT NULL,
    why     INTEGER NOT NULL DEFAULT 1,
    turn    INTEGER NOT NULL,                       -- when it was served last, or made
    place   INTEGER NOT NULL,                       -- turn, and before it by the priority of its first
    wake_at INTEGER,                                -- when only time opens it
    running INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX lanes_which ON lanes (key, queue, kind, batch, head);
CREATE INDEX lanes_open  ON lanes (queue, kind, head, place, id) WHERE why = 0;
CREATE INDEX lanes_empty ON lanes (id)                           WHERE why = 1 AND running = 0;
CREATE INDEX lanes_batch ON lanes (queue, kind, batch, place)    WHERE why = 3;
CREATE INDEX lanes_wake  ON lanes (wake_at)                      WHERE wake_at IS NOT NULL;

ALTER TABLE jobs ADD COLUMN lane INTEGER;                        -- NULL: in the plain line, if in any

DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs (queue, kind, rank, seq) WHERE state = 0 AND rank IS NOT NULL AND lane IS NULL;
CREATE INDEX jobs_lane  ON jobs (lane, rank, seq, priority, state) WHERE state = 0 AND rank IS NOT NULL AND lane IS NOT NULL;

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
