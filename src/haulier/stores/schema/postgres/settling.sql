-- What happened is written down, and what follows for batches.
--
-- Whoever waits for row locks takes them in one order, so that nobody waits in a circle: unique
-- names, the worker's row, single jobs and items by seq, batches by id, heads by seq. Work on whole
-- batches has the batch's row first and touches items only with SKIP LOCKED, which never waits; a
-- batch is not done with before it has met them all.
--
-- What a query picks for an UPDATE or DELETE stands in an ARRAY. Behind IN it would be part of a join,
-- and by a plan for a table that was small it would be picked anew for each row of one that is not.

CREATE OR REPLACE FUNCTION clock_us() RETURNS bigint LANGUAGE sql AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- One point of priority is worth six minutes of waiting.
CREATE OR REPLACE FUNCTION rank_of(run_at bigint, priority integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT run_at - priority * 360000000::bigint $$;

-- What distinguishes the events of one row: job id, attempt, lease.
CREATE OR REPLACE FUNCTION entry(id uuid, attempt integer, lease integer) RETURNS bytea LANGUAGE sql IMMUTABLE AS
$$ SELECT uuid_send(id) || int4send(attempt) || int4send(lease) $$;

-- Errors that the client knows by their codes: HL001 not found, HL002 not in this state, HL003 lease
-- lost, HL004 duplicate, HL005 idempotency conflict,
-- HL008 no such limit; `about` is the id of the other job.
CREATE OR REPLACE FUNCTION refuse(code text, why text, about text DEFAULT '') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = why, DETAIL = about;
END $$;

-- ── What happened ────────────────────────────────────────────────────────────────────────────
CREATE OR REPLACE FUNCTION write_moves(p_now bigint, p_moves moved[], p_uncounted boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal (n, at, type, kind, queue, role, batch, source, target, worker, error, body)
    SELECT count(*), p_now, m.type, m.kind, m.queue, m.role, m.batch, m.source, m.target, m.worker,
           m.error, string_agg(entry(m.id, m.attempt, m.lease), ''::bytea ORDER BY m.ordinality)
    FROM unnest(p_moves) WITH ORDINALITY m
    GROUP BY m.type, m.kind, m.queue, m.role, m.batch, m.source, m.target, m.worker, m.error
    ORDER BY min(m.ordinality);
    -- Uncounted: the batch goes as well, and its counters with it.
    IF NOT p_uncounted THEN
        INSERT INTO batch_deltas
        SELECT m.batch,
               count(*) FILTER (WHERE source IS NULL) - count(*) FILTER (WHERE target IS NULL),
               count(*) FILTER (WHERE target = 0) - count(*) FILTER (WHERE source = 0),
               count(*) FILTER (WHERE target = 1) - count(*) FILTER (WHERE source = 1),
               count(*) FILTER (WHERE target = 2) - count(*) FILTER (WHERE source = 2),
               count(*) FILTER (WHERE target = 3) - count(*) FILTER (WHERE source = 3),
               count(*) FILTER (WHERE target = 4) - count(*) FILTER (WHERE source = 4),
               CASE WHEN count(*) FILTER (WHERE target = 1) > 0 THEN p_now END
        FROM unnest(p_moves) m
        WHERE m.role >= 2 AND m.batch IS NOT NULL AND m.source IS DISTINCT FROM m.target
        GROUP BY m.batch;
    END IF;
END $$;

-- Lives end here: locked rows leave for the partition of what is done.
CREATE OR REPLACE FUNCTION bury(p_now bigint, p_seqs bigint[], p_state smallint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM jobs_live WHERE seq = ANY (p_seqs) RETURNING *)
    INSERT INTO jobs_done (seq, id, kind, queue, role, version, payload, state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        finished_at, progress, message, result, error, error_at, error_type, baggage, children)
    SELECT seq, id, kind, queue, role, version, payload, p_state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        p_now, progress, message, result, error, error_at, error_type, baggage, children
    FROM gone;
END $$;

-- And begin anew: locked rows come back, without an end, as pending or running.
CREATE OR REPLACE FUNCTION revive(p_seqs bigint[], p_state smallint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM jobs_done WHERE seq = ANY (p_seqs) RETURNING *)
    INSERT INTO jobs_live (seq, id, kind, queue, role, version, payload, state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        progress, message, result, error, error_at, error_type, baggage, children)
    SELECT seq, id, kind, queue, role, version, payload, p_state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        progress, message, result,
        -- Nobody is to think later that it was cancelled because of a parent.
        CASE WHEN error_type IS DISTINCT FROM 'ParentFailed' THEN error END,
        CASE WHEN error_type IS DISTINCT FROM 'ParentFailed' THEN error_at END,
        nullif(error_type, 'ParentFailed'), baggage,
        -- Those that were cancelled because of it come back too.
        CASE WHEN children IS NOT NULL THEN 3 END
    FROM gone;
END $$;

CREATE OR REPLACE FUNCTION release_ended(p_jobs uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM uniques WHERE job = ANY (p_jobs) AND scope < 2;
END $$;

-- ── Batches ──────────────────────────────────────────────────────────────────────────────────
CREATE OR REPLACE FUNCTION lock_batches(p_batches uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM batches WHERE id = ANY (p_batches) ORDER BY id FOR UPDATE;
END $$;

-- Bring the counters of a locked batch up to date.
CREATE OR REPLACE FUNCTION fold(p_batch uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM batch_deltas WHERE batch = p_batch RETURNING *),
    s AS (SELECT sum(total) AS total, sum(pending) AS pending, sum(running) AS running,
                 sum(completed) AS completed, sum(failed) AS failed, sum(cancelled) AS cancelled,
                 min(started_at) AS started_at
          FROM gone HAVING count(*) > 0)
    UPDATE batches b SET total = b.total + s.total, pending = b.pending + s.pending,
        running = b.running + s.running, completed = b.completed + s.completed,
        failed = b.failed + s.failed, cancelled = b.cancelled + s.cancelled,
        started_at = coalesce(b.started_at, s.started_at)
    FROM s WHERE b.id = p_batch;
END $$;

-- Let parked items of a locked batch into the line as far as its limits allow; how many.
--
-- Those in the line count against `concurrency` as if they ran already, and are never more than
-- `batch_size`: so no claim can take too many, and none has to count. Those that are due to be run
-- alone have a place kept for them. All is counted in one statement, that is at one moment: a claim
-- that is committed meanwhile turns waiting into running ones.
CREATE OR REPLACE FUNCTION let_in(p_now bigint, p_batch uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    room integer := room_in(p_now, p_batch);
    count integer;
BEGIN
    IF room IS NULL OR room <= 0 THEN
        RETURN 0;
    END IF;
    UPDATE jobs_live SET gate = 2, rank = rank_of(run_at, priority)
    WHERE seq = ANY (ARRAY(
        SELECT seq FROM jobs_live WHERE batch = p_batch AND state = 0 AND gate = 1
        ORDER BY run_at - priority * 360000000::bigint, seq LIMIT room FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS count = ROW_COUNT;
    RETURN count;
END $$;

-- How many more items of a locked batch may be let into the line; below 0, as many are too much. NULL
-- if it is paused or has no limits.
CREATE OR REPLACE FUNCTION room_in(p_now bigint, p_batch uuid) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT least(
        b.batch_size - w.waiting,
        b.concurrency - w.waiting - w.alone - b.running
            - (SELECT coalesce(sum(running), 0) FROM batch_deltas WHERE batch = b.id))
    FROM batches b, LATERAL (
        SELECT count(*) FILTER (WHERE gate = 2) AS waiting,
               count(*) FILTER (WHERE gate = 3 AND run_at <= p_now) AS alone
        FROM jobs_live j WHERE j.batch = b.id AND j.state = 0 AND j.gate IN (2, 3)) w
    WHERE b.id = p_batch AND b.gated AND NOT b.paused AND b.cancel = 0);
END $$;

-- Request the cancel of running items of a locked batch; true if some could not be told yet.
CREATE OR REPLACE FUNCTION tell_running(p_now bigint, p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    told moved[];
BEGIN
    WITH t AS (
        UPDATE jobs_live SET cancel = 1
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM jobs_live WHERE batch = p_batch AND state = 1 AND cancel = 0
            FOR UPDATE SKIP LOCKED))
        RETURNING *)
    SELECT array_agg(('cancel_requested', id, attempt, lease, queue, kind, role, batch, state,
                      state, NULL, NULL)::moved ORDER BY seq)
    INTO told FROM t;
    IF told IS NOT NULL THEN
        PERFORM write_moves(p_now, told);
    END IF;
    RETURN EXISTS (SELECT FROM jobs_live WHERE batch = p_batch AND state = 1 AND cancel = 0);
END $$;

-- Mark a locked batch as cancelled; draining drops the pending items. The first reason stays.
-- Nothing is left to be paused.
CREATE OR REPLACE FUNCTION begin_cancel(p_now bigint, p_batch uuid, p_why smallint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE batches SET cancel = CASE WHEN cancel = 0 THEN p_why ELSE cancel END, draining = 1,
        drained = 0, moved = 0, paused = false, pauses = 0 WHERE id = p_batch;
    PERFORM tell_running(p_now, p_batch);
END $$;

-- Do what the new counters of a locked batch ask for: 1 it settled, 2 it was cut short and is to be
-- drained, 4 items were let into the line; 0 nothing.
CREATE OR REPLACE FUNCTION follow_up(p_now bigint, p_batch uuid, p_failures integer)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    b batches;
    head_state smallint;
    waits boolean;
BEGIN
    PERFORM fold(p_batch);
    SELECT * INTO b FROM batches WHERE id = p_batch;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- Only a new failure counts: some of the old ones may just be tried again.
    IF b.cancel = 0 AND b.failed > b.max_failures AND p_failures > 0 THEN
        PERFORM begin_cancel(p_now, p_batch, 2::smallint);
        RETURN 2;
    END IF;
    IF b.owed AND b.pending = 0 AND b.running = 0 AND b.draining = 0
        AND NOT any_owed_within(p_batch)
    THEN
        SELECT state, worker IS NULL AND (b.sealed OR b.cancel > 0) INTO head_state, waits
        FROM jobs WHERE id = p_batch;
        IF (head_state = 1 AND waits) OR head_state > 1 THEN
            PERFORM settle(p_now, b, head_state);
            RETURN 1;
        END IF;
    END IF;
    IF b.gated AND let_in(p_now, p_batch) > 0 THEN
        RETURN 4;
    END IF;
    RETURN 0;
END $$;

-- End the head of a locked batch, unless it ended before its items did, and call back.
CREATE OR REPLACE FUNCTION settle(p_now bigint, b batches, p_state smallint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    head jobs;
    counts json := json_build_object('total', b.total, 'completed', b.completed,
                                     'failed', b.failed, 'cancelled', b.cancelled);
    target smallint := p_state;
    excess json;
    moves moved[] := '{}';
    callback uuid;
BEGIN
    IF p_state = 1 THEN
        target := (ARRAY[2, 4, 3])[b.cancel + 1];
        SELECT * INTO head FROM jobs_live WHERE id = b.id FOR UPDATE;
        IF b.cancel = 2 THEN
            excess := json_build_object('type', 'MaxFailuresExceeded', 'message',
                format('%s of the items failed and %s may; the rest was cancelled',
                       b.failed, b.max_failures));
        END IF;
        UPDATE jobs_live SET result = convert_to(counts::text, 'UTF8'), error = excess::text,
            error_type = excess ->> 'type',
            error_at = CASE WHEN excess IS NOT NULL THEN p_now END
        WHERE seq = head.seq;
        PERFORM bury(p_now, ARRAY[head.seq], target);
        PERFORM release_ended(ARRAY[b.id]);
        moves := ARRAY[((ARRAY['settle', 'abandon', 'give_up'])[b.cancel + 1], head.id,
            head.attempt, head.lease, head.queue, head.kind, head.role, head.batch, 1, target, NULL,
            excess ->> 'type')::moved];
    ELSE
        SELECT * INTO head FROM jobs_done WHERE id = b.id;
    END IF;
    IF b.finish_kind IS NOT NULL THEN
        callback := call_back(p_now, b, head.priority, target, counts);
        moves := moves || ('insert', callback, 0, 0, b.finish_queue, b.finish_kind, 0, NULL, NULL,
                           0, NULL, NULL)::moved;
    END IF;
    UPDATE batches SET finish_job = callback, owed = false, gated = false WHERE id = b.id;
    PERFORM write_moves(p_now, moves);
    IF b.within IS NOT NULL THEN
        INSERT INTO nested_due VALUES (b.within, CASE WHEN p_state = 1 AND target = 3 THEN 1 ELSE 0 END);
    END IF;
END $$;

-- A batch that was reopened and settles again calls back again, with the next of its ids.
CREATE OR REPLACE FUNCTION call_back(p_now bigint, b batches, p_priority integer, p_state smallint,
    p_counts json) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    callback uuid;
BEGIN
    SELECT f.id INTO callback FROM unnest(b.finish_ids) WITH ORDINALITY f (id, place)
    WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = f.id) ORDER BY f.place LIMIT 1;
    callback := coalesce(callback, new_id(p_now));
    INSERT INTO jobs_live (id, kind, queue, role, version, payload, state, rank, priority, run_at,
        created_at, baggage)
    SELECT callback, b.finish_kind, b.finish_queue, 0, 1,
        convert_to(json_build_object('batch_id', b.id, 'state',
            (ARRAY['pending', 'running', 'completed', 'failed', 'cancelled'])[p_state + 1],
            'counts', p_counts)::text, 'UTF8'),
        0, rank_of(p_now, p_priority), p_priority, p_now, p_now,
        (SELECT j.baggage FROM jobs j WHERE j.id = b.id);
    RETURN callback;
END $$;

-- A UUIDv7 (RFC 9562): the time in milliseconds, then the random part of a version 4.
CREATE OR REPLACE FUNCTION new_id(p_now bigint) RETURNS uuid LANGUAGE sql AS $$
    SELECT encode(set_byte(
        substring(int8send(p_now / 1000) FROM 3) || substring(raw FROM 7),
        6, (get_byte(raw, 6) & 15) | 112), 'hex')::uuid
    FROM (SELECT uuid_send(gen_random_uuid()) AS raw) r
$$;
