-- What operators do to single jobs, and begin to do to batches.

-- Cancel pending jobs and request it of running ones; the state each is in now. Heads take their
-- batches with them: `head` ones are to be drained.
CREATE OR REPLACE FUNCTION cancel_jobs(p_now bigint, p_ids uuid[])
RETURNS TABLE (job uuid, now_in smallint, head boolean) LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    j jobs;
    left_over uuid[] := p_ids;
BEGIN
    PERFORM must_be_open();
    -- Twice: what is requeued just now is found neither before in the one nor after in the other.
    FOR pass IN 1 .. 2 LOOP
        PERFORM lock_jobs(left_over);
        FOR j IN SELECT * FROM jobs_live l WHERE l.id = ANY (left_over)
                 ORDER BY (l.role IN (1, 3)), l.seq FOR UPDATE
        LOOP
            job := j.id;
            now_in := cancel_one(v_now, j);
            head := j.role IN (1, 3);
            left_over := array_remove(left_over, job);
            RETURN NEXT;
        END LOOP;
        FOR job, now_in IN SELECT d.id, d.state FROM jobs_done d WHERE d.id = ANY (left_over) LOOP
            head := false;
            left_over := array_remove(left_over, job);
            RETURN NEXT;
        END LOOP;
        EXIT WHEN cardinality(left_over) = 0;
    END LOOP;
END $$;

