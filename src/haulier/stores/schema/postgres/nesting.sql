-- Batches within batches: what is done to one goes on through those whose heads are its items. A job of
-- role 3 is both.
--
-- The batch around another one is locked before it or, by work on the whole of it, meets it with SKIP
-- LOCKED. So one that settles cannot lock the one around it: it leaves word in `nested_due`, and
-- drain_batch() goes on with that one in a transaction of its own.

-- These batches with all that they lie within.
CREATE OR REPLACE FUNCTION with_around(p_batches uuid[]) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    found uuid[] := p_batches;
    outer_ones uuid[] := p_batches;
BEGIN
    LOOP
        SELECT array_agg(DISTINCT b.within) INTO outer_ones
        FROM batches b WHERE b.id = ANY (outer_ones) AND b.within IS NOT NULL;
        EXIT WHEN outer_ones IS NULL;
        found := found || outer_ones;
    END LOOP;
    RETURN found;
END $$;

-- New batches lie within others, which are locked: paused like them, with leases above all used there.
CREATE OR REPLACE FUNCTION put_within(p_heads uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    around uuid;
BEGIN
    FOR around IN SELECT DISTINCT j.batch FROM jobs_live j WHERE j.id = ANY (p_heads) AND j.role = 3 LOOP
        -- 4 batches around one are the most.
        IF cardinality(with_around(ARRAY[around])) > 4 THEN
            PERFORM refuse('HL002', format(
                'batch %s lies as deep as can be: 4 batches around one are the most', around));
        END IF;
    END LOOP;
    UPDATE batches b SET within = o.id, leases = o.leases, paused = o.paused,
        pauses = CASE WHEN o.paused THEN 2 ELSE 0 END, gated = b.gated OR o.paused
    FROM jobs_live j JOIN batches o ON o.id = j.batch
    WHERE b.id = ANY (p_heads) AND j.id = b.id AND j.role = 3;
END $$;

-- Pause a locked batch that was not, or the other way about, and begin what that brings along. In the
-- midst of a retry the pause follows that.
CREATE OR REPLACE FUNCTION set_paused(p_batch uuid, p_pauses integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE batches b SET pauses = p_pauses, paused = p_pauses > 0, drained = 0, moved = 0,
        draining = CASE
            WHEN draining NOT IN (0, 4, 5, 8) THEN draining
            WHEN p_pauses > 0 THEN 4
            WHEN concurrency IS NULL AND batch_size IS NULL THEN 5
            -- Got its limits while it was being paused: what still stands in the line was not let
            -- in. Or those within it are to be resumed.
            WHEN draining = 4 OR any_owed_within(b.id) THEN 8 ELSE 0 END,
        gated = p_pauses > 0 OR concurrency IS NOT NULL OR batch_size IS NOT NULL
    WHERE id = p_batch;
END $$;

CREATE OR REPLACE FUNCTION any_owed_within(p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT FROM batches i WHERE i.within = p_batch AND i.owed);
END $$;

-- A batch within a locked one that is not yet cancelled or paused as it is.
CREATE OR REPLACE FUNCTION unlike_within(o batches) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT i.id FROM batches i
    WHERE i.within = o.id AND i.owed AND i.cancel = 0
      AND (o.cancel > 0 OR o.paused <> (i.pauses & 2 > 0));
END $$;

-- Do to a locked batch what was done to the one around it.
CREATE OR REPLACE FUNCTION adapt(p_now bigint, i batches, p_cancel boolean, p_pause boolean)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    top jobs;
BEGIN
    IF p_cancel THEN
        PERFORM begin_cancel(p_now, i.id, 1::smallint);
        RETURN;
    END IF;
    IF i.pauses & 1 > 0 THEN
        UPDATE batches SET pauses = i.pauses # 2 WHERE id = i.id;
        RETURN;
    END IF;
    PERFORM set_paused(i.id, CASE WHEN p_pause THEN 2 ELSE 0 END);
    SELECT * INTO top FROM jobs WHERE id = i.id;
    PERFORM write_moves(p_now, ARRAY[(CASE WHEN p_pause THEN 'pause' ELSE 'resume' END, top.id,
        top.attempt, top.lease, top.queue, top.kind, top.role, top.batch, top.state, top.state,
        NULL, NULL)::moved]);
    PERFORM let_in(p_now, i.id);
END $$;

-- One step of bringing what lies within a locked batch into line with it; whether there is more. The
-- work of each is done here, so that whoever drains the outer one does it all.
CREATE OR REPLACE FUNCTION go_on_within(p_now bigint, p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    o batches;
    i batches;
BEGIN
    IF NOT any_owed_within(p_batch) THEN
        RETURN false;
    END IF;
    SELECT * INTO o FROM batches WHERE id = p_batch;
    SELECT b.* INTO i FROM batches b
    WHERE b.id = ANY (ARRAY(SELECT unlike_within(o) LIMIT 50)) LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        PERFORM adapt(p_now, i, o.cancel > 0, o.paused);
    ELSE
        SELECT b.* INTO i FROM batches b WHERE b.within = p_batch AND b.owed AND b.draining > 0
        LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    IF FOUND OR i.id IS NOT NULL THEN
        PERFORM drain_batch(p_now, i.id);
        RETURN true;
    END IF;
    -- What was passed by, because others hold it.
    RETURN EXISTS (SELECT unlike_within(o))
        OR EXISTS (SELECT FROM batches b WHERE b.within = p_batch AND b.owed AND b.draining > 0);
END $$;

-- The batch itself, or one within it that has none within.
CREATE OR REPLACE FUNCTION innermost(p_batch uuid) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    at uuid := p_batch;
    inner_one uuid := p_batch;
BEGIN
    WHILE inner_one IS NOT NULL LOOP
        at := inner_one;
        inner_one := (SELECT id FROM batches WHERE within = at LIMIT 1);
    END LOOP;
    RETURN at;
END $$;

-- Remove a batch without items, and its head. Uncounted: what it is an item of goes too.
CREATE OR REPLACE FUNCTION remove_batch(p_now bigint, p_batch uuid, p_periods boolean,
    p_uncounted boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM remove_jobs(p_now, ARRAY(SELECT seq FROM jobs WHERE id = p_batch), p_periods,
                        p_uncounted);
    DELETE FROM batch_deltas WHERE batch = p_batch;
    DELETE FROM nested_due WHERE batch = p_batch;
    DELETE FROM batches WHERE id = p_batch;
END $$;

-- Go on with a locked batch of which something within it has settled: 2 if it was cut short by that.
CREATE OR REPLACE FUNCTION after_inner(p_now bigint, p_batch uuid) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    fails integer;
BEGIN
    WITH gone AS (DELETE FROM nested_due WHERE batch = p_batch RETURNING failures)
    SELECT sum(failures) INTO fails FROM gone;
    RETURN CASE WHEN fails IS NOT NULL THEN follow_up(p_now, p_batch, fails) ELSE 0 END;
END $$;
