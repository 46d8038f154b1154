-- Lanes: where jobs that fall under limits wait.
--
-- Only claims lock lanes, and only with SKIP LOCKED. Whoever else has something to say of a lane leaves
-- news, which the next claim folds in. A claim takes jobs of a key while it holds all lanes of the
-- key under its limits, and passes the key over while another one holds some of them.
--
-- A lane stands open although its key is busy until a claim meets it and closes it. One that is closed
-- opens when a run of its key ends, but not where the same transaction claims: that claim looks at such
-- lanes first, and what it fills at once stays closed.

CREATE OR REPLACE FUNCTION lane_of(p_queue text, p_kind text, p_key text, p_batch uuid)
RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT md5(p_queue || '/' || p_kind || '/' || coalesce(p_batch::text, '') || '/'
               || coalesce('k' || p_key, ''))::uuid
$$;

-- Limits change while nobody claims or ends runs: these share a lock that a change has for itself.
-- Whether there are limits, or were.
CREATE OR REPLACE FUNCTION heed_limits() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('haulier limits', hashtext(current_schema)));
    RETURN EXISTS (SELECT FROM limits);
END $$;

-- Which of these lines are under limits, as queue/kind; NULL: none.
CREATE OR REPLACE FUNCTION limited_lines(p_queues text[], p_kinds text[]) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM limits WHERE NOT deleted) THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT array_agg(u.queue || '/' || u.kind)
            FROM (SELECT DISTINCT queue, kind FROM unnest(p_queues, p_kinds) u (queue, kind)) u
            WHERE EXISTS (SELECT FROM limits l WHERE NOT l.deleted
                          AND (l.queue IS NULL OR l.queue = u.queue)
                          AND (l.kind IS NULL OR l.kind = u.kind)));
END $$;

-- ── News ─────────────────────────────────────────────────────────────────────────────────────

