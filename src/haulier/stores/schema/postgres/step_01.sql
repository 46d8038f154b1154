-- The PostgreSQL store, step 1: tables. Instants are microseconds UTC. Names are unqualified: a step
-- runs with the store's own schema as its search path.
-- State codes: 0 pending, 1 running, 2 completed, 3 failed, 4 cancelled. Roles: 0 single, 1 head, 2 item.

-- One row: how far the schema is, and the lowest protocol of workers that it still serves.
CREATE TABLE store (
    step     integer NOT NULL,
    protocol integer NOT NULL
);

CREATE SEQUENCE job_seqs AS bigint;

-- What is done lies apart, so that history never slows a claim down. Rows go from one partition to
-- the other by DELETE and INSERT: an UPDATE that moves a row makes those that wait for it fail.
CREATE TABLE all_jobs (
    seq         bigint   NOT NULL DEFAULT nextval('job_seqs'),  -- the order of insertion
    id          uuid     NOT NULL,
    kind        text     COLLATE "C" NOT NULL,
    queue       text     COLLATE "C" NOT NULL,
    role        smallint NOT NULL,
    version     integer  NOT NULL,
    payload     bytea    NOT NULL,                  -- JSON, opaque here
    state       smallint NOT NULL,
    rank        bigint,                             -- place in the ready line; NULL: not due yet
    gate        smallint,                           -- NULL none, 1 parked, 2 let in, 3 to be run alone
    priority    integer  NOT NULL,
    run_at      bigint   NOT NULL,
    attempt     integer  NOT NULL DEFAULT 0,
    lease       integer  NOT NULL DEFAULT 0,        -- rises with every claim and never falls
    lost        integer  NOT NULL DEFAULT 0,
    cancel      smallint NOT NULL DEFAULT 0,        -- 1 requested, 2 heard by its worker
    on_lost     smallint NOT NULL DEFAULT 0,        -- 0 retry, 1 fail
    key         text,
    batch       uuid,
    position    integer,
    retry       text,                               -- the job's own policy as JSON; NULL: its task's
    uniq        text[],                             -- the names that a requeue takes back; NULL: none at all
    worker      uuid,                               -- NULL while running: a head that waits
    waiter      uuid,                               -- the worker that runs dry to run it alone
    created_at  bigint   NOT NULL,
    started_at  bigint,
    finished_at bigint,
    progress    integer,
    message     text,
    result      bytea,
    error       text,                               -- JSON; its time and class beside it
    error_at    bigint,
    error_type  text
) PARTITION BY LIST (state);

-- Vacuumed early and often: every job leaves two or three dead rows behind.
CREATE TABLE jobs_live PARTITION OF all_jobs FOR VALUES IN (-1, 0, 1) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0);
CREATE TABLE jobs_done PARTITION OF all_jobs FOR VALUES IN (2, 3, 4) WITH (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1);

ALTER TABLE jobs_live ADD PRIMARY KEY (seq);
ALTER TABLE jobs_done ADD PRIMARY KEY (seq);
CREATE UNIQUE INDEX jobs_live_id ON jobs_live (id);
CREATE UNIQUE INDEX jobs_done_id ON jobs_done (id);
CREATE INDEX jobs_live_items ON jobs_live (batch, seq) WHERE batch IS NOT NULL;
CREATE INDEX jobs_done_items ON jobs_done (batch, seq) WHERE batch IS NOT NULL;
CREATE INDEX jobs_live_top   ON jobs_live (seq) WHERE batch IS NULL;
CREATE INDEX jobs_done_top   ON jobs_done (seq) WHERE batch IS NULL;

-- By kind, so that a claim never steps over jobs that its worker cannot take.
CREATE INDEX jobs_ready     ON jobs_live (queue, kind, rank, seq) WHERE state = 0 AND rank IS NOT NULL;
CREATE INDEX jobs_scheduled ON jobs_live (run_at) WHERE state = 0 AND rank IS NULL AND gate IS NULL;
CREATE INDEX jobs_running   ON jobs_live (worker, cancel) WHERE worker IS NOT NULL;
CREATE INDEX jobs_gated     ON jobs_live (batch, gate, (run_at - priority * 360000000::bigint), seq)
                            WHERE state = 0 AND gate IS NOT NULL;
CREATE INDEX jobs_alone     ON jobs_live (state, run_at) WHERE gate = 3;

