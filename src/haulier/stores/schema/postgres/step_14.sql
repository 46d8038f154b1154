-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.

-- ── Flows ────────────────────────────────────────────────────────────────────────────────────

-- A job that waits for others has the gate 6. `children`, of one that others wait for: 1 they are to
-- be told when it ends, 2 they were told, 3 it was requeued and those cancelled for it come back.
ALTER TABLE all_jobs ADD COLUMN children smallint;
CREATE OR REPLACE VIEW jobs AS SELECT * FROM all_jobs WHERE state >= 0;
CREATE INDEX jobs_ended    ON jobs_done (seq) WHERE children = 1;
CREATE INDEX jobs_requeued ON jobs_live (seq) WHERE children = 3;

CREATE TABLE edges (
    child     bigint   NOT NULL,                    -- its seq
    nth       integer  NOT NULL,                    -- in the order in which the child names them
    parent    uuid     NOT NULL,
    otherwise smallint NOT NULL,                    -- 0 cancel, 1 run: when the parent does not complete
    state     smallint,                             -- what the parent came to; NULL: not told yet
    PRIMARY KEY (child, nth)
) WITH (fillfactor = 80, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX edges_parent ON edges (parent, child);
CREATE INDEX edges_open   ON edges (parent, child) WHERE state IS NULL;
CREATE INDEX edges_left   ON edges (child) WHERE state IS NULL;

-- What parents came to, kept for as long as a child of theirs is there. `work`: 1 children are being
-- told, 2 those that were cancelled for it are being brought back, from the child `done` on.
CREATE TABLE ends (
    parent     uuid     PRIMARY KEY,
    state      smallint NOT NULL,
    result     bytea,
    error      text,
    error_at   bigint,
    error_type text,
    work       smallint NOT NULL,
    done       bigint   NOT NULL DEFAULT 0
) WITH (fillfactor = 80);
CREATE INDEX ends_work ON ends (work) WHERE work > 0;

-- ── Schedules ────────────────────────────────────────────────────────────────────────────────

CREATE TABLE schedules (
    name       text    COLLATE "C" PRIMARY KEY,
    id         uuid    NOT NULL,
    revision   bigint  NOT NULL,                    -- rises with every change and every tick
    next       bigint,                              -- the next tick; NULL: paused
    last_job   uuid,                                -- of the latest tick
    kind       text    NOT NULL,                    -- of its jobs
    queue      text    NOT NULL,
    body       text    NOT NULL,                    -- JSON, opaque here
    changed_by text    NOT NULL,
    changed_at bigint  NOT NULL
);
CREATE INDEX schedules_next ON schedules (next) WHERE next IS NOT NULL;

-- States: 0 fired, 1 manual, 2 missed (from `since` up to this one), 3 left out for an overlap.
CREATE TABLE ticks (
    schedule text     COLLATE "C" NOT NULL,
    tick     bigint   NOT NULL,
    at       bigint   NOT NULL,
    state    smallint NOT NULL,
    job      uuid,
    since    bigint,
    PRIMARY KEY (schedule, tick)
);
CREATE INDEX ticks_job ON ticks (job) WHERE job IS NOT NULL;

-- ── Configuration ────────────────────────────────────────────────────────────────────────────

-- At most one row: what every exchange looks at.
CREATE TABLE configuration (
    version bigint NOT NULL,
    paused  text[]                                  -- queues; NULL: none
) WITH (fillfactor = 50);

CREATE TABLE settings (
    name       text   COLLATE "C" PRIMARY KEY,
    value      text   NOT NULL,                     -- JSON, opaque here
    version    bigint NOT NULL,                     -- that set it
    changed_by text   NOT NULL,
    changed_at bigint NOT NULL
);

-- The last changes of single settings: NULL where one was not set.
CREATE TABLE alterations (
    version bigint NOT NULL,
    at      bigint NOT NULL,
    by      text   NOT NULL,
    name    text   COLLATE "C" NOT NULL,
    before  text,
    after   text,
    PRIMARY KEY (version, name)
);

-- Of queues that are taken from by weight, their times: how far each job moves it on, where it is.
ALTER TYPE demand ADD ATTRIBUTE step bigint, ADD ATTRIBUTE ahead bigint;

-- They got arguments more, or answer more.
DROP FUNCTION IF EXISTS exchange, look, take_turn;
DROP FUNCTION IF EXISTS begin_restart;

-- ── Nested batches ───────────────────────────────────────────────────────────────────────────

-- A job of role 3 is the head of a batch and an item of another one: `within` that one. Who has paused a
-- batch: 1 itself, 2 the batch around it, 3 both.
ALTER TABLE batches ADD COLUMN within uuid, ADD COLUMN pauses smallint NOT NULL DEFAULT 0;
UPDATE batches SET pauses = 1 WHERE paused;
CREATE INDEX batches_within ON batches (within, id) WHERE within IS NOT NULL;

-- Batches of which something within them has settled; see nesting.sql.
CREATE TABLE nested_due (
    batch    uuid    NOT NULL,
    failures integer NOT NULL
);
CREATE INDEX nested_due_batch ON nested_due (batch);
