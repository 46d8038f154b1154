-- The SQLite store, schema step 6: limits, flows, schedules, configuration of what runs.

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
