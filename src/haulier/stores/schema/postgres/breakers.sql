-- Circuit breakers: what ended well and badly of each key.
--
-- The window is kept in two halves. When the younger one is full it becomes the older one, which is
-- forgotten: what ended within half a window counts, what ended a whole window ago does not.

-- Tell of runs that ended.
CREATE OR REPLACE FUNCTION tell_circuits(p_now bigint, p_freed freed[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO key_news (at, name, key, good, bad)
    SELECT p_now, l.name, n.key, sum(f.good), sum(f.bad)
    FROM unnest(p_freed) f JOIN lanes n ON n.id = f.lane AND n.key IS NOT NULL
    JOIN limits l ON l.failures IS NOT NULL AND NOT l.deleted
     AND (l.queue IS NULL OR l.queue = n.queue) AND (l.kind IS NULL OR l.kind = n.kind)
    WHERE f.good + f.bad > 0 GROUP BY l.name, n.key;
END $$;

-- Fold what was told into the states of keys, in the order in which it happened; true if some is left.
CREATE OR REPLACE FUNCTION fold_circuits() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    names text[];
    keys text[];
    gone key_news[];
    one bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM key_news) THEN
        RETURN false;
    END IF;
    SELECT array_agg(n.name), array_agg(n.key) INTO names, keys
    FROM (SELECT DISTINCT m.name, m.key
          FROM (SELECT name, key FROM key_news ORDER BY at LIMIT 1000) m) n;
    IF EXISTS (SELECT FROM unnest(names, keys) u (name, key) WHERE NOT EXISTS (
        SELECT FROM key_states k WHERE k.name = u.name AND k.key = u.key))
    THEN
        -- Whoever makes rows that are to be held holds this: so nobody waits for one of them.
        PERFORM pg_advisory_xact_lock(hashtextextended('haulier lanes', hashtext(current_schema)));
        INSERT INTO key_states (name, key)
        SELECT u.name, u.key FROM unnest(names, keys) u (name, key)
        WHERE EXISTS (SELECT FROM limits l WHERE l.name = u.name AND NOT l.deleted)
        ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    END IF;
    SELECT array_agg(h.name), array_agg(h.key) INTO names, keys
    FROM unnest(names, keys) u (name, key), LATERAL (
        SELECT k.name, k.key FROM key_states k
        WHERE k.name = u.name AND k.key = u.key FOR UPDATE SKIP LOCKED) h;
    WITH g AS (
        DELETE FROM key_news WHERE ctid = ANY (ARRAY(
            SELECT n.ctid FROM unnest(names, keys) u (name, key)
            JOIN key_news n ON n.name = u.name AND n.key = u.key))
        RETURNING *)
    SELECT array_agg(g::key_news) INTO gone FROM g;
    FOR one IN SELECT DISTINCT g.at FROM unnest(gone) g ORDER BY 1 LOOP
        PERFORM count_ends(one, gone);
    END LOOP;
    RETURN EXISTS (SELECT FROM key_news);
END $$;

-- Count what ended at one moment.
CREATE OR REPLACE FUNCTION count_ends(p_at bigint, p_news key_news[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH n AS (
        SELECT u.name, u.key, sum(u.good)::integer AS good, sum(u.bad)::integer AS bad
        FROM unnest(p_news) u WHERE u.at = p_at GROUP BY u.name, u.key),
    w AS (
        SELECT n.*, l.failures, l.least, l.pause, k.circuit, k.opens_at,
               (k.circuit = 1 AND k.opens_at <= p_at) AS probed, c.*
        FROM n JOIN limits l ON l.name = n.name
        CROSS JOIN LATERAL (SELECT * FROM key_states s
                            WHERE s.name = n.name AND s.key = n.key LIMIT 1) k
        CROSS JOIN LATERAL counted(p_at, l.span, k) c),
    t AS (
        SELECT w.name, w.key, w.since, w.before_good, w.before_bad, w.pause,
               w.young_good + w.good AS young_good, w.young_bad + w.bad AS young_bad,
               w.probed AND w.good > 0 AS closes,
               (w.probed AND w.good = 0) OR (w.circuit = 0
                   AND w.before_good + w.before_bad + w.young_good + w.young_bad + w.good + w.bad
                       >= w.least
                   AND w.before_bad + w.young_bad + w.bad >= w.failures * (
                       w.before_good + w.before_bad + w.young_good + w.young_bad + w.good + w.bad))
                   AS opens
        FROM w WHERE w.circuit = 0 OR w.probed)
    UPDATE key_states k SET
        circuit = CASE WHEN t.closes THEN 0 WHEN t.opens THEN 1 ELSE k.circuit END,
        opens_at = CASE WHEN t.closes THEN 0 WHEN t.opens THEN p_at + t.pause ELSE k.opens_at END,
        since = CASE WHEN t.closes THEN 0 ELSE t.since END,
        succeeded = CASE WHEN t.closes THEN 0 ELSE t.young_good END,
        failed = CASE WHEN t.closes THEN 0 ELSE t.young_bad END,
        before_succeeded = CASE WHEN t.closes THEN 0 ELSE t.before_good END,
        before_failed = CASE WHEN t.closes THEN 0 ELSE t.before_bad END
    FROM t WHERE k.name = t.name AND k.key = t.key;
END $$;

-- The two halves of a key's window as they stand at a moment.
CREATE OR REPLACE FUNCTION counted(p_at bigint, p_span bigint, k key_states,
    OUT since bigint, OUT young_good integer, OUT young_bad integer,
    OUT before_good integer, OUT before_bad integer)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    half bigint := greatest(p_span / 2, 1);
BEGIN
    young_good := 0; young_bad := 0; before_good := 0; before_bad := 0;
    IF p_at - k.since < half THEN
        since := k.since;
        young_good := k.succeeded; young_bad := k.failed;
        before_good := k.before_succeeded; before_bad := k.before_failed;
    ELSIF p_at - k.since < 2 * half THEN
        since := k.since + half;
        before_good := k.succeeded; before_bad := k.failed;
    ELSE
        since := p_at;
    END IF;
END $$;

-- Close the breaker of a key and forget what it counted; false if it had counted nothing.
CREATE OR REPLACE FUNCTION reset_circuit(p_now bigint, p_name text, p_key text, p_by text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    l limits;
    k key_states;
    c record;
BEGIN
    PERFORM must_be_open();
    PERFORM hold_claims();
    SELECT * INTO l FROM limits WHERE name = p_name AND NOT deleted;
    IF l.name IS NULL THEN
        PERFORM refuse('HL008', p_name);
    ELSIF l.failures IS NULL THEN
        PERFORM refuse('HL002', format('limit %s is no circuit breaker', p_name));
    END IF;
    PERFORM fold_circuits();
    DELETE FROM key_states WHERE name = p_name AND key = p_key RETURNING * INTO k;
    IF k.name IS NULL THEN
        RETURN false;
    END IF;
    PERFORM open_lanes(ARRAY(SELECT id FROM lanes WHERE key = p_key AND why = 1 FOR UPDATE));
    c := counted(v_now, l.span, k);
    IF k.circuit = 1 OR c.young_good + c.young_bad + c.before_good + c.before_bad > 0 THEN
        PERFORM say_of_nobody(v_now, 'breaker_reset', ARRAY[p_name || ' ' || p_key], p_by);
        RETURN true;
    END IF;
    RETURN false;
END $$;