-- Tell of jobs that are ready in their lanes now.
CREATE OR REPLACE FUNCTION tell_lanes(p_now bigint, p_seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lane_news (lane, queue, kind, key, batch, at, rank)
    SELECT lane, queue, kind, key, batch, p_now, min(rank_of(run_at, priority))
    FROM jobs_live WHERE seq = ANY (p_seqs) AND gate > 3 AND state < 1
    GROUP BY lane, queue, kind, key, batch;
END $$;

-- The same for jobs that came by COPY, a row for each lane.
CREATE OR REPLACE FUNCTION tell_new_lanes(p_now bigint, p_lanes uuid[], p_queues text[], p_kinds text[],
    p_keys text[], p_batches uuid[], p_ranks bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lane_news (lane, queue, kind, key, batch, at, rank)
    SELECT u.lane, u.queue, u.kind, u.key, u.batch, p_now, u.rank
    FROM unnest(p_lanes, p_queues, p_kinds, p_keys, p_batches, p_ranks)
         u (lane, queue, kind, key, batch, rank);
END $$;

-- Fold news into their lanes, make those that are not there; false if some are left.
CREATE OR REPLACE FUNCTION fold_lanes(p_now bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[];
    held uuid[];
    keys text[];
BEGIN
    SELECT array_agg(DISTINCT n.lane) INTO ids
    FROM (SELECT lane FROM lane_news ORDER BY lane LIMIT 1000) n;
    IF ids IS NULL THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM unnest(ids) i WHERE NOT EXISTS (SELECT FROM lanes l WHERE l.id = i)) THEN
        -- One after the other: two that make lanes of the same key would not see each other's.
        PERFORM pg_advisory_xact_lock(hashtextextended('haulier lanes', hashtext(current_schema)));
        INSERT INTO lanes (id, queue, kind, key, batch, turn)
        SELECT DISTINCT ON (n.lane) n.lane, n.queue, n.kind, n.key, n.batch, n.at
        FROM lane_news n
        WHERE n.lane = ANY (ids) AND NOT EXISTS (SELECT FROM lanes l WHERE l.id = n.lane)
        ORDER BY n.lane, n.at
        ON CONFLICT DO NOTHING;
    END IF;
    held := ARRAY(SELECT id FROM lanes WHERE id = ANY (ids) FOR UPDATE SKIP LOCKED);
    WITH gone AS (DELETE FROM lane_news WHERE lane = ANY (held) RETURNING *),
    s AS (
        SELECT lane, sum(ended) AS ended, min(at) FILTER (WHERE rank IS NOT NULL) AS at,
               min(rank) AS rank, bool_or(reopens) OR sum(ended) > 0 AS reopens
        FROM gone GROUP BY lane),
    t AS (
        SELECT n.id, n.running - s.ended AS running, least(n.floor, s.rank) AS floor, s.ended,
               CASE WHEN n.place IS NULL AND n.why IS NULL THEN greatest(n.turn, s.at)
                    ELSE n.turn END AS turn,
               n.why IS NULL OR (n.why = 1 AND s.reopens
                   AND (n.wake_at IS NULL OR n.wake_at <= p_now)) AS open
        FROM s JOIN lanes n ON n.id = s.lane),
    u AS (
        UPDATE lanes n SET running = t.running, floor = t.floor, turn = t.turn, since = t.turn,
            why = CASE WHEN NOT t.open THEN n.why END,
            wake_at = CASE WHEN NOT t.open THEN n.wake_at END,
            place = CASE WHEN t.open THEN t.turn - 360000000::bigint * (
                SELECT j.priority FROM jobs_live j
                WHERE j.lane = t.id AND j.state = 0 AND j.gate = 4
                  AND j.run_at - j.priority * 360000000::bigint >= t.floor
                ORDER BY j.run_at - j.priority * 360000000::bigint, j.seq LIMIT 1) END
        FROM t WHERE n.id = t.id
        RETURNING n.key, t.ended)
    SELECT array_agg(DISTINCT key) INTO keys FROM u WHERE ended > 0 AND key IS NOT NULL;
    IF keys IS NOT NULL THEN
        PERFORM open_keys(p_now, keys);
    END IF;
    RETURN cardinality(held) = cardinality(ids) AND NOT EXISTS (
        SELECT FROM lane_news WHERE lane <> ALL (held));
END $$;

-- Open what the end of a run of the same key may have made room for. Lanes in other hands get news.
-- False if nothing was closed.
CREATE OR REPLACE FUNCTION open_keys(p_now bigint, p_keys text[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM lanes WHERE why = 1 AND key = ANY (p_keys)) THEN
        RETURN false;
    END IF;
    PERFORM open_lanes(ARRAY(
        SELECT id FROM lanes
        WHERE why = 1 AND key = ANY (p_keys) AND (wake_at IS NULL OR wake_at <= p_now)
        FOR UPDATE SKIP LOCKED));
    INSERT INTO lane_news (lane, queue, kind, key, batch, at, reopens)
    SELECT id, queue, kind, key, batch, p_now, true FROM lanes
    WHERE why = 1 AND key = ANY (p_keys) AND (wake_at IS NULL OR wake_at <= p_now);
    RETURN true;
END $$;

-- Open locked lanes; those without a ready job are left without a place.
CREATE OR REPLACE FUNCTION open_lanes(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE lanes n SET why = NULL, wake_at = NULL, since = n.turn, place = n.turn - 360000000::bigint * (
        SELECT j.priority FROM jobs_live j
        WHERE j.lane = n.id AND j.state = 0 AND j.gate = 4
          AND j.run_at - j.priority * 360000000::bigint >= n.floor
        ORDER BY j.run_at - j.priority * 360000000::bigint, j.seq LIMIT 1)
    WHERE n.id = ANY (p_ids);
END $$;

-- Runs ended: give back what they held. No tokens: these were for the start. `opened`: that may have
-- opened lanes to those who wait. With `p_claims` closed lanes of `shut` keys are left to the claim that
-- follows.
CREATE OR REPLACE FUNCTION free_lanes(p_now bigint, p_freed freed[], p_claims boolean,
    OUT opened boolean, OUT shut text[]) LANGUAGE plpgsql AS $$
DECLARE
    left_over integer;
    held uuid[];
    keys text[];
BEGIN
    opened := false;
    WITH f AS (SELECT lane, count(*) AS ended FROM unnest(p_freed) GROUP BY lane),
    h AS (
        SELECT f.* FROM f, LATERAL (
            SELECT FROM lanes l WHERE l.id = f.lane FOR UPDATE SKIP LOCKED) l),
    u AS (
        UPDATE lanes n SET running = n.running - h.ended FROM h WHERE n.id = h.lane
        RETURNING n.id, n.key)
    SELECT array_agg(id), array_agg(DISTINCT key) FILTER (WHERE key IS NOT NULL),
           (SELECT count(*) FROM f) - count(*)
    INTO held, keys, left_over FROM u;
    IF left_over > 0 THEN
        INSERT INTO lane_news (lane, queue, kind, key, batch, at, ended)
        SELECT n.id, n.queue, n.kind, n.key, n.batch, p_now, f.ended
        FROM (SELECT lane, count(*) AS ended FROM unnest(p_freed) GROUP BY lane) f
        JOIN lanes n ON n.id = f.lane WHERE f.lane <> ALL (coalesce(held, '{}'));
    END IF;
    IF keys IS NOT NULL AND p_claims THEN
        SELECT array_agg(DISTINCT key) INTO shut FROM lanes
        WHERE why = 1 AND key = ANY (keys) AND (wake_at IS NULL OR wake_at <= p_now);
        opened := shut IS NOT NULL;
    ELSIF keys IS NOT NULL THEN
        opened := open_keys(p_now, keys);
    END IF;
    IF EXISTS (SELECT FROM limits WHERE failures IS NOT NULL AND NOT deleted) THEN
        PERFORM tell_circuits(p_now, p_freed);
    END IF;
    IF EXISTS (SELECT FROM slots) THEN
        INSERT INTO slot_deltas
        SELECT l.name, count(*)
        FROM unnest(p_freed) f JOIN lanes n ON n.id = f.lane JOIN limits l
          ON NOT l.deleted AND NOT l.per_key AND l.concurrency IS NOT NULL
         AND (l.queue IS NULL OR l.queue = n.queue) AND (l.kind IS NULL OR l.kind = n.kind)
        GROUP BY l.name;
        opened := true;
    END IF;
    opened := opened OR left_over > 0 OR EXISTS (SELECT FROM lanes WHERE why = 2);
END $$;

-- ── Into lanes ───────────────────────────────────────────────────────────────────────────────

-- Put jobs of limited lines that stand in the plain line into their lanes, a slice of them; whether
-- there may be more. They were inserted before the limit, or by one who did not see it yet, or became
-- ready in some rare way. Heads stay.
CREATE OR REPLACE FUNCTION move_stragglers(p_now bigint, p_lines demand[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    room integer := 1000;
    count integer;
    limited text[] := limited_lines(ARRAY(SELECT d.queue FROM unnest(p_lines) d),
                                    ARRAY(SELECT d.kind FROM unnest(p_lines) d));
    l record;
BEGIN
    FOR l IN SELECT u.queue, u.kind, min(u.floor) AS floor FROM unnest(p_lines) u
             WHERE u.queue || '/' || u.kind = ANY (limited) AND EXISTS (
                 SELECT FROM jobs_live WHERE queue = u.queue AND kind = u.kind AND state = 0
                 AND rank >= u.floor AND role NOT IN (1, 3))
             GROUP BY u.queue, u.kind
    LOOP
        WITH moved AS (
            UPDATE jobs_live SET lane = lane_of(queue, kind, key, batch), rank = NULL, gate = 4
            WHERE seq = ANY (ARRAY(
                SELECT seq FROM jobs_live
                WHERE queue = l.queue AND kind = l.kind AND state = 0 AND rank >= l.floor
                  AND role NOT IN (1, 3)
                ORDER BY rank, seq LIMIT room FOR UPDATE SKIP LOCKED))
            RETURNING *),
        said AS (
            INSERT INTO lane_news (lane, queue, kind, key, batch, at, rank)
            SELECT lane, queue, kind, key, batch, p_now, min(rank_of(run_at, priority)) FROM moved
            GROUP BY lane, queue, kind, key, batch)
        SELECT count(*) INTO count FROM moved;
        room := room - count;
        IF room = 0 THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;

-- ── Upkeep ───────────────────────────────────────────────────────────────────────────────────

-- Remove one slice of lanes and keys that are at rest; how many.
CREATE OR REPLACE FUNCTION prune_lanes(p_now bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    count integer := 0;
    more integer;
BEGIN
    IF NOT heed_limits() OR EXISTS (
        SELECT FROM transfer WHERE stage IN ('frozen', 'moved', 'receiving'))
    THEN
        RETURN 0;
    END IF;
    PERFORM fold_circuits();
    PERFORM fold_lanes(v_now);
    DELETE FROM lanes WHERE id = ANY (ARRAY(
        SELECT n.id FROM lanes n
        WHERE n.place IS NULL AND n.why IS NULL AND n.since < v_now - 60000000
          AND n.turn < v_now - 60000000 AND n.running = 0
          AND NOT EXISTS (SELECT FROM jobs_live j WHERE j.lane = n.id AND j.state = 0 AND j.gate = 4)
          AND NOT EXISTS (SELECT FROM lane_news m WHERE m.lane = n.id)
        ORDER BY n.since LIMIT 250 FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS count = ROW_COUNT;
    DELETE FROM key_states WHERE ctid = ANY (ARRAY(
        SELECT k.ctid FROM key_states k LEFT JOIN limits l ON l.name = k.name
        WHERE CASE WHEN k.circuit = 0
            THEN k.full_at <= v_now AND k.since <= v_now - coalesce(l.span, 0)
            -- Nothing has probed it for a week.
            ELSE k.opens_at <= v_now - 604800000000 END
        LIMIT 250 FOR UPDATE OF k SKIP LOCKED));
    GET DIAGNOSTICS more = ROW_COUNT;
    RETURN count + more;
END $$;
