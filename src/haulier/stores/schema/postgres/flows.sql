-- Jobs that wait for others: told when these end, cancelled with them, and brought back with them.
--
-- Whoever ends a job writes nothing for this: an index holds the parents that have ended and whose
-- children were not told. Whoever follows them does so alone, since of two that each told one of two
-- parents none would see that the child waits no longer; it waits for no lock, and leaves what others
-- hold to the next time.

-- Parents whose end can be told. The items of a head that failed or was cancelled may still be stopping.
CREATE OR REPLACE FUNCTION ended_parents(p_most integer) RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT j.seq FROM jobs_done j
        WHERE j.children = 1
          AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.id AND b.owed)
          AND NOT EXISTS (SELECT FROM ends e WHERE e.parent = j.id AND e.work = 2)
        ORDER BY j.seq LIMIT p_most FOR UPDATE SKIP LOCKED);
END $$;

CREATE OR REPLACE FUNCTION flows_wait() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
            SELECT FROM jobs_done j
            WHERE j.children = 1
              AND NOT EXISTS (SELECT FROM batches b WHERE b.id = j.id AND b.owed))
        OR EXISTS (SELECT FROM jobs_live WHERE children = 3)
        OR EXISTS (SELECT FROM ends WHERE work > 0);
END $$;

-- One slice of what follows from parents that ended or were requeued. 0 nothing, 1 something was done,
-- and 2 more if there is more to do.
CREATE OR REPLACE FUNCTION follow_flows(p_now bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint;
    room integer := 500;
    done integer;
    told integer := 0;
BEGIN
    IF NOT flows_wait() THEN
        RETURN 0;
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('haulier flows', hashtext(current_schema))) THEN
        RETURN 2;
    END IF;
    v_now := coalesce(p_now, clock_us());
    -- From children to their children at most so often.
    FOR level IN 1 .. 50 LOOP
        done := begin_reviving() + begin_telling();
        done := done + coalesce(nullif(revive_children(v_now, room), 0),
                                tell_children(v_now, room));
        EXIT WHEN done = 0;
        told := 1;
        room := room - done;
        EXIT WHEN room <= 0 OR NOT flows_wait();
    END LOOP;
    RETURN told + CASE WHEN flows_wait() THEN 2 ELSE 0 END;
END $$;

CREATE OR REPLACE FUNCTION begin_telling() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[] := ended_parents(500);
BEGIN
    IF cardinality(seqs) > 0 THEN
        WITH e AS (UPDATE jobs_done SET children = 2 WHERE seq = ANY (seqs) RETURNING *)
        INSERT INTO ends (parent, state, result, error, error_at, error_type, work)
        SELECT id, state, result, error, error_at, error_type, 1 FROM e
        ON CONFLICT (parent) DO UPDATE SET state = excluded.state, error = excluded.error,
            error_at = excluded.error_at, error_type = excluded.error_type, work = 1,
            result = coalesce(excluded.result, ends.result);
    END IF;
    RETURN cardinality(seqs);
END $$;

CREATE OR REPLACE FUNCTION begin_reviving() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[] := ARRAY(SELECT seq FROM jobs_live WHERE children = 3 ORDER BY seq LIMIT 500
                           FOR UPDATE SKIP LOCKED);
BEGIN
    IF cardinality(seqs) > 0 THEN
        WITH r AS (UPDATE jobs_live SET children = 1 WHERE seq = ANY (seqs) RETURNING *)
        INSERT INTO ends (parent, state, work) SELECT id, state, 2 FROM r
        ON CONFLICT (parent) DO UPDATE SET work = 2, done = 0;
    END IF;
    RETURN cardinality(seqs);
END $$;

