-- Limits: put, deleted, shown.

-- Until the end of this transaction nobody claims or ends a run.
CREATE OR REPLACE FUNCTION hold_claims() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('haulier limits', hashtext(current_schema)));
END $$;

-- Add a limit or replace the one of its name; whether anything changed. `p_spec` is all of it.
CREATE OR REPLACE FUNCTION put_limit(p_now bigint, p_name text, p_queue text, p_kind text, p_per_key boolean,
    p_concurrency integer, p_gap bigint, p_depth integer, p_failures float8, p_least integer,
    p_span bigint, p_pause bigint, p_probes integer, p_spec text, p_by text, p_declared boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    old limits;
BEGIN
    PERFORM must_be_open();
    PERFORM hold_claims();
    SELECT * INTO old FROM limits WHERE name = p_name;
    IF p_declared AND old.was = p_spec THEN
        RETURN false;
    END IF;
    IF NOT old.deleted AND old.spec = p_spec THEN
        UPDATE limits SET was = p_spec WHERE name = p_name AND p_declared;
        RETURN false;
    END IF;
    INSERT INTO limits AS l (name, queue, kind, per_key, concurrency, gap, depth, failures, least, span,
        pause, probes, spec, was, declared, changed_by, changed_at)
    VALUES (p_name, p_queue, p_kind, p_per_key, p_concurrency, p_gap, p_depth, p_failures, p_least,
        p_span, p_pause, p_probes, p_spec, CASE WHEN p_declared THEN p_spec END, p_declared, p_by,
        v_now)
    ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, kind = excluded.kind,
        per_key = excluded.per_key, concurrency = excluded.concurrency, gap = excluded.gap,
        depth = excluded.depth, failures = excluded.failures, least = excluded.least,
        span = excluded.span, pause = excluded.pause, probes = excluded.probes,
        spec = excluded.spec, was = coalesce(excluded.was, l.was), declared = excluded.declared,
        deleted = false, changed_by = excluded.changed_by, changed_at = excluded.changed_at;
    IF (old.gap IS NULL, old.failures IS NULL) IS DISTINCT FROM (p_gap IS NULL, p_failures IS NULL) THEN
        DELETE FROM key_states WHERE name = p_name;
        DELETE FROM key_news WHERE name = p_name;
    END IF;
    PERFORM count_running(v_now, p_queue, p_kind);
    PERFORM recount(v_now, p_name);
    PERFORM open_concerned(p_queue, p_kind);
    IF old.name IS NOT NULL AND (old.queue, old.kind) IS DISTINCT FROM (p_queue, p_kind) THEN
        PERFORM open_concerned(old.queue, old.kind);
    END IF;
    PERFORM say_of_nobody(v_now, 'limit_changed', ARRAY[p_name], p_by);
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION drop_limit(p_now bigint, p_name text, p_by text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    old limits;
BEGIN
    PERFORM must_be_open();
    PERFORM hold_claims();
    -- What code declared stays, or the next process that declares it would bring it back.
    UPDATE limits SET deleted = true, declared = false, changed_by = p_by, changed_at = coalesce(p_now, clock_us())
    WHERE name = p_name AND NOT deleted RETURNING * INTO old;
    IF old.name IS NULL THEN
        RETURN false;
    END IF;
    DELETE FROM slots WHERE name = p_name;
    DELETE FROM slot_deltas WHERE name = p_name;
    DELETE FROM key_states WHERE name = p_name;
    DELETE FROM key_news WHERE name = p_name;
    PERFORM open_concerned(old.queue, old.kind);
    PERFORM say_of_nobody(old.changed_at, 'limit_delete', ARRAY[p_name], p_by);
    RETURN true;
END $$;

-- Jobs that run and were not counted so far, as no limit concerned them, get lanes.
CREATE OR REPLACE FUNCTION count_running(p_now bigint, p_queue text, p_kind text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH found AS (
        UPDATE jobs_live SET lane = lane_of(queue, kind, key, batch)
        WHERE state = 1 AND worker IS NOT NULL AND role NOT IN (1, 3) AND lane IS NULL
          AND (p_queue IS NULL OR queue = p_queue) AND (p_kind IS NULL OR kind = p_kind)
        RETURNING *)
    INSERT INTO lanes AS n (id, queue, kind, key, batch, turn, running)
    SELECT lane, queue, kind, key, batch, p_now, count(*) FROM found
    GROUP BY lane, queue, kind, key, batch
    ON CONFLICT (id) DO UPDATE SET running = n.running + excluded.running;
END $$;

-- What a limit has used, anew.
CREATE OR REPLACE FUNCTION recount(p_now bigint, p_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    l limits;
BEGIN
    SELECT * INTO l FROM limits WHERE name = p_name;
    DELETE FROM slot_deltas WHERE name = p_name;
    IF l.per_key THEN
        DELETE FROM slots WHERE name = p_name;
        UPDATE key_states SET full_at = p_now + l.depth * l.gap
        WHERE name = p_name AND full_at > p_now + l.depth * l.gap;
    ELSE
        DELETE FROM key_states WHERE name = p_name;
        INSERT INTO slots (name) VALUES (p_name) ON CONFLICT DO NOTHING;
        UPDATE slots SET used = (
                SELECT count(*) FROM jobs_live j WHERE l.concurrency IS NOT NULL
                AND j.state = 1 AND j.worker IS NOT NULL AND j.role NOT IN (1, 3)
                AND (l.queue IS NULL OR j.queue = l.queue) AND (l.kind IS NULL OR j.kind = l.kind)),
            -- A bucket cannot lack more than it holds.
            full_at = CASE WHEN l.gap IS NOT NULL THEN least(full_at, p_now + l.depth * l.gap) ELSE 0 END
        WHERE name = p_name;
    END IF;
END $$;

-- Lanes that were closed under other limits may have room; what is closed still is closed again.
CREATE OR REPLACE FUNCTION open_concerned(p_queue text, p_kind text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM open_lanes(ARRAY(
        SELECT id FROM lanes WHERE why = 1
        AND (p_queue IS NULL OR queue = p_queue) AND (p_kind IS NULL OR kind = p_kind) FOR UPDATE));
END $$;

-- How keys stand under a limit that is per key: those that have something to tell. `circuit` as in
-- key_states, of a breaker.
CREATE OR REPLACE FUNCTION limit_keys(p_now bigint, p_name text, p_most integer, p_after text)
RETURNS TABLE (key text, running integer, ready_at bigint, circuit smallint, succeeded integer,
               failed integer)
LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    l limits;
BEGIN
    SELECT * INTO l FROM limits WHERE name = p_name AND NOT deleted;
    IF l.name IS NULL THEN
        PERFORM refuse('HL008', p_name);
    ELSIF NOT l.per_key THEN
        RETURN;
    END IF;
    PERFORM fold_circuits();
    RETURN QUERY
        SELECT u.key, sum(u.running)::integer,
               CASE WHEN l.gap IS NOT NULL AND tokens(v_now, max(u.full_at), l.gap, l.depth) = 0
                    THEN max(u.full_at) - (l.depth - 1) * l.gap
                    WHEN max(u.opens_at) > v_now THEN max(u.opens_at) END,
               CASE WHEN l.failures IS NULL THEN NULL WHEN max(u.circuit) = 0 THEN 0
                    WHEN max(u.opens_at) > v_now THEN 1 ELSE 2 END::smallint,
               sum(u.good)::integer, sum(u.bad)::integer
        FROM (
            SELECT n.key, sum(n.running - (SELECT coalesce(sum(m.ended), 0) FROM lane_news m
                                           WHERE m.lane = n.id)) AS running,
                   0::bigint AS full_at, 0::smallint AS circuit, 0::bigint AS opens_at, 0 AS good,
                   0 AS bad
            FROM lanes n
            WHERE n.key IS NOT NULL AND (p_after IS NULL OR n.key > p_after)
              AND (l.queue IS NULL OR n.queue = l.queue) AND (l.kind IS NULL OR n.kind = l.kind)
            GROUP BY n.key
            UNION ALL
            SELECT k.key, 0, k.full_at, k.circuit, k.opens_at, c.young_good + c.before_good,
                   c.young_bad + c.before_bad
            FROM key_states k, LATERAL counted(v_now, coalesce(l.span, 0), k) c
            WHERE k.name = p_name AND (p_after IS NULL OR k.key > p_after)) u
        GROUP BY u.key HAVING sum(u.running) > 0 OR max(u.full_at) > v_now OR max(u.circuit) > 0
            OR sum(u.good + u.bad) > 0
        ORDER BY u.key COLLATE "C" LIMIT p_most;
END $$;