CREATE INDEX jobs_failed    ON jobs_done (batch, seq) WHERE state = 3;
CREATE INDEX jobs_dead      ON jobs_done (seq) WHERE state = 3;
CREATE INDEX jobs_finished  ON jobs_done (kind, state, finished_at) WHERE role < 2;
CREATE INDEX jobs_results   ON jobs_done (kind, finished_at)
                            WHERE state = 2 AND role = 0 AND result IS NOT NULL AND result <> 'null';

-- Ballast: rows in a state of no job. The line is empty most of the time, and for an empty table any
-- index is as good as any other to the planner. One plan made then, which reads a whole index, costs
-- dearly when thousands wait, or when thousands that are done cannot be vacuumed.
INSERT INTO jobs_live (seq, id, kind, queue, role, version, payload, state, priority, run_at, created_at)
SELECT -n, gen_random_uuid(), '', '', 9, 0, '', -1, 0, 0, 0 FROM generate_series(1, 2000) n;

CREATE VIEW jobs AS SELECT * FROM all_jobs WHERE state >= 0;

CREATE TABLE batches (
    id           uuid     PRIMARY KEY,              -- its head job's id
    own_expander boolean  NOT NULL,                 -- a worker runs the head to make the items
    sealed       boolean  NOT NULL DEFAULT false,
    paused       boolean  NOT NULL DEFAULT false,
    gated        boolean  NOT NULL DEFAULT false,   -- paused or limited, and not settled
    owed         boolean  NOT NULL DEFAULT true,    -- not settled in this round
    cancel       smallint NOT NULL DEFAULT 0,       -- 1 cancelled, 2 cut short: too many items failed
    total        integer  NOT NULL DEFAULT 0,
    pending      integer  NOT NULL DEFAULT 0,
    running      integer  NOT NULL DEFAULT 0,
    completed    integer  NOT NULL DEFAULT 0,
    failed       integer  NOT NULL DEFAULT 0,
    cancelled    integer  NOT NULL DEFAULT 0,
    started_at   bigint,
    concurrency  integer,
    batch_size   integer,
    max_failures integer,
    finish_kind  text,
    finish_queue text,
    finish_job   uuid,
    finish_ids   uuid[]   NOT NULL DEFAULT '{}',    -- the ids of its callbacks, one per round
    leases       integer  NOT NULL DEFAULT 0,       -- its items' leases begin above this
    draining     smallint NOT NULL DEFAULT 0,       -- work on all items that is under way, in slices:
    drained      bigint   NOT NULL DEFAULT 0,       -- how far it has come,
    moved        integer  NOT NULL DEFAULT 0,       -- how many items it concerned,
    retry_type   text,                              -- of a retry: which errors,
    retry_left   integer                            -- and how many more
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200,
        autovacuum_vacuum_cost_delay = 0);

CREATE INDEX batches_draining ON batches (id) WHERE draining > 0;
CREATE INDEX batches_sized    ON batches (id) WHERE gated AND NOT paused AND batch_size IS NOT NULL;