-- Lock those of these jobs that nobody else holds: children, wherever they are. A head goes behind
-- its batch.
CREATE OR REPLACE FUNCTION lock_children(p_seqs bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    heads uuid[];
    locked bigint[];
BEGIN
    SELECT array_agg(b.id) INTO heads FROM (
        SELECT id FROM batches
        WHERE id = ANY (ARRAY(SELECT id FROM jobs WHERE seq = ANY (p_seqs) AND role = 1))
        ORDER BY id FOR UPDATE SKIP LOCKED) b;
    locked := ARRAY(SELECT seq FROM jobs_live
                    WHERE seq = ANY (p_seqs) AND (role <> 1 OR id = ANY (heads))
                    ORDER BY seq FOR UPDATE SKIP LOCKED);
    RETURN locked || ARRAY(SELECT seq FROM jobs_done
                           WHERE seq = ANY (p_seqs) AND (role <> 1 OR id = ANY (heads))
                           ORDER BY seq FOR UPDATE SKIP LOCKED);
END $$;

-- Tell children what their parents came to; how many.
CREATE OR REPLACE FUNCTION tell_children(p_now bigint, p_most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    children bigint[];
    parents uuid[];
    barred bigint[];
    free bigint[];
    count integer;
BEGIN
    SELECT array_agg(DISTINCT e.child), array_agg(DISTINCT e.parent) INTO children, parents FROM (
        SELECT e.child, e.parent FROM ends n JOIN edges e ON e.parent = n.parent AND e.state IS NULL
        WHERE n.work = 1 AND n.work > 0 LIMIT p_most) e;
    children := lock_children(children);
    WITH told AS (
        UPDATE edges e SET state = n.state FROM ends n
        WHERE n.parent = e.parent AND n.work = 1 AND n.work > 0 AND e.parent = ANY (parents)
          AND e.child = ANY (children) AND e.state IS NULL
        RETURNING e.child, n.state <> 2 AND e.otherwise = 0 AS bars)
    SELECT count(*), array_agg(DISTINCT child) FILTER (WHERE bars),
           array_agg(DISTINCT child) FILTER (WHERE NOT bars)
    INTO count, barred, free FROM told;
    IF free IS NOT NULL THEN
        -- Like a job whose time has come: the next claim puts it where jobs of its kind stand.
        UPDATE jobs_live j SET gate = NULL, run_at = greatest(j.run_at, p_now)
        WHERE j.seq = ANY (free) AND j.gate = 6 AND j.state = 0
          AND NOT coalesce(j.seq = ANY (barred), false)
          AND NOT EXISTS (SELECT FROM edges e WHERE e.child = j.seq AND e.state IS NULL);
    END IF;
    IF barred IS NOT NULL THEN
        PERFORM drop_children(p_now, barred);
    END IF;
    -- Of those whose children were removed before, nothing is kept.
    DELETE FROM ends n WHERE n.work = 1 AND n.work > 0
        AND NOT EXISTS (SELECT FROM edges e WHERE e.parent = n.parent);
    UPDATE ends n SET work = 0
    WHERE n.work = 1 AND n.work > 0
      AND NOT EXISTS (SELECT FROM edges e WHERE e.parent = n.parent AND e.state IS NULL);
    GET DIAGNOSTICS p_most = ROW_COUNT;
    RETURN count + p_most;
END $$;

-- The message of an error that is kept as JSON; text that PostgreSQL cannot read has none.
CREATE OR REPLACE FUNCTION message_of(p_error text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN p_error::json ->> 'message';
EXCEPTION WHEN others THEN
    RETURN '';
END $$;

-- Cancel locked children because of their parents.
CREATE OR REPLACE FUNCTION drop_children(p_now bigint, p_seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[] := ARRAY(SELECT seq FROM jobs_live
                           WHERE seq = ANY (p_seqs) AND state = 0 AND gate = 6 ORDER BY seq);
    moves moved[];
    named uuid[];
    heads uuid[];
    batch uuid;
BEGIN
    UPDATE jobs_live j SET error_type = 'ParentFailed', error_at = p_now, error = json_build_object(
        'type', 'ParentFailed', 'message', left(format('parent %s %s', w.parent,
            (ARRAY['completed', 'failed', 'cancelled'])[w.state - 1])
            || CASE WHEN w.error IS NULL THEN ''
                    ELSE format(': %s: %s', w.error_type, message_of(w.error)) END, 1000))
    FROM (
        SELECT DISTINCT ON (e.child) e.child, n.* FROM edges e JOIN ends n ON n.parent = e.parent
        WHERE e.child = ANY (seqs) AND e.state IN (3, 4) AND e.otherwise = 0
        ORDER BY e.child, e.nth) w
    WHERE j.seq = w.child;
    SELECT array_agg(('drop', j.id, j.attempt, j.lease, j.queue, j.kind, j.role, j.batch, 0, 4,
                      NULL, 'ParentFailed')::moved ORDER BY j.seq),
           array_agg(j.id) FILTER (WHERE j.uniq IS NOT NULL),
           array_agg(j.id) FILTER (WHERE j.role = 1)
    INTO moves, named, heads FROM jobs_live j WHERE j.seq = ANY (seqs);
    IF moves IS NULL THEN
        RETURN;
    END IF;
    FOREACH batch IN ARRAY coalesce(heads, '{}') LOOP
        PERFORM begin_cancel(p_now, batch, 1::smallint);
    END LOOP;
    PERFORM bury(p_now, seqs, 4::smallint);
    PERFORM write_moves(p_now, moves);
    IF named IS NOT NULL THEN
        PERFORM release_ended(named);
    END IF;
    FOREACH batch IN ARRAY coalesce(heads, '{}') LOOP
        -- Usually it has no items, since it makes them when it runs; others are left to a sweep.
        PERFORM fold(batch);
        UPDATE batches SET draining = 0 WHERE id = batch AND total = 0;
        PERFORM follow_up(p_now, batch, 0);
    END LOOP;
END $$;

-- Bring back children that were cancelled because of a parent which was requeued; how many.
CREATE OR REPLACE FUNCTION revive_children(p_now bigint, p_most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n ends;
    slice bigint[];
    locked bigint[];
    j jobs;
BEGIN
    SELECT * INTO n FROM ends WHERE work = 2 AND work > 0 LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    slice := ARRAY(SELECT child FROM edges WHERE parent = n.parent AND child > n.done
                   ORDER BY child LIMIT p_most);
    locked := lock_children(slice);
    -- Up to the first one that somebody else holds.
    slice := ARRAY(SELECT s FROM unnest(slice) s WHERE s < coalesce(
        (SELECT min(o) FROM unnest(slice) o WHERE o <> ALL (locked)), 9223372036854775807));
    -- Open again: one that waits still, or comes back for another parent, waits for this one too.
    UPDATE edges e SET state = NULL
    WHERE e.parent = n.parent AND e.child = ANY (slice) AND (
        EXISTS (SELECT FROM jobs_live w WHERE w.seq = e.child AND w.state = 0 AND w.gate = 6)
        OR EXISTS (SELECT FROM jobs_done d
                   WHERE d.seq = e.child AND d.state = 4 AND d.error_type = 'ParentFailed'));
    FOR j IN SELECT * FROM jobs_done
             WHERE seq = ANY (slice) AND state = 4 AND error_type = 'ParentFailed' ORDER BY seq
    LOOP
        IF NOT EXISTS (SELECT FROM edges e
                       WHERE e.child = j.seq AND e.otherwise = 0 AND e.state IN (3, 4)) THEN
            PERFORM bring_back(p_now, j);
        END IF;
    END LOOP;
    IF cardinality(slice) = 0 AND cardinality(locked) < 1
        AND EXISTS (SELECT FROM edges WHERE parent = n.parent AND child > n.done)
    THEN
        RETURN 0;
    END IF;
    IF EXISTS (SELECT FROM edges WHERE parent = n.parent
               AND child > coalesce((SELECT max(s) FROM unnest(slice) s), n.done)) THEN
        UPDATE ends SET done = coalesce((SELECT max(s) FROM unnest(slice) s), done)
        WHERE parent = n.parent;
    ELSE
        UPDATE ends SET work = 0, done = 0 WHERE parent = n.parent;
    END IF;
    RETURN cardinality(slice) + 1;
END $$;

-- One that cannot have its names back just now stays cancelled, and so does a head whose batch is
-- being worked on.
CREATE OR REPLACE FUNCTION bring_back(p_now bigint, j jobs) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one text;
BEGIN
    IF j.uniq IS NOT NULL THEN
        -- These locks come before all others: who has them is not waited for.
        FOREACH one IN ARRAY j.uniq LOOP
            IF NOT pg_try_advisory_xact_lock(hashtextextended(one, hashtext(current_schema))) THEN
                RETURN;
            END IF;
        END LOOP;
        IF NOT retake(p_now, j.id, j.uniq) THEN
            RETURN;
        END IF;
    END IF;
    IF j.role = 1 THEN
        UPDATE batches SET sealed = false, cancel = 0, owed = true, started_at = NULL,
            finish_job = NULL, gated = paused OR concurrency IS NOT NULL OR batch_size IS NOT NULL
        WHERE id = j.id AND draining = 0;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    PERFORM revive(ARRAY[j.seq], 0::smallint);
    UPDATE jobs_live SET attempt = 0, lost = 0, gate = 6, rank = NULL, lane = NULL WHERE seq = j.seq;
    PERFORM write_moves(p_now, ARRAY[('requeue', j.id, 0, j.lease, j.queue, j.kind, j.role, j.batch,
                                      4, 0, NULL, NULL)::moved]);
END $$;

-- A job that is requeued waits for others, if not all of them have ended: who was requeued before is
-- waited for anew. One that somebody holds is just being claimed or ended, and is not waited for here.
CREATE OR REPLACE FUNCTION wait_again(p_seq bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    anew uuid[];
BEGIN
    WITH p AS (
        UPDATE jobs_live SET children = CASE WHEN children = 3 THEN 3 ELSE 1 END
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM jobs_live
            WHERE id = ANY (ARRAY(SELECT parent FROM edges WHERE child = p_seq AND state IS NOT NULL))
            ORDER BY seq FOR UPDATE SKIP LOCKED))
        RETURNING id)
    SELECT array_agg(id) INTO anew FROM p;
    IF anew IS NOT NULL THEN
        UPDATE edges SET state = NULL WHERE child = p_seq AND parent = ANY (anew);
    END IF;
    IF EXISTS (SELECT FROM edges WHERE child = p_seq AND state IS NULL) THEN
        UPDATE jobs_live SET gate = 6, rank = NULL, lane = NULL WHERE seq = p_seq;
    END IF;
END $$;

-- What a claim is to find that waits no longer since this very exchange.
CREATE OR REPLACE FUNCTION promote_released(p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM promote(p_now, ARRAY(
        SELECT seq FROM jobs_live
        WHERE state = 0 AND rank IS NULL AND gate IS NULL AND run_at <= p_now AND batch IS NULL
        ORDER BY run_at LIMIT 1000 FOR UPDATE SKIP LOCKED), '{}');
END $$;

-- ── New jobs ─────────────────────────────────────────────────────────────────────────────────

-- Lock jobs that new ones wait for, in the one order, before these are inserted. What is requeued or
-- ends just now is found the second time.
CREATE OR REPLACE FUNCTION lock_parents(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM must_be_open();
    FOR pass IN 1 .. 2 LOOP
        PERFORM 1 FROM jobs_live WHERE id = ANY (p_ids) AND role <> 1 ORDER BY seq FOR UPDATE;
        PERFORM 1 FROM jobs_done WHERE id = ANY (p_ids) AND role <> 1 ORDER BY seq FOR UPDATE;
    END LOOP;
    PERFORM lock_batches(ARRAY(SELECT id FROM batches WHERE id = ANY (p_ids)));
    FOR pass IN 1 .. 2 LOOP
        PERFORM 1 FROM jobs_live WHERE id = ANY (p_ids) AND role = 1 ORDER BY seq FOR UPDATE;
        PERFORM 1 FROM jobs_done WHERE id = ANY (p_ids) AND role = 1 ORDER BY seq FOR UPDATE;
    END LOOP;
END $$;

-- Let jobs that were just inserted wait for others. Refuses when one of these is not there.
CREATE OR REPLACE FUNCTION add_edges(p_children uuid[], p_nths integer[], p_parents uuid[],
    p_otherwise smallint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fresh uuid[];
    asked uuid[];
    there uuid[];
BEGIN
    WITH w AS (
        UPDATE jobs_live SET gate = 6, rank = NULL, lane = NULL
        WHERE id = ANY (p_children) AND state = 0
          -- Somebody else was faster with the same jobs.
          AND NOT EXISTS (SELECT FROM edges e WHERE e.child = jobs_live.seq)
        RETURNING id, seq),
    a AS (
        INSERT INTO edges (child, nth, parent, otherwise)
        SELECT w.seq, g.nth, g.parent, g.otherwise
        FROM unnest(p_children, p_nths, p_parents, p_otherwise) g (child, nth, parent, otherwise)
        JOIN w ON w.id = g.child
        RETURNING parent)
    SELECT array_agg(DISTINCT parent) INTO asked FROM a;
    WITH l AS (
        UPDATE jobs_live SET children = CASE WHEN children = 3 THEN 3 ELSE 1 END
        WHERE id = ANY (asked) RETURNING id),
    d AS (
        UPDATE jobs_done SET children = 1 WHERE id = ANY (asked) RETURNING id)
    SELECT array_agg(id) INTO there FROM (SELECT id FROM l UNION ALL SELECT id FROM d) f;
    IF cardinality(asked) > coalesce(cardinality(there), 0) THEN
        PERFORM refuse('HL007', (
            SELECT string_agg(a::text, ',') FROM unnest(asked) a
            WHERE NOT coalesce(a = ANY (there), false)));
    END IF;
END $$;

-- Jobs are about to be removed: what they waited for is forgotten, and who waits for them is told.
CREATE OR REPLACE FUNCTION forget_flows(p_seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parents uuid[];
BEGIN
    IF EXISTS (SELECT FROM edges WHERE child = ANY (p_seqs)) THEN
        WITH gone AS (DELETE FROM edges WHERE child = ANY (p_seqs) RETURNING parent)
        SELECT array_agg(DISTINCT parent) INTO parents FROM gone;
        DELETE FROM ends n WHERE n.parent = ANY (parents) AND n.work = 0
            AND NOT EXISTS (SELECT FROM edges e WHERE e.parent = n.parent);
    END IF;
    INSERT INTO ends (parent, state, error, error_type, work)
    SELECT id, CASE WHEN state > 2 THEN state ELSE 4 END, '{"type":"JobDeleted","message":'
        '"it was deleted before it was done","traceback":""}', 'JobDeleted', 1
    FROM jobs WHERE seq = ANY (p_seqs) AND children IN (1, 3)
    ON CONFLICT (parent) DO UPDATE SET state = excluded.state, result = NULL,
        error = excluded.error, error_type = excluded.error_type, error_at = NULL, work = 1;
END $$;
