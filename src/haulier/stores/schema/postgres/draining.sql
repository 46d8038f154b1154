-- Whole batches at once, in slices that block no claim. A batch with such work under way says so in
-- `draining`: 1 cancel, 2 retry, 3 delete, 4 pause, 5 resume, 6 delete by retention, 7 restart,
-- 8 limit.
-- Whoever began it goes on until it is done; if that process dies, the next sweep of any worker takes
-- it up.

-- One slice of the work under way; whether there is more of it. How far it has come is kept with
-- the batch: several may be at it, and what is under way may become something else meanwhile.
CREATE OR REPLACE FUNCTION drain_batch(p_now bigint, p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    b batches;
    slice record;
BEGIN
    SELECT * INTO b FROM batches WHERE id = p_batch FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF b.draining = 0 THEN
        RETURN after_inner(v_now, p_batch) = 2;
    END IF;
    CASE b.draining
        WHEN 1 THEN slice := drop_slice(v_now, b);
        WHEN 2 THEN slice := requeue_slice(v_now, b);
        WHEN 3 THEN slice := delete_slice(v_now, b, true);
        WHEN 4 THEN slice := park_slice(b);
        WHEN 5 THEN slice := unpark_slice(b);
        WHEN 6 THEN slice := delete_slice(v_now, b, false);
        WHEN 7 THEN slice := clear_slice(v_now, b);
        WHEN 8 THEN slice := limit_slice(v_now, b);
    END CASE;
    IF NOT slice.more AND b.draining IN (1, 4, 5, 8) THEN
        slice.more := go_on_within(v_now, p_batch);
    END IF;
    UPDATE batches SET moved = moved + slice.count, drained = coalesce(slice.following, drained),
        -- A pause that came in the midst of a retry follows it.
        draining = CASE WHEN slice.more THEN draining
                        WHEN draining = 2 AND paused THEN 4 ELSE 0 END
    WHERE id = p_batch;
    IF NOT slice.more AND b.draining = 2 AND b.paused THEN
        UPDATE batches SET drained = 0 WHERE id = p_batch;
        RETURN true;
    END IF;
    IF NOT slice.more AND b.draining = 7 THEN
        PERFORM restart(v_now, p_batch);
    ELSIF NOT slice.more THEN
        PERFORM follow_up(v_now, p_batch, 0);
    END IF;
    RETURN slice.more;
END $$;

-- Items that are just being claimed are passed by, and told when they run: it is not over before
-- nothing of the batch is pending, and everything that runs was told.
CREATE OR REPLACE FUNCTION drop_slice(p_now bigint, b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    moves moved[];
    seqs bigint[];
    named uuid[];
BEGIN
    SELECT array_agg(('drop', j.id, j.attempt, j.lease, j.queue, j.kind, j.role, j.batch, 0, 4,
                      NULL, NULL)::moved ORDER BY j.seq),
           array_agg(j.seq), array_agg(j.id) FILTER (WHERE j.uniq IS NOT NULL)
    INTO moves, seqs, named
    FROM (SELECT * FROM jobs_live WHERE batch = b.id AND state = 0 ORDER BY seq LIMIT 500
          FOR UPDATE SKIP LOCKED) j;
    count := coalesce(cardinality(seqs), 0);
    IF count > 0 THEN
        PERFORM bury(p_now, seqs, 4::smallint);
        PERFORM write_moves(p_now, moves);
    END IF;
    IF named IS NOT NULL THEN
        PERFORM release_ended(named);
    END IF;
    more := EXISTS (SELECT FROM jobs_live WHERE batch = b.id AND state = 0)
            OR tell_running(p_now, b.id);
END $$;

-- An item that fails again while others are still to be tried again is not tried twice.
CREATE OR REPLACE FUNCTION requeue_slice(p_now bigint, b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    moves moved[];
    seqs bigint[];
BEGIN
    SELECT array_agg(('requeue', j.id, 0, j.lease, j.queue, j.kind, j.role, j.batch, 3, 0,
                      NULL, NULL)::moved ORDER BY j.seq), array_agg(j.seq), max(j.seq)
    INTO moves, seqs, following
    FROM (SELECT * FROM jobs_done
          WHERE batch = b.id AND state = 3 AND role = 2 AND seq > b.drained
            AND (b.retry_type IS NULL OR error_type = b.retry_type)
          ORDER BY seq LIMIT least(500, b.retry_left) FOR UPDATE SKIP LOCKED) j;
    count := coalesce(cardinality(seqs), 0);
    IF count > 0 THEN
        PERFORM revive(seqs, 0::smallint);
        UPDATE jobs_live SET attempt = 0, lost = 0, run_at = p_now,
            rank = CASE WHEN NOT b.gated THEN rank_of(p_now, priority) END,
            gate = CASE WHEN b.gated THEN 1 END
        WHERE seq = ANY (seqs);
        PERFORM write_moves(p_now, moves);
        UPDATE batches SET retry_left = retry_left - count WHERE id = b.id;
        PERFORM follow_up(p_now, b.id, 0);
    END IF;
    more := count = least(500, b.retry_left) AND coalesce(b.retry_left - count > 0, true);
END $$;

CREATE OR REPLACE FUNCTION park_slice(b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
BEGIN
    WITH parked AS (
        UPDATE jobs_live SET rank = NULL, gate = 1
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM jobs_live
            WHERE batch = b.id AND state = 0 AND rank IS NOT NULL AND seq > b.drained
            ORDER BY seq LIMIT 500 FOR UPDATE SKIP LOCKED))
        RETURNING seq)
    SELECT count(*), max(seq) INTO count, following FROM parked;
    more := count = 500;
    IF NOT more THEN
        -- What was passed by, because it was just being claimed.
        following := 0;
        more := EXISTS (SELECT FROM jobs_live
                        WHERE batch = b.id AND state = 0 AND rank IS NOT NULL);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION unpark_slice(b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
BEGIN
    UPDATE jobs_live SET rank = rank_of(run_at, priority), gate = NULL
    WHERE seq = ANY (ARRAY(
        SELECT seq FROM jobs_live WHERE batch = b.id AND state = 0 AND gate = 1
        ORDER BY run_at - priority * 360000000::bigint, seq LIMIT 500 FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS count = ROW_COUNT;
    more := EXISTS (SELECT FROM jobs_live WHERE batch = b.id AND state = 0 AND gate = 1);
END $$;

-- Remove items, with the last ones the head too. The batch's counters go with it.
CREATE OR REPLACE FUNCTION delete_slice(p_now bigint, b batches, p_periods boolean,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    target uuid := innermost(b.id);
BEGIN
    count := remove_jobs(p_now, ARRAY(SELECT seq FROM jobs WHERE batch = target
                                      ORDER BY seq LIMIT 250), p_periods, true);
    more := count = 250;
    IF NOT more THEN
        PERFORM remove_batch(p_now, target, p_periods, true);
        more := target <> b.id;
    END IF;
END $$;

-- Remove items whose head makes them anew: with the same ids, so their leases go on.
CREATE OR REPLACE FUNCTION clear_slice(p_now bigint, b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[];
    highest integer;
    target uuid := innermost(b.id);
BEGIN
    SELECT array_agg(seq), max(lease) INTO seqs, highest
    FROM (SELECT seq, lease FROM jobs WHERE batch = target ORDER BY seq LIMIT 250) j;
    count := 0;
    IF seqs IS NOT NULL THEN
        count := remove_jobs(p_now, seqs, true, target <> b.id);
    END IF;
    more := count = 250;
    IF NOT more AND target <> b.id THEN
        highest := greatest(highest, (SELECT lease FROM jobs WHERE id = target));
        PERFORM remove_batch(p_now, target, true,
                             (SELECT within FROM batches WHERE id = target) <> b.id);
        more := true;
    END IF;
    UPDATE batches SET leases = greatest(leases, highest) WHERE id = b.id;
END $$;

-- The items are gone: the head is pending again and will expand.
CREATE OR REPLACE FUNCTION restart(p_now bigint, p_batch uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    top jobs;
    parked boolean;
BEGIN
    PERFORM fold(p_batch);
    UPDATE batches SET sealed = false, cancel = 0, owed = true, started_at = NULL,
        finish_job = NULL, gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL
    WHERE id = p_batch;
    SELECT * INTO top FROM jobs_done WHERE id = p_batch FOR UPDATE;
    PERFORM revive(ARRAY[top.seq], 0::smallint);
    parked := coalesce((SELECT gated FROM batches WHERE id = top.batch), false);
    UPDATE jobs_live SET attempt = 0, lost = 0, run_at = p_now,
        rank = CASE WHEN NOT parked THEN rank_of(p_now, priority) END,
        gate = CASE WHEN parked THEN 1 END
    WHERE seq = top.seq;
    IF parked THEN
        -- There may be room for it.
        INSERT INTO nested_due VALUES (top.batch, 0);
    END IF;
    PERFORM wait_again(top.seq);
    PERFORM write_moves(p_now, ARRAY[('requeue', top.id, 0, top.lease, top.queue, top.kind,
        top.role, top.batch, top.state, 0, NULL, NULL)::moved]);
END $$;
