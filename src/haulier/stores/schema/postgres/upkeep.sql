-- Worker incarnations, notes, events, retention.

CREATE OR REPLACE FUNCTION enlist(p_now bigint, p_worker uuid, p_host text, p_pid integer, p_queues text,
    p_kinds text, p_slots integer, p_ttl bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    PERFORM must_be_open();
    INSERT INTO workers (id, host, pid, queues, kinds, slots, expires, started_at, renewed_at)
    VALUES (p_worker, p_host, p_pid, p_queues, p_kinds, p_slots, v_now + p_ttl, v_now, v_now)
    -- Said again when its answer was lost.
    ON CONFLICT (id) DO NOTHING;
END $$;

-- Put the expiry forward; an incarnation that has expired stays dead, swept or not: NULL. Else the
-- jobs that it is to stop.
CREATE OR REPLACE FUNCTION renew(p_now bigint, p_worker uuid, p_ttl bigint)
RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    UPDATE workers SET expires = v_now + p_ttl, renewed_at = v_now
    WHERE id = p_worker AND ended_at IS NULL AND expires > v_now;
    RETURN CASE WHEN FOUND THEN cancels_of(p_worker) END;
END $$;

-- Incarnations that are to be ended by a sweep; FORGET them a day after their end.
CREATE OR REPLACE FUNCTION expired_workers(p_now bigint) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    IF EXISTS (SELECT FROM workers WHERE ended_at < v_now - 86400000000) THEN
        DELETE FROM workers WHERE ended_at < v_now - 86400000000;
    END IF;
    RETURN (SELECT coalesce(array_agg(id), '{}') FROM workers
            WHERE ended_at IS NULL AND expires <= v_now);
END $$;

-- End an incarnation for good and lock the jobs that it holds, in the columns of a claim. With
-- `p_expired` only if it has expired: it may have been renewed just now.
CREATE OR REPLACE FUNCTION end_worker(p_now bigint, p_worker uuid, p_expired boolean)
RETURNS SETOF claimed LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    PERFORM 1 FROM workers WHERE id = p_worker AND (NOT p_expired OR expires <= v_now) FOR UPDATE;
    IF NOT FOUND AND p_expired THEN
        RETURN;
    END IF;
    UPDATE workers SET ended_at = v_now WHERE id = p_worker AND ended_at IS NULL;
    RETURN QUERY SELECT id::text, seq, kind, queue, payload, state, version, role, priority,
        run_at, attempt, lease, lost, key, batch::text, position, retry, worker::text, cancel,
        gate, uniq IS NOT NULL, on_lost, created_at, started_at, finished_at, progress, message,
        result, error, error_at, baggage
    FROM jobs_live WHERE worker = p_worker AND state = 1;
END $$;

-- Record what running jobs say of themselves, each only while its lease holds, in the order given.
CREATE OR REPLACE FUNCTION note(p_now bigint, p_jobs uuid[], p_leases integer[], p_progress integer[],
    p_messages text[], p_heard boolean[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    events moved[];
BEGIN
    PERFORM 1 FROM jobs_live WHERE id = ANY (p_jobs) ORDER BY (role IN (1, 3)), seq FOR UPDATE;
    UPDATE jobs_live j SET progress = coalesce(n.progress, j.progress),
        message = coalesce(n.message, j.message)
    FROM (SELECT u.job, u.lease,
                 (array_agg(u.progress ORDER BY nth DESC) FILTER (WHERE u.progress IS NOT NULL))[1]
                     AS progress,
                 (array_agg(u.message ORDER BY nth DESC) FILTER (WHERE u.message IS NOT NULL))[1]
                     AS message
          FROM unnest(p_jobs, p_leases, p_progress, p_messages)
               WITH ORDINALITY u (job, lease, progress, message, nth)
          GROUP BY u.job, u.lease) n
    WHERE j.id = n.job AND j.lease = n.lease AND j.state = 1
      AND (n.progress IS NOT NULL OR n.message IS NOT NULL);
    IF true = ANY (p_heard) THEN
        WITH heard AS (
            UPDATE jobs_live j SET cancel = 2
            FROM unnest(p_jobs, p_leases, p_heard) u (job, lease, heard)
            WHERE j.id = u.job AND j.lease = u.lease AND u.heard AND j.state = 1 AND j.cancel = 1
            RETURNING j.*)
        SELECT array_agg(('cancel_heard', id, attempt, lease, queue, kind, role, batch, 1, 1,
                          worker, NULL)::moved ORDER BY seq) INTO events FROM heard;
        IF events IS NOT NULL THEN
            PERFORM write_moves(coalesce(p_now, clock_us()), events);
        END IF;
    END IF;
    -- Who cannot listen looks at this number; a note alone leaves no other trace.
    PERFORM nextval(pg_get_serial_sequence('journal', 'id'));
END $$;

-- ── Events ───────────────────────────────────────────────────────────────────────────────────

-- Number one slice of what stands in the journal, one at a time; whether there may be more. What is
-- not committed yet comes after all that is: nobody ever sees a number before those below it.
CREATE OR REPLACE FUNCTION number_events() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
    rows integer;
BEGIN
    IF NOT EXISTS (SELECT FROM journal) THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('haulier events', hashtext(current_schema)));
    WITH gone AS (
        DELETE FROM journal
        WHERE id = ANY (ARRAY(SELECT id FROM journal ORDER BY id LIMIT 5000))
        RETURNING *),
    numbered AS (SELECT *, sum(n) OVER (ORDER BY id) AS upto FROM gone),
    kept AS (
        INSERT INTO events (seq, n, at, type, kind, queue, role, batch, worker, error, body)
        SELECT last + upto, n, at, type, kind, queue, role, batch, worker, error, body
        FROM numbered, history),
    deltas AS (
        SELECT queue, kind, role, state, sum(d) AS d FROM (
            SELECT queue, kind, role, source AS state, -n AS d FROM gone WHERE source IS DISTINCT FROM target
            UNION ALL
            SELECT queue, kind, role, target, n FROM gone WHERE source IS DISTINCT FROM target) m
        WHERE state IS NOT NULL GROUP BY queue, kind, role, state),
    counted AS (
        INSERT INTO counts (queue, kind, role, state, n)
        SELECT queue, kind, role, state, d FROM deltas WHERE d <> 0
        ORDER BY queue, kind, role, state
        ON CONFLICT (queue, kind, role, state) DO UPDATE SET n = counts.n + excluded.n)
    SELECT sum(n), count(*) INTO total, rows FROM gone;
    IF total > 0 THEN
        UPDATE history SET last = last + total;
    END IF;
    RETURN rows = 5000;
END $$;

-- STABLE: it sees what the statement sees that asks.
CREATE OR REPLACE FUNCTION current_counts()
RETURNS TABLE (queue text, kind text, role smallint, state smallint, n bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY SELECT a.queue, a.kind, a.role, a.state, sum(a.n)::bigint FROM (
        SELECT c.queue, c.kind, c.role, c.state, c.n FROM counts c
        UNION ALL
        SELECT j.queue, j.kind, j.role, j.source, -j.n FROM journal j
        WHERE j.source IS NOT NULL AND j.source IS DISTINCT FROM j.target
        UNION ALL
        SELECT j.queue, j.kind, j.role, j.target, j.n FROM journal j
        WHERE j.target IS NOT NULL AND j.source IS DISTINCT FROM j.target) a
    GROUP BY a.queue, a.kind, a.role, a.state HAVING sum(a.n) <> 0;
END $$;

-- ── Retention ────────────────────────────────────────────────────────────────────────────────

-- Remove one slice of the finished jobs of a kind and state that are too old or too many. `batches`
-- are to be drained.
CREATE OR REPLACE FUNCTION prune_jobs(p_now bigint, p_kind text, p_state smallint, p_age bigint, p_count bigint,
    OUT removed integer, OUT batches uuid[]) LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    seqs bigint[];
    batch uuid;
BEGIN
    PERFORM must_be_open();
    removed := 0;
    batches := '{}';
    IF p_age IS NOT NULL THEN
        SELECT array_agg(d.seq) INTO seqs FROM (
            SELECT seq FROM jobs_done f
            WHERE kind = p_kind AND state = p_state AND role < 2 AND finished_at <= v_now - p_age
              AND whole(f.id, f.role)
            ORDER BY finished_at LIMIT 250 FOR UPDATE SKIP LOCKED) d;
    END IF;
    IF seqs IS NULL AND p_count IS NOT NULL THEN
        -- Counted and looked for in one statement, or others that prune could remove in between what
        -- was counted, and younger ones would go. One that cannot go yet is still one of the oldest:
        -- no younger one goes in its stead either.
        SELECT array_agg(d.seq) INTO seqs FROM (
            SELECT seq, id, role FROM jobs_done
            WHERE kind = p_kind AND state = p_state AND role < 2
            ORDER BY finished_at LIMIT (
                SELECT least(greatest(coalesce(sum(c.n), 0) - p_count, 0), 250)::bigint
                FROM current_counts() c
                WHERE c.kind = p_kind AND c.state = p_state AND c.role < 2)) d
        WHERE whole(d.id, d.role);
    END IF;
    IF seqs IS NULL THEN
        RETURN;
    END IF;
    -- A batch that another one is just working on waits for the next time.
    FOR batch IN SELECT b.id FROM batches b JOIN jobs_done d ON d.id = b.id
                 WHERE d.seq = ANY (seqs) AND d.role = 1 AND NOT b.owed AND b.draining = 0
                 FOR UPDATE OF b SKIP LOCKED
    LOOP
        PERFORM fold(batch);
        UPDATE batches SET draining = 6, drained = 0, moved = 0 WHERE id = batch;
        prune_jobs.batches := prune_jobs.batches || batch;
        removed := removed + 1 + (SELECT total FROM batches WHERE id = batch);
    END LOOP;
    -- Locked, or one that is just being requeued would be removed as a pending job.
    removed := removed + remove_jobs(v_now,
        ARRAY(SELECT seq FROM jobs_done WHERE seq = ANY (seqs) AND role = 0
              ORDER BY seq FOR UPDATE SKIP LOCKED), false, false);
END $$;

-- A head may be final while its items still stop; others are being retried or deleted.
CREATE OR REPLACE FUNCTION whole(p_job uuid, p_role smallint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN p_role = 0 OR EXISTS (SELECT FROM batches b WHERE b.id = p_job AND NOT b.owed
                                 AND b.draining = 0);
END $$;

-- Forget one slice of results that are kept no longer; how many.
CREATE OR REPLACE FUNCTION prune_results(p_now bigint, p_kind text, p_ttl bigint)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    count integer;
BEGIN
    PERFORM must_be_open();
    UPDATE jobs_done SET result = NULL WHERE seq = ANY (ARRAY(
        SELECT seq FROM jobs_done
        WHERE kind = p_kind AND state = 2 AND role = 0 AND result IS NOT NULL AND result <> 'null'
          AND finished_at <= coalesce(p_now, clock_us()) - p_ttl
        ORDER BY finished_at LIMIT 250 FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS count = ROW_COUNT;
    RETURN count;
END $$;

-- Free one slice of names whose period is over, and of events beyond the latest million or older
-- than a day; how many rows went.
CREATE OR REPLACE FUNCTION prune_rest(p_now bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    names integer;
    rows integer;
BEGIN
    PERFORM must_be_open();
    PERFORM number_events();
    DELETE FROM uniques WHERE name = ANY (ARRAY(
        SELECT name FROM uniques WHERE until <= v_now LIMIT 250 FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS names = ROW_COUNT;
    DELETE FROM events WHERE seq = ANY (ARRAY(
        SELECT o.seq FROM (SELECT seq, at FROM events ORDER BY seq LIMIT 50) o, history h
        WHERE o.seq <= h.last - 1000000 OR o.at < v_now - 86400000000));
    GET DIAGNOSTICS rows = ROW_COUNT;
    RETURN names + rows;
END $$;