-- Changes of a batch's counters that are not in its row yet: a claim appends here, so that it need
-- not wait for the row. Who locks the row folds them in.
CREATE TABLE batch_deltas (
    batch      uuid    NOT NULL,
    total      integer NOT NULL,
    pending    integer NOT NULL,
    running    integer NOT NULL,
    completed  integer NOT NULL,
    failed     integer NOT NULL,
    cancelled  integer NOT NULL,
    started_at bigint
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX batch_deltas_batch ON batch_deltas (batch);

-- What happened, not numbered yet: transactions do not commit in the order in which they took
-- numbers. Many events of one transaction that differ only in job, attempt and lease share a row;
-- body holds these, packed. Counters of queues follow from the same rows.
CREATE TABLE journal (
    id     bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    n      integer  NOT NULL,
    at     bigint   NOT NULL,
    type   text     NOT NULL,
    kind   text     COLLATE "C" NOT NULL,
    queue  text     COLLATE "C" NOT NULL,
    role   smallint NOT NULL,
    batch  uuid,
    source smallint,                                -- the state they left; NULL: they were inserted
    target smallint,                                -- and the one they came to; NULL: they were removed
    worker uuid,
    error  text,
    body   bytea    NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 0);

-- The same, numbered and without a gap; seq is the number of the row's last event.
CREATE TABLE events (
    seq    bigint   PRIMARY KEY,
    n      integer  NOT NULL,
    at     bigint   NOT NULL,
    type   text     NOT NULL,
    kind   text     COLLATE "C" NOT NULL,
    queue  text     COLLATE "C" NOT NULL,
    role   smallint NOT NULL,
    batch  uuid,
    worker uuid,
    error  text,
    body   bytea    NOT NULL
);

-- Ids are random: to try to compress them takes time and gains nothing.
ALTER TABLE journal ALTER body SET STORAGE EXTERNAL;
ALTER TABLE events  ALTER body SET STORAGE EXTERNAL;

-- Up to where the journal is numbered; its later rows are added when somebody asks.
CREATE TABLE counts (
    queue text     COLLATE "C" NOT NULL,
    kind  text     COLLATE "C" NOT NULL,
    role  smallint NOT NULL,
    state smallint NOT NULL,
    n     bigint   NOT NULL,
    PRIMARY KEY (queue, kind, role, state)
) WITH (fillfactor = 50);

-- One row: the name of this history, and the number of its last event.
CREATE TABLE history (
    epoch text   NOT NULL,
    last  bigint NOT NULL
) WITH (fillfactor = 50);
INSERT INTO history VALUES (substr(md5(gen_random_uuid()::text), 1, 8), 0);

-- The errors of a job's attempts, by the number of the claim that ended so.
CREATE TABLE errors (
    job    bigint  NOT NULL,                        -- its seq
    lease  integer NOT NULL,
    at     bigint  NOT NULL,
    error  text    NOT NULL,                        -- JSON
    PRIMARY KEY (job, lease)
);

CREATE TABLE uniques (
    name   text     COLLATE "C" PRIMARY KEY,
    job    uuid     NOT NULL,
    scope  smallint NOT NULL,                       -- 0 pending, 1 active, 2 period
    until  bigint,                                  -- of a period
    digest bytea    NOT NULL
);
CREATE INDEX uniques_job   ON uniques (job);
CREATE INDEX uniques_until ON uniques (until) WHERE until IS NOT NULL;

CREATE TABLE workers (
    id         uuid    PRIMARY KEY,                 -- one incarnation, random, never reused
    host       text    NOT NULL,
    pid        integer NOT NULL,
    queues     text    NOT NULL,
    kinds      text    NOT NULL,
    slots      integer NOT NULL,
    turn       bigint  NOT NULL DEFAULT 0,          -- exchanges up to this one come too late
    expires    bigint  NOT NULL,
    started_at bigint  NOT NULL,
    renewed_at bigint  NOT NULL,
    ended_at   bigint
) WITH (fillfactor = 50);

-- What functions hand to each other, and to the client.

CREATE TYPE moved AS (
    type text, id uuid, attempt integer, lease integer, queue text, kind text, role smallint,
    batch uuid, source smallint, target smallint, worker uuid, error text);

-- One transition as the client hands it in; what its move brings along comes with it, from the one
-- table of rules that all stores obey. `alone`: it has lost so many workers that it runs alone.
CREATE TYPE transition AS (
    seq bigint, lease integer, move text, target smallint, delay bigint, attempt integer,
    lost integer, rise integer, yields boolean, records boolean, alone boolean, error text,
    error_type text);

CREATE TYPE applied AS (place integer, failed boolean, ended boolean, handed boolean, event moved);

-- What a worker could start: lines of ready jobs, one per queue and kind, each belonging to a
-- portion and a demand, which have so many slots. What stands before `floor` was claimed already, as
-- far as the worker knows.
CREATE TYPE demand AS (
    demand integer, portion integer, queue text, kind text, floor bigint, portion_slots integer,
    slots integer);

-- A job as a claim tells it. The last row of an exchange is no job: its message holds the rest of
-- the answer, as JSON.
CREATE TYPE claimed AS (
    id text, seq bigint, kind text, queue text, payload bytea, state smallint, version integer,
    role smallint, priority integer, run_at bigint, attempt integer, lease integer, lost integer,
    key text, batch text, "position" integer, retry text, worker text, cancel smallint,
    gate smallint, named boolean, on_lost smallint, created_at bigint, started_at bigint,
    finished_at bigint, progress integer, message text, result bytea, error text, error_at bigint);

-- The names of a new job. Conflicts: 0 skip, 1 replace, 2 reject, 3 match.
CREATE TYPE uniqueness AS (
    job integer, name text, scope smallint, conflict smallint, period bigint, digest bytea);

-- How batches of new heads are worked on: for those of one call it is the same.
CREATE TYPE policy AS (
    own_expander boolean, finish_kind text, finish_queue text, concurrency integer,
    batch_size integer, max_failures integer, finish_of uuid[], finish_ids uuid[]);
