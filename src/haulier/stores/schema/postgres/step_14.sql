-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.

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
