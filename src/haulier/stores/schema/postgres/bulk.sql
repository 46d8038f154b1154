-- Many plain jobs, whose rows come by COPY between two calls.

-- Before rows of plain jobs, without unique names, come by COPY: what has to be known of their batches,
-- which are locked, to make the rows.
CREATE OR REPLACE FUNCTION begin_rows(p_now bigint, p_batches uuid[], p_fence uuid, p_fence_lease integer,
    OUT at bigint, OUT gated boolean[], OUT leases integer[]) LANGUAGE plpgsql AS $$
BEGIN
    at := coalesce(p_now, clock_us());
    PERFORM must_be_open();
    IF p_fence IS NOT NULL THEN
        PERFORM check_fence(p_fence, p_fence_lease);
    END IF;
    gated := '{}'; leases := '{}';
    IF cardinality(p_batches) > 0 THEN
        PERFORM lock_batches(p_batches);
        SELECT array_agg(coalesce(b.gated, false) ORDER BY p.nth),
               array_agg(coalesce(b.leases, 0) ORDER BY p.nth)
        INTO gated, leases
        FROM unnest(p_batches) WITH ORDINALITY p (id, nth) LEFT JOIN batches b ON b.id = p.id;
    END IF;
END $$;

-- After them, in the same transaction: all that insert_rows() does besides. Each group g is a row of
-- the journal.
CREATE OR REPLACE FUNCTION end_rows(p_now bigint, p_ids uuid[], g_counts integer[], g_kinds text[],
    g_queues text[], g_roles smallint[], g_batches uuid[], g_bodies bytea[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parents uuid[];
BEGIN
    -- Looked at only now: a row may have moved on to what is done while COPY waited for it.
    IF EXISTS (SELECT FROM jobs_done d WHERE d.id = ANY (p_ids)) THEN
        PERFORM refuse('23505', 'some of these jobs are done already');
    END IF;
    INSERT INTO journal (n, at, type, kind, queue, role, batch, source, target, body)
    SELECT g.n, p_now, 'insert', g.kind, g.queue, g.role, g.batch, NULL, 0, g.body
    FROM unnest(g_counts, g_kinds, g_queues, g_roles, g_batches, g_bodies)
        WITH ORDINALITY g (n, kind, queue, role, batch, body, nth) ORDER BY g.nth;
    INSERT INTO batch_deltas
    SELECT g.batch, sum(g.n), sum(g.n), 0, 0, 0, 0, NULL
    FROM unnest(g_counts, g_roles, g_batches) g (n, role, batch)
    WHERE g.role >= 2 AND g.batch IS NOT NULL GROUP BY g.batch;
    SELECT array_agg(DISTINCT b) INTO parents FROM unnest(g_batches) b WHERE b IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM check_open(p_now, parents);
    END IF;
END $$;
