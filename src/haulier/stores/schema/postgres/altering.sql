-- The limits of a batch are changed while it runs. In `draining`: 8, it has got limits just now.

-- Change the limits that are named in `p_changes`; whether something is to be drained.
CREATE OR REPLACE FUNCTION alter_batch(p_now bigint, p_batch uuid, p_changes jsonb, p_by text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    found_batch record := lock_batch(p_batch);
    b batches := found_batch.b;
    top jobs := found_batch.top;
    old jsonb := jsonb_build_object('concurrency', b.concurrency, 'batch_size', b.batch_size,
                                    'max_failures', b.max_failures);
    new jsonb := old || p_changes;
    was boolean := b.concurrency IS NOT NULL OR b.batch_size IS NOT NULL;
    limited boolean := new ->> 'concurrency' IS NOT NULL OR new ->> 'batch_size' IS NOT NULL;
    what smallint := b.draining;
BEGIN
    PERFORM must_be_open();
    IF b.owed AND b.cancel > 0 THEN
        PERFORM refuse('HL002', 'this batch has ended, or is being cancelled');
    ELSIF b.draining NOT IN (0, 4, 5, 8) THEN
        PERFORM refuse('HL002', 'a retry or delete of this batch is still under way');
    ELSIF new = old THEN
        RETURN false;
    END IF;
    IF b.owed AND NOT b.paused AND limited <> was THEN
        what := CASE WHEN limited THEN 8 ELSE 5 END;
    END IF;
    UPDATE batches SET concurrency = (new ->> 'concurrency')::integer,
        batch_size = (new ->> 'batch_size')::integer,
        max_failures = (new ->> 'max_failures')::integer,
        gated = owed AND (paused OR limited), draining = what,
        drained = CASE WHEN draining = what THEN drained ELSE 0 END,
        moved = CASE WHEN draining = what THEN moved ELSE 0 END
    WHERE id = p_batch;
    PERFORM write_moves(v_now, ARRAY[('alter', top.id, top.attempt, top.lease, top.queue, top.kind,
        top.role, top.batch, top.state, top.state, NULL,
        json_build_array(p_by, told_change(old, new))::text)::moved]);
    IF b.owed AND b.failed > (new ->> 'max_failures')::integer THEN
        PERFORM begin_cancel(v_now, p_batch, 2::smallint);
        RETURN true;
    END IF;
    PERFORM take_back(v_now, p_batch);
    PERFORM let_in(v_now, p_batch);
    RETURN what > 0;
END $$;

CREATE OR REPLACE FUNCTION told_change(p_old jsonb, p_new jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('%s %s -> %s', n.name, coalesce(p_old ->> n.name, 'none'),
                             coalesce(p_new ->> n.name, 'none')), ', ' ORDER BY n.nth)
    FROM unnest(ARRAY['concurrency', 'batch_size', 'max_failures']) WITH ORDINALITY n (name, nth)
    WHERE p_old -> n.name IS DISTINCT FROM p_new -> n.name
$$;

-- Park items of a locked batch that were let in beyond what may be in the line by now, the last ones
-- first. One that is just being claimed runs already.
CREATE OR REPLACE FUNCTION take_back(p_now bigint, p_batch uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    room integer := room_in(p_now, p_batch);
BEGIN
    IF room < 0 THEN
        UPDATE jobs_live SET gate = 1, rank = NULL
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM jobs_live WHERE batch = p_batch AND state = 0 AND gate = 2
            ORDER BY run_at - priority * 360000000::bigint DESC, seq DESC LIMIT -room
            FOR UPDATE SKIP LOCKED));
    END IF;
END $$;

-- Park some of the items that stood in the line before there was a gate. Claims take none of them
-- meanwhile, but those that are let in.
CREATE OR REPLACE FUNCTION limit_slice(p_now bigint, b batches,
    OUT count integer, OUT following bigint, OUT more boolean) LANGUAGE plpgsql AS $$
BEGIN
    WITH parked AS (
        UPDATE jobs_live SET rank = NULL, gate = 1
        WHERE seq = ANY (ARRAY(
            SELECT seq FROM jobs_live
            WHERE batch = b.id AND state = 0 AND rank IS NOT NULL AND gate IS NULL
              AND seq > b.drained
            ORDER BY seq LIMIT 500 FOR UPDATE SKIP LOCKED))
        RETURNING seq)
    SELECT count(*), max(seq) INTO count, following FROM parked;
    more := count = 500;
    IF NOT more THEN
        -- What was passed by, because it was just being claimed.
        following := 0;
        more := EXISTS (SELECT FROM jobs_live
                        WHERE batch = b.id AND state = 0 AND rank IS NOT NULL AND gate IS NULL);
    END IF;
    PERFORM let_in(p_now, b.id);
END $$;