-- Lock jobs that are not done, heads excepted, and then the batches of all of them.
CREATE OR REPLACE FUNCTION lock_jobs(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM jobs_live l WHERE l.id = ANY (p_ids) AND l.role NOT IN (1, 3) ORDER BY l.seq FOR UPDATE;
    PERFORM lock_batches((SELECT array_agg(u) FROM jobs_live l, unnest(ARRAY[l.batch, l.id]) u
                          WHERE l.id = ANY (p_ids) AND (l.batch IS NOT NULL OR l.role = 1)));
END $$;

CREATE OR REPLACE FUNCTION cancel_one(p_now bigint, j jobs) RETURNS smallint LANGUAGE plpgsql AS $$
BEGIN
    IF j.role IN (1, 3) THEN
        PERFORM begin_cancel(p_now, j.id, 1::smallint);
    END IF;
    IF j.state = 0 THEN
        PERFORM drop_job(p_now, j, NULL);
        RETURN 4;
    END IF;
    IF j.cancel = 0 AND (j.role NOT IN (1, 3) OR j.worker IS NOT NULL) THEN
        UPDATE jobs_live SET cancel = 1 WHERE seq = j.seq;
        PERFORM write_moves(p_now, ARRAY[('cancel_requested', j.id, j.attempt, j.lease, j.queue,
            j.kind, j.role, j.batch, 1, 1, NULL, NULL)::moved]);
    END IF;
    RETURN j.state;
END $$;

-- Make failed or cancelled jobs pending again; the state each is in now. Heads become so when their
-- old items are gone: `head` ones are to be drained.
CREATE OR REPLACE FUNCTION requeue_jobs(p_now bigint, p_ids uuid[])
RETURNS TABLE (job uuid, now_in smallint, head boolean) LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    ended uuid[];
    j jobs;
BEGIN
    PERFORM must_be_open();
    -- Only what has ended by now: what ends meanwhile is locked neither with its names nor its batch.
    SELECT coalesce(array_agg(d.id), '{}') INTO ended FROM jobs_done d WHERE d.id = ANY (p_ids);
    PERFORM lock_names((SELECT array_agg(n) FROM (
        SELECT d.id, coalesce(d.batch, d.id) AS top FROM jobs_done d WHERE d.id = ANY (ended)) d
        JOIN jobs o ON o.id = ANY (with_around(ARRAY[d.id, d.top])), unnest(o.uniq) n));
    PERFORM 1 FROM jobs_done d WHERE d.id = ANY (ended) AND d.role NOT IN (1, 3) ORDER BY d.seq FOR UPDATE;
    PERFORM lock_batches(with_around((
        SELECT array_agg(u) FROM jobs_done d, unnest(ARRAY[d.batch, d.id]) u
        WHERE d.id = ANY (ended) AND (d.batch IS NOT NULL OR d.role = 1))));
    PERFORM 1 FROM jobs_done d WHERE d.id = ANY (ended) AND d.role IN (1, 3) ORDER BY d.seq FOR UPDATE;
    -- One after the other: of two that held the same name, the first one takes it back.
    FOREACH job IN ARRAY p_ids LOOP
        SELECT * INTO j FROM jobs o WHERE o.id = job;
        CONTINUE WHEN NOT FOUND;
        head := false;
        IF j.state IN (3, 4) AND j.id = ANY (ended) AND retake(v_now, j.id, j.uniq) THEN
            head := j.role IN (1, 3);
            IF head THEN
                PERFORM begin_restart(v_now, j);
            ELSE
                PERFORM requeue_one(v_now, j);
                j.state := 0;
            END IF;
        END IF;
        now_in := j.state;
        RETURN NEXT;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION requeue_one(p_now bigint, j jobs) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parked boolean := false;
BEGIN
    IF j.batch IS NOT NULL THEN
        parked := reopen_for_item(p_now, j.batch);
    END IF;
    PERFORM revive(ARRAY[j.seq], 0::smallint);
    UPDATE jobs_live SET attempt = 0, lost = 0, run_at = p_now,
        rank = CASE WHEN NOT parked THEN rank_of(p_now, priority) END,
        gate = CASE WHEN parked THEN 1 END
    WHERE seq = j.seq;
    PERFORM wait_again(j.seq);
    PERFORM write_moves(p_now, ARRAY[('requeue', j.id, 0, j.lease, j.queue, j.kind, j.role, j.batch,
                                      j.state, 0, NULL, NULL)::moved]);
    IF j.batch IS NOT NULL THEN
        PERFORM follow_up(p_now, j.batch, 0);
    END IF;
END $$;

-- A head that failed or was cancelled is to expand again, from nothing.
CREATE OR REPLACE FUNCTION begin_restart(p_now bigint, top jobs) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b batches;
BEGIN
    PERFORM fold(top.id);
    SELECT * INTO b FROM batches WHERE id = top.id;
    IF NOT b.own_expander THEN
        PERFORM refuse('HL002', 'this batch was filled by its producer: retry its items instead');
    ELSIF b.running + b.pending > 0 OR any_owed_within(top.id) THEN
        PERFORM refuse('HL002', 'this batch still has items that are not finished');
    ELSIF b.draining IN (3, 6) THEN
        PERFORM refuse('HL002', 'this batch is being deleted');
    END IF;
    IF top.batch IS NOT NULL THEN
        PERFORM reopen_for_item(p_now, top.batch);
    END IF;
    -- Owed: what it lies within must not settle meanwhile.
    UPDATE batches SET draining = 7, drained = 0, moved = 0, owed = true WHERE id = top.id;
END $$;

-- Reopen the locked batch of an item that runs again; whether it has a gate.
CREATE OR REPLACE FUNCTION reopen_for_item(p_now bigint, p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    b batches;
    top jobs;
BEGIN
    SELECT * INTO b FROM batches WHERE id = p_batch;
    SELECT * INTO top FROM jobs WHERE id = p_batch;
    IF b.draining IN (3, 6, 7) OR (b.cancel > 0 AND top.state = 1) THEN
        PERFORM refuse('HL002', 'a cancel or delete of this item''s batch is still under way');
    END IF;
    IF top.state <> 1 THEN
        PERFORM reopen_head(p_now, top, b.sealed);
    END IF;
    RETURN (SELECT gated FROM batches WHERE id = p_batch);
END $$;

-- A settled head runs again, because some of its items do. Its batch and its names are locked.
CREATE OR REPLACE FUNCTION reopen_head(p_now bigint, top jobs, p_sealed boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF top.state = 0 OR NOT p_sealed THEN
        PERFORM refuse('HL002', 'this batch was never completely filled; start it anew');
    ELSIF NOT retake(p_now, top.id, top.uniq) THEN
        PERFORM refuse('HL002', 'another batch holds the unique name of this one by now');
    END IF;
    IF top.batch IS NOT NULL THEN
        PERFORM reopen_for_item(p_now, top.batch);
    END IF;
    PERFORM revive(ARRAY[top.seq], 1::smallint);
    UPDATE jobs_live SET result = NULL, error = NULL, error_at = NULL, error_type = NULL
    WHERE seq = top.seq;
    UPDATE batches SET cancel = 0, owed = true, finish_job = NULL,
        gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL WHERE id = top.id;
    PERFORM write_moves(p_now, ARRAY[('reopen', top.id, top.attempt, top.lease, top.queue, top.kind,
        top.role, top.batch, top.state, 1, NULL, NULL)::moved]);
END $$;

-- Lock a batch and bring it up to date; refuses when there is none.
CREATE OR REPLACE FUNCTION lock_batch(p_batch uuid, OUT b batches, OUT top jobs) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_batches(with_around(ARRAY[p_batch]));
    PERFORM fold(p_batch);
    SELECT * INTO b FROM batches WHERE id = p_batch;
    SELECT * INTO top FROM jobs WHERE id = p_batch;
    IF b.id IS NULL OR top.id IS NULL THEN
        PERFORM refuse('HL001', p_batch::text);
    END IF;
END $$;

-- Reopen the head of a settled batch; draining then requeues its failed items. False if there is
-- none to requeue.
CREATE OR REPLACE FUNCTION begin_retry(p_now bigint, p_batch uuid, p_type text, p_limit integer)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    found_batch record;
    b batches;
    top jobs;
BEGIN
    PERFORM must_be_open();
    PERFORM lock_names((SELECT array_agg(n) FROM jobs j, unnest(j.uniq) n
                        WHERE j.id = ANY (with_around(ARRAY[p_batch]))));
    found_batch := lock_batch(p_batch);
    b := found_batch.b;
    top := found_batch.top;
    IF b.draining > 0 OR (b.cancel > 0 AND top.state = 1) THEN
        PERFORM refuse('HL002',
            'a cancel, retry, pause or delete of this batch is still under way');
    ELSIF NOT b.sealed THEN
        PERFORM refuse('HL002', 'this batch was never completely filled; start it anew');
    END IF;
    IF b.failed = 0 OR p_limit = 0 THEN
        RETURN false;
    END IF;
    IF top.state <> 1 THEN
        IF NOT EXISTS (
            SELECT FROM jobs_done WHERE batch = p_batch AND state = 3 AND role = 2
              AND (p_type IS NULL OR error_type = p_type))
        THEN
            RETURN false;
        END IF;
        PERFORM reopen_head(coalesce(p_now, clock_us()), top, b.sealed);
    END IF;
    UPDATE batches SET draining = 2, drained = 0, moved = 0, retry_type = p_type,
        retry_left = p_limit WHERE id = p_batch;
    RETURN true;
END $$;

-- Pause: from here on nothing of the batch is claimed; draining takes its items out of the line.
-- Resume: its gate opens; draining puts the items of a batch without limits into the line. False if
-- it is so already.
CREATE OR REPLACE FUNCTION switch_batch(p_now bigint, p_batch uuid, p_paused boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    found_batch record := lock_batch(p_batch);
    b batches := found_batch.b;
    top jobs := found_batch.top;
BEGIN
    PERFORM must_be_open();
    IF top.state > 1 OR b.cancel > 0 THEN
        PERFORM refuse('HL002', 'this batch has ended, or is being cancelled');
    ELSIF b.draining NOT IN (0, 4, 5, 8) THEN
        PERFORM refuse('HL002', 'a retry or delete of this batch is still under way');
    END IF;
    IF (b.pauses & 1 > 0) = p_paused THEN
        RETURN false;
    END IF;
    IF b.pauses & 2 > 0 THEN
        -- It is held by the batch around it; only whether it will be by itself has changed.
        UPDATE batches SET pauses = b.pauses # 1 WHERE id = p_batch;
    ELSE
        PERFORM set_paused(p_batch, p_paused::integer);
    END IF;
    PERFORM write_moves(v_now, ARRAY[(CASE WHEN p_paused THEN 'pause' ELSE 'resume' END, top.id,
        top.attempt, top.lease, top.queue, top.kind, top.role, top.batch, top.state, top.state,
        NULL, NULL)::moved]);
    PERFORM let_in(v_now, p_batch);
    RETURN true;
END $$;

-- Delete a single job, or begin to delete a batch: true, it is to be drained.
CREATE OR REPLACE FUNCTION delete_job(p_now bigint, p_job uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    j jobs;
BEGIN
    PERFORM must_be_open();
    PERFORM lock_batches(ARRAY[p_job]);
    -- Twice: what is requeued just now is found neither before in the one nor after in the other.
    FOR pass IN 1 .. 2 LOOP
        SELECT * INTO j FROM jobs_live WHERE id = p_job FOR UPDATE;
        EXIT WHEN FOUND;
        SELECT * INTO j FROM jobs_done WHERE id = p_job FOR UPDATE;
        EXIT WHEN FOUND;
    END LOOP;
    IF j.id IS NULL THEN
        PERFORM refuse('HL001', p_job::text);
    ELSIF j.state = 1 THEN
        PERFORM refuse('HL002', format('job %s is running: stop it before you delete it', p_job));
    ELSIF j.role >= 2 THEN
        PERFORM refuse('HL002', format('job %s is an item: delete its batch instead', p_job));
    ELSIF j.role = 0 THEN
        PERFORM remove_jobs(v_now, ARRAY[j.seq], true, false);
        RETURN false;
    END IF;
    PERFORM fold(p_job);
    IF any_owed_within(p_job)
        OR EXISTS (SELECT FROM batches WHERE id = p_job AND running + pending > 0)
    THEN
        PERFORM refuse('HL002', format('batch %s still has items that are not finished', p_job));
    END IF;
    IF j.state = 0 THEN
        -- Out of the line, or a worker might still take it and make items.
        PERFORM drop_job(v_now, j, NULL);
    END IF;
    UPDATE batches SET draining = 3, drained = 0, moved = 0 WHERE id = p_job;
    RETURN true;
END $$;

-- Remove locked jobs that do not run, and what was kept beside them. Names that are held for a
-- period stay unless `p_periods`. Uncounted: their batch goes too.
CREATE OR REPLACE FUNCTION remove_jobs(p_now bigint, p_seqs bigint[], p_periods boolean,
    p_uncounted boolean) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    moves moved[];
    named uuid[];
BEGIN
    PERFORM forget_flows(p_seqs);
    WITH gone AS (
        DELETE FROM jobs WHERE seq = ANY (p_seqs) RETURNING *)
    SELECT array_agg(('delete', id, attempt, lease, queue, kind, role, batch, state, NULL, NULL,
                      NULL)::moved ORDER BY seq),
           array_agg(id) FILTER (WHERE uniq IS NOT NULL)
    INTO moves, named FROM gone;
    DELETE FROM errors WHERE job = ANY (p_seqs);
    DELETE FROM steps WHERE job = ANY (p_seqs);
    DELETE FROM lines WHERE job = ANY (p_seqs);
    IF named IS NOT NULL THEN
        DELETE FROM uniques WHERE job = ANY (named) AND (p_periods OR scope < 2);
    END IF;
    IF moves IS NOT NULL THEN
        PERFORM write_moves(p_now, moves, p_uncounted);
    END IF;
    RETURN coalesce(cardinality(moves), 0);
END $$;
