-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.

-- ── Limits ───────────────────────────────────────────────────────────────────────────────────

CREATE TABLE limits (
    name        text    COLLATE "C" PRIMARY KEY,
    queue       text    COLLATE "C",                -- NULL: all
    kind        text    COLLATE "C",                -- NULL: all
    per_key     boolean NOT NULL,
    concurrency integer,
    gap         bigint,                             -- of a rate: microseconds from token to token,
    depth       integer,                            -- and the most that its bucket holds
    failures    float8,                             -- of a breaker: the share that opens it,
    least       integer,                            -- of so many attempts or more,
    span        bigint,                             -- within so many microseconds,
    pause       bigint,                             -- for so long; then
    probes      integer,                            -- so many may try
    spec        text    NOT NULL,                   -- all of it, as JSON
    was         text,                               -- what code declared last, also after a delete
    declared    boolean NOT NULL,
    deleted     boolean NOT NULL DEFAULT false,
    changed_by  text    NOT NULL,
    changed_at  bigint  NOT NULL
);

-- What is used of the limits that are not per key. Claims lock the rows, in the order of names.
CREATE TABLE slots (
    name    text    COLLATE "C" PRIMARY KEY,
    used    integer NOT NULL DEFAULT 0,
    full_at bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200,
        autovacuum_vacuum_cost_delay = 0);

-- What was freed of them and is not in their rows yet: who ends a run need not wait for these.
CREATE TABLE slot_deltas (
    name  text    COLLATE "C" NOT NULL,
    freed integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX slot_deltas_name ON slot_deltas (name);

-- How a key stands under a rate or a breaker that is per key.
CREATE TABLE key_states (
    name      text     COLLATE "C" NOT NULL,
    key       text     COLLATE "C" NOT NULL,
    full_at   bigint   NOT NULL DEFAULT 0,
    circuit   smallint NOT NULL DEFAULT 0,          -- 0 closed, 1 open, and from
    opens_at  bigint   NOT NULL DEFAULT 0,          -- on half-open
    since     bigint   NOT NULL DEFAULT 0,          -- where the younger half of the window began
    succeeded integer  NOT NULL DEFAULT 0,
    failed    integer  NOT NULL DEFAULT 0,
    before_succeeded integer NOT NULL DEFAULT 0,    -- in the older half
    before_failed    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (name, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

-- What breakers have to count and is not in these rows yet.
CREATE TABLE key_news (
    at   bigint  NOT NULL,
    name text    COLLATE "C" NOT NULL,
    key  text    COLLATE "C" NOT NULL,
    good integer NOT NULL,
    bad  integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX key_news_at  ON key_news (at);
CREATE INDEX key_news_key ON key_news (name, key);

-- Jobs that fall under limits stand in lanes: all jobs of a lane under the same ones. Its id follows
-- from its queue, kind, batch and key, so who puts a job into it need not know whether it is there.
CREATE TABLE lanes (
    id      uuid     PRIMARY KEY,
    queue   text     COLLATE "C" NOT NULL,
    kind    text     COLLATE "C" NOT NULL,
    key     text     COLLATE "C",
    batch   uuid,
    turn    bigint   NOT NULL,                      -- when it was served last, or began to wait
    place   bigint,                                 -- among the open lanes of its line; NULL: not open
    why     smallint,                               -- what closed it: 1 its key, 2 its batch; NULL: neither
    wake_at bigint,                                 -- of one that only time opens
    running integer  NOT NULL DEFAULT 0,
    floor   bigint   NOT NULL DEFAULT 9223372036854775807, -- no ready job of it has a lower rank
    since   bigint   NOT NULL DEFAULT 0             -- its turn when it opened, moved or closed last
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
-- No index has `turn`, `floor` or `running`: where nothing else changes, which is so for a lane that
-- stays closed while its key runs one job after the other, no index is touched.
CREATE INDEX lanes_open ON lanes (queue, kind, place, id) WHERE place IS NOT NULL;
CREATE INDEX lanes_key  ON lanes (key) WHERE key IS NOT NULL;
CREATE INDEX lanes_shut ON lanes (key) WHERE why = 1;
CREATE INDEX lanes_wake ON lanes (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX lanes_held ON lanes (batch, queue, kind, since) WHERE why = 2;
CREATE INDEX lanes_rest ON lanes (since) WHERE place IS NULL AND why IS NULL;
-- Ballast, as for jobs_live.
INSERT INTO lanes (id, queue, kind, turn, place)
SELECT gen_random_uuid(), '', '', 0, 0 FROM generate_series(1, 1000) n;

-- What happened to lanes and is not in their rows yet. Only claims change these rows: who inserts
-- jobs or ends runs waits for none, nor does a claim for him.
CREATE TABLE lane_news (
    lane    uuid    NOT NULL,
    queue   text    COLLATE "C" NOT NULL,
    kind    text    COLLATE "C" NOT NULL,
    key     text    COLLATE "C",
    batch   uuid,
    at      bigint  NOT NULL,
    rank    bigint,                                 -- the lowest of jobs that came
    ended   integer NOT NULL DEFAULT 0,             -- runs
    reopens boolean NOT NULL DEFAULT false          -- its key may have room again
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX lane_news_lane ON lane_news (lane);

-- Jobs in lanes have gate 4 while they are ready, and no rank: no claim of the plain line meets them.
ALTER TABLE all_jobs ADD COLUMN lane uuid;
CREATE OR REPLACE VIEW jobs AS SELECT * FROM all_jobs WHERE state >= 0;
CREATE INDEX jobs_lanes ON jobs_live (lane, (run_at - priority * 360000000::bigint), seq)
    WHERE state = 0 AND gate = 4;
DROP INDEX jobs_gated;
CREATE INDEX jobs_gated ON jobs_live (batch, gate, (run_at - priority * 360000000::bigint), seq)
    WHERE state = 0 AND gate < 4;

-- What claims hand to each other.

-- The run of a job ended, and how a breaker counts that.
CREATE TYPE freed AS (lane uuid, good integer, bad integer);
ALTER TYPE applied ADD ATTRIBUTE freed freed;

-- What the limits that are not per key leave to a line: the least of the rooms, which limits, and
-- the room of each.
CREATE TYPE hurdle AS (room integer, names text[], rooms integer[]);

-- A locked open lane, or one that is still `shut`: how many of it may start, and if none, why, and
-- until when. `names` are what it shares with other lanes, each with its room; `own` is the room if it
-- shares none and only ends of runs change it.
CREATE TYPE fit AS (
    lane uuid, queue text, kind text, key text, batch uuid, turn bigint, floor bigint,
    room integer, why smallint, wake_at bigint, names text[], rooms integer[], own integer,
    shut boolean);

-- A job that a lane would give, the `nth` of it, and the priority of the one after. `merit` is its
-- place among all that a demand could get.
CREATE TYPE candidate AS (
    line integer, portion integer, portion_slots integer, lane uuid, key text, queue text, kind text,
    seq bigint, nth integer, rank bigint, follows integer, merit bigint, pos integer,
    names text[], rooms integer[], own integer);

-- They answer more.
DROP FUNCTION IF EXISTS begin_rows, apply_moves, complete_jobs;

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
