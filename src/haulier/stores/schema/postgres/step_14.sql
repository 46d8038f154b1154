-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.

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
