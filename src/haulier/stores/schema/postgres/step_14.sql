-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.
SELECT;

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
