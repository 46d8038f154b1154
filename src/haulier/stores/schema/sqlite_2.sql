-- The SQLite store, schema step 2: unique names, gated batches, errors, events, retention.

-- gate: NULL none, 1 parked by its batch, 2 let in by its batch, 3 to be run alone.
ALTER TABLE jobs ADD COLUMN gate    INTEGER;
ALTER TABLE jobs ADD COLUMN on_lost INTEGER NOT NULL DEFAULT 0;  -- 0 retry, 1 fail
ALTER TABLE jobs ADD COLUMN uniq    TEXT;                        -- its unique names, as JSON
ALTER TABLE jobs ADD COLUMN waiter  BLOB;                        -- the worker that runs dry to run it alone

-- From here on `cancel` of a job is 1 requested, 2 heard by its worker; that of a batch is
-- 1 cancelled, 2 cut short because too many of its items failed.

-- By kind, so that a claim never steps over jobs that its worker cannot take.
DROP INDEX jobs_ready;
CREATE INDEX jobs_ready     ON jobs (queue, kind, rank, seq) WHERE state = 0 AND rank IS NOT NULL;
DROP INDEX jobs_scheduled;
CREATE INDEX jobs_scheduled ON jobs (run_at)               WHERE state = 0 AND rank IS NULL AND gate IS NULL;
-- In the order in which they are let in: by the rank that they will have.
CREATE INDEX jobs_gated     ON jobs (batch, gate, run_at - priority * 360000000, seq)
                                                           WHERE state = 0 AND gate IS NOT NULL;
CREATE INDEX jobs_alone     ON jobs (state, run_at)        WHERE gate = 3;
-- What retention looks through: in the order in which jobs of a kind reached an end.
CREATE INDEX jobs_finished  ON jobs (kind, state, finished_at) WHERE state > 1 AND role < 2;
-- The dead letters, which are few among all that is kept.
CREATE INDEX jobs_dead      ON jobs (seq)                  WHERE state = 3;
CREATE INDEX jobs_results   ON jobs (kind, finished_at)
                   WHERE state = 2 AND role = 0 AND result IS NOT NULL AND result <> x'6e756c6c';

ALTER TABLE batches ADD COLUMN paused       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN concurrency  INTEGER;
ALTER TABLE batches ADD COLUMN batch_size   INTEGER;
ALTER TABLE batches ADD COLUMN max_failures INTEGER;
ALTER TABLE batches ADD COLUMN gated        INTEGER NOT NULL DEFAULT 0;  -- 1: paused or limited, and not settled
ALTER TABLE batches ADD COLUMN owed         INTEGER NOT NULL DEFAULT 1;  -- 1: not settled in this round
ALTER TABLE batches ADD COLUMN leases       INTEGER NOT NULL DEFAULT 0;  -- its items' leases begin above this
ALTER TABLE batches ADD COLUMN drained      INTEGER NOT NULL DEFAULT 0;  -- how far what is under way has come,
ALTER TABLE batches ADD COLUMN moved        INTEGER NOT NULL DEFAULT 0;  -- and how many items it concerned
ALTER TABLE batches ADD COLUMN retry_type   TEXT;                        -- of a retry in slices: which errors,
ALTER TABLE batches ADD COLUMN retry_left   INTEGER;                     -- and how many more
UPDATE batches SET owed = 0 WHERE id IN (SELECT id FROM jobs WHERE role = 1 AND state > 1);

CREATE INDEX batches_gated ON batches (id) WHERE gated = 1;

-- The errors of a job's attempts, by the number of the claim that ended so.
CREATE TABLE errors (
    job       INTEGER NOT NULL,                     -- its seq
    lease     INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    worker    BLOB,
    type      TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    traceback TEXT    NOT NULL,
    PRIMARY KEY (job, lease)
) STRICT, WITHOUT ROWID;

CREATE TABLE uniques (
    name   TEXT    PRIMARY KEY,
    job    BLOB    NOT NULL,
    scope  INTEGER NOT NULL,                        -- 0 pending, 1 active, 2 period
    until  INTEGER,                                 -- of a period
    digest BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX uniques_job   ON uniques (job);
CREATE INDEX uniques_until ON uniques (until) WHERE until IS NOT NULL;

-- Many events of one transaction that differ only in job, attempt and lease share a row; body
-- holds these, packed. seq is the number of the row's last event.
CREATE TABLE events (
    seq    INTEGER PRIMARY KEY,
    n      INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    type   TEXT    NOT NULL,
    kind   TEXT    NOT NULL,
    queue  TEXT    NOT NULL,
    role   INTEGER NOT NULL,
    batch  BLOB,
    worker BLOB,
    error  TEXT,
    body   BLOB    NOT NULL
) STRICT;

-- One row: the name of this history, and the number of its last event.
CREATE TABLE history (
    epoch TEXT    NOT NULL,
    last  INTEGER NOT NULL
) STRICT;
INSERT INTO history VALUES (lower(hex(randomblob(4))), 0);
