-- Admission: what of the jobs in lanes a claim may have.

CREATE OR REPLACE FUNCTION tokens(p_now bigint, p_full_at bigint, p_gap bigint, p_depth integer)
RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(0, (p_depth * p_gap - greatest(p_full_at - p_now, 0)) / p_gap)::integer
$$;

-- Before the lanes are looked at: lock what is shared, bring all up to date. True if something was
-- left for the next claim.
CREATE OR REPLACE FUNCTION prepare_lanes(p_now bigint, p_lines demand[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    names text[];
    more boolean;
BEGIN
    -- The only locks that a claim waits for: claims under one limit have to come one after the other.
    names := shared_limits(p_lines);
    IF names IS NOT NULL THEN
        PERFORM 1 FROM slots WHERE name = ANY (names) ORDER BY name FOR UPDATE;
        WITH gone AS (DELETE FROM slot_deltas WHERE name = ANY (names) RETURNING *),
        s AS (SELECT name, sum(freed) AS freed FROM gone GROUP BY name)
        UPDATE slots SET used = used - s.freed FROM s WHERE slots.name = s.name;
    END IF;
    more := fold_circuits();
    more := move_stragglers(p_now, p_lines) OR more;
    IF EXISTS (SELECT FROM lanes WHERE wake_at <= p_now) THEN
        PERFORM open_lanes(ARRAY(SELECT id FROM lanes WHERE wake_at <= p_now
                                 ORDER BY wake_at LIMIT 1000 FOR UPDATE SKIP LOCKED));
    END IF;
    more := NOT fold_lanes(p_now) OR more;
    IF EXISTS (SELECT FROM lanes WHERE why = 2) THEN
        PERFORM open_lanes(ARRAY(SELECT id FROM lanes WHERE id = ANY (ARRAY(
            SELECT h.lane FROM held_lanes(p_lines) h)) AND why = 2 FOR UPDATE SKIP LOCKED));
    END IF;
    RETURN more;
END $$;

-- What a worker asks for that could take one job of a line.
CREATE OR REPLACE FUNCTION any_of(p_queue text, p_kind text) RETURNS demand LANGUAGE plpgsql AS $$
DECLARE
    line demand;
BEGIN
    line.demand := 0;
    line.portion := 0;
    line.queue := p_queue;
    line.kind := p_kind;
    line.floor := 0;
    line.portion_slots := 1;
    line.slots := 1;
    RETURN line;
END $$;

-- The limits of these lines that are not per key.
CREATE OR REPLACE FUNCTION shared_limits(p_lines demand[]) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(l.name ORDER BY l.name) FROM limits l
            WHERE NOT l.deleted AND NOT l.per_key AND EXISTS (
                SELECT FROM unnest(p_lines) d
                WHERE (l.queue IS NULL OR l.queue = d.queue) AND (l.kind IS NULL OR l.kind = d.kind)));
END $$;

-- Lanes that their batch closed and that it has room for now, as many as it has.
CREATE OR REPLACE FUNCTION held_lanes(p_lines demand[]) RETURNS TABLE (lane uuid) LANGUAGE plpgsql AS $$
DECLARE
    one uuid;
    room integer;
BEGIN
    SELECT n.batch INTO one FROM lanes n WHERE n.why = 2 ORDER BY n.batch LIMIT 1;
    WHILE one IS NOT NULL LOOP
        room := coalesce(batch_room(one), 1000);
        IF room > 0 THEN
            RETURN QUERY SELECT n.id FROM (SELECT DISTINCT d.queue, d.kind FROM unnest(p_lines) d) d,
                LATERAL (SELECT m.id FROM lanes m
                         WHERE m.batch = one AND m.queue = d.queue AND m.kind = d.kind AND m.why = 2
                         ORDER BY m.since LIMIT room) n;
        END IF;
        SELECT n.batch INTO one FROM lanes n WHERE n.why = 2 AND n.batch > one
        ORDER BY n.batch LIMIT 1;
    END LOOP;
END $$;

-- How many more items of a batch may start now; NULL: any number, as it has no gate. Those in the plain
-- line count as if they ran.
CREATE OR REPLACE FUNCTION batch_room(p_batch uuid) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT CASE WHEN b.paused OR b.cancel > 0 THEN 0 ELSE
            least(b.batch_size, b.concurrency - b.running
                - (SELECT coalesce(sum(running), 0) FROM batch_deltas WHERE batch = b.id)
                - (SELECT count(*) FROM jobs_live j
                   WHERE j.batch = b.id AND j.state = 0 AND j.gate = 2))::integer END
            FROM batches b WHERE b.id = p_batch AND (b.gated OR b.cancel > 0));
END $$;

-- What limits that are not per key leave to each line.
CREATE OR REPLACE FUNCTION hurdles(p_now bigint, p_lines demand[]) RETURNS hurdle[] LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM slots) THEN
        RETURN array_fill((2147483647, NULL, NULL)::hurdle, ARRAY[cardinality(p_lines)]);
    END IF;
    RETURN (
        SELECT array_agg((coalesce(r.room, 2147483647), r.names, r.rooms)::hurdle ORDER BY d.ordinality)
        FROM unnest(p_lines) WITH ORDINALITY d, LATERAL (
            SELECT min(s.room) AS room, array_agg(s.name) AS names, array_agg(s.room) AS rooms
            FROM (SELECT l.name, CASE WHEN l.gap IS NULL THEN l.concurrency - s.used
                                      ELSE tokens(p_now, s.full_at, l.gap, l.depth) END AS room
                  FROM limits l JOIN slots s ON s.name = l.name
                  WHERE NOT l.deleted AND NOT l.per_key
                    AND (l.queue IS NULL OR l.queue = d.queue)
                    AND (l.kind IS NULL OR l.kind = d.kind)) s) r);
END $$;

-- ── Looking at lanes ─────────────────────────────────────────────────────────────────────────

-- Lock the first open lanes of each line and all lanes of their keys, see which of these have room,
-- close the others. The same for closed lanes of the keys `p_shut`. `passed`: others hold some of
-- them; `elsewhere`: of which keys. `p_taken` has the jobs that this claim took before.
CREATE OR REPLACE FUNCTION survey(p_now bigint, p_lines demand[], p_hurdles hurdle[], p_width integer,
    p_taken bigint[], p_shut text[], OUT fits fit[], OUT looked integer, OUT closed integer,
    OUT passed boolean, OUT elsewhere text[])
LANGUAGE plpgsql AS $$
DECLARE
    held lanes[];
    ids uuid[];
    keys text[];
    keyless boolean;
    batches uuid[];
    rooms integer[];
BEGIN
    closed := 0;
    passed := false;
    elsewhere := '{}';
    SELECT array_agg(n.id), array_agg(DISTINCT n.key) FILTER (WHERE n.key IS NOT NULL),
           bool_or(n.key IS NULL)
    INTO ids, keys, keyless
    FROM unnest(p_lines) WITH ORDINALITY d, LATERAL (
        SELECT o.id, o.key FROM lanes o
        WHERE o.queue = d.queue AND o.kind = d.kind AND o.place IS NOT NULL
        ORDER BY o.place, o.id LIMIT p_width) n
    WHERE (p_hurdles[d.ordinality]).room > 0;
    looked := coalesce(cardinality(ids), 0);
    IF p_shut IS NOT NULL THEN
        keys := ARRAY(SELECT unnest(keys) UNION SELECT unnest(p_shut));
    ELSIF looked = 0 THEN
        RETURN;
    END IF;
    IF p_shut IS NOT NULL
        OR (keys IS NOT NULL AND EXISTS (SELECT FROM limits WHERE per_key AND NOT deleted))
    THEN
        SELECT array_agg(n::lanes) INTO held FROM (
            SELECT * FROM lanes WHERE key = ANY (keys) FOR UPDATE SKIP LOCKED) n;
        IF coalesce(cardinality(held), 0) < (SELECT count(*) FROM lanes WHERE key = ANY (keys)) THEN
            passed := true;
            elsewhere := ARRAY(
                SELECT DISTINCT n.key FROM lanes n WHERE n.key = ANY (keys)
                AND n.id <> ALL (ARRAY(SELECT h.id FROM unnest(held) h)));
        END IF;
        IF keyless THEN
            SELECT held || array_agg(n::lanes) INTO held FROM (
                SELECT * FROM lanes WHERE id = ANY (ids) AND key IS NULL FOR UPDATE SKIP LOCKED) n;
        END IF;
    ELSE
        SELECT array_agg(n::lanes) INTO held FROM (
            SELECT * FROM lanes WHERE id = ANY (ids) FOR UPDATE SKIP LOCKED) n;
    END IF;
    passed := passed OR coalesce(cardinality(held), 0) < looked;
    SELECT array_agg(DISTINCT n.batch) INTO batches FROM unnest(held) n
    WHERE n.batch IS NOT NULL AND (n.place IS NOT NULL OR (p_shut IS NOT NULL AND n.why = 1));
    IF batches IS NOT NULL THEN
        rooms := batch_rooms(batches, p_taken);
        passed := passed OR -1 = ANY (rooms);
    END IF;
    fits := judge(p_now, held, elsewhere, p_shut IS NOT NULL, batches, rooms);
    closed := close_lanes(fits);
    IF EXISTS (SELECT FROM unnest(fits) f WHERE f.room <= 0) THEN
        fits := ARRAY(SELECT f FROM unnest(fits) f WHERE f.room > 0);
    END IF;
END $$;

-- The room of each batch; NULL: it has no gate, -1: another claim holds it.
CREATE OR REPLACE FUNCTION batch_rooms(p_batches uuid[], p_taken bigint[]) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    gates uuid[] := ARRAY(SELECT id FROM batches
                          WHERE id = ANY (p_batches) AND (gated OR cancel > 0));
    mine uuid[];
BEGIN
    IF gates = '{}' THEN
        RETURN NULL;
    END IF;
    -- Two claims at the same time could be more than it may run.
    mine := ARRAY(SELECT id FROM batches WHERE id = ANY (gates) FOR UPDATE SKIP LOCKED);
    RETURN ARRAY(
        SELECT CASE WHEN u.batch <> ALL (gates) THEN NULL WHEN u.batch <> ALL (mine) THEN -1
               ELSE greatest(0, coalesce(batch_room(u.batch), 2147483647) - (
                   SELECT count(*) FROM jobs_live j
                   WHERE j.seq = ANY (p_taken) AND j.batch = u.batch)) END::integer
        FROM unnest(p_batches) WITH ORDINALITY u (batch, nth) ORDER BY u.nth);
END $$;

-- How much room each of the open lanes has, with `p_shut` also of those that ends of runs open. All lanes
-- of their keys are held, but those of `p_foreign`.
CREATE OR REPLACE FUNCTION judge(p_now bigint, p_held lanes[], p_foreign text[], p_shut boolean,
    p_batches uuid[], p_rooms integer[]) RETURNS fit[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT (g.id, g.queue, g.kind, g.key, g.batch, g.turn, g.floor,
                CASE WHEN g.elsewhere THEN 0
                     ELSE least(g.key_room, coalesce(g.batch_room, 2147483647)) END,
                CASE WHEN g.elsewhere THEN NULL WHEN g.batch_room = 0 THEN 2 ELSE 1 END,
                CASE WHEN NOT g.busy AND coalesce(g.batch_room, 1) > 0 THEN g.wake_at END,
                CASE WHEN g.batch_room IS NULL THEN g.names
                     ELSE g.names || ('/' || g.batch::text) END,
                CASE WHEN g.batch_room IS NULL THEN g.rooms ELSE g.rooms || g.batch_room END,
                CASE WHEN g.own AND g.batch_room IS NULL THEN g.key_room END, g.place IS NULL)::fit
        FROM (
            SELECT p.id, p.queue, p.kind, p.key, p.batch, p.turn, p.floor, p.place,
                   min(p.room) AS key_room, bool_and(p.own AND p.mates = 1) AS own,
                   bool_or(p.room <= 0 AND p.wake_at IS NULL) AS busy,
                   max(p.wake_at) FILTER (WHERE p.room <= 0) AS wake_at,
                   array_agg(p.name || '/' || p.key) FILTER (WHERE p.mates > 1) AS names,
                   array_agg(p.room) FILTER (WHERE p.mates > 1) AS rooms,
                   p_rooms[array_position(p_batches, p.batch)] AS batch_room,
                   coalesce(p.key = ANY (p_foreign), false)
                       OR coalesce(p_rooms[array_position(p_batches, p.batch)] < 0, false)
                       AS elsewhere
            FROM (
                SELECT n.id, n.queue, n.kind, n.key, n.batch, n.turn, n.floor, n.place,
                       n.place IS NOT NULL OR (p_shut AND n.why = 1
                           AND (n.wake_at IS NULL OR n.wake_at <= p_now)) AS open,
                       l.name, l.concurrency IS NOT NULL AS own, count(*) OVER w AS mates,
                       CASE WHEN l.concurrency IS NOT NULL
                            THEN l.concurrency - (sum(n.running) OVER w)::integer
                            WHEN l.gap IS NOT NULL
                            THEN tokens(p_now, coalesce(k.full_at, 0), l.gap, l.depth)
                            WHEN k.circuit = 1 AND k.opens_at > p_now THEN 0
                            WHEN k.circuit = 1 THEN l.probes - (sum(n.running) OVER w)::integer
                            ELSE 2147483647 END AS room,
                       CASE WHEN l.gap IS NOT NULL THEN k.full_at - (l.depth - 1) * l.gap
                            WHEN k.circuit = 1 AND k.opens_at > p_now THEN k.opens_at
                            END AS wake_at
                FROM unnest(p_held) n
                LEFT JOIN limits l ON l.per_key AND NOT l.deleted AND n.key IS NOT NULL
                     AND (l.queue IS NULL OR l.queue = n.queue)
                     AND (l.kind IS NULL OR l.kind = n.kind)
                -- A LIMIT, or the planner might read all keys of the limit for each.
                LEFT JOIN LATERAL (SELECT * FROM key_states s
                                   WHERE s.name = l.name AND s.key = n.key LIMIT 1) k
                     ON l.concurrency IS NULL
                WINDOW w AS (PARTITION BY l.name, n.key)) p
            WHERE p.open
            GROUP BY p.id, p.queue, p.kind, p.key, p.batch, p.turn, p.floor, p.place) g);
END $$;

CREATE OR REPLACE FUNCTION close_lanes(p_fits fit[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    count integer := 0;
BEGIN
    IF EXISTS (SELECT FROM unnest(p_fits) f WHERE f.room <= 0 AND f.why IS NOT NULL) THEN
        UPDATE lanes n SET place = NULL, why = f.why, wake_at = f.wake_at, since = n.turn
        FROM unnest(p_fits) f WHERE n.id = f.lane AND f.room <= 0 AND f.why IS NOT NULL
        AND (NOT f.shut OR (n.why, n.wake_at) IS DISTINCT FROM (f.why, f.wake_at));
        GET DIAGNOSTICS count = ROW_COUNT;
    END IF;
    RETURN count;
END $$;

-- ── The claim ────────────────────────────────────────────────────────────────────────────────

-- What pick_lines() does, where lines are under limits. `p_shut`: as gather() has it.
CREATE OR REPLACE FUNCTION pick_lanes(p_now bigint, p_lines demand[], p_pausing uuid[], p_parking uuid[],
    p_taken bigint[], p_shut text[], OUT seqs bigint[], OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    drawn record;
    merged record;
    plain bigint[] := '{}';
    limited text[];
    one record;
    place integer;
    picked bigint[];
BEGIN
    IF p_lines[1].step IS NOT NULL THEN
        SELECT t.seqs, t.more INTO seqs, more
        FROM pick_lanes_in_turn(p_now, p_lines, p_pausing, p_parking, p_taken) t;
        RETURN;
    END IF;
    drawn := gather(p_now, p_lines, p_taken, p_shut);
    more := drawn.more;
    IF drawn.chosen IS NULL THEN
        one := pick_lines(p_lines, p_pausing, p_parking);
        plain := one.seqs;
        more := more OR one.more;
        seqs := '{}';
    ELSE
        merged := merge_lines(p_lines, drawn.chosen);
        FOR place IN 1 .. coalesce(cardinality(merged.places), 0) LOOP
            one := p_lines[merged.places[place]];
            picked := coalesce(pick(one.queue, one.kind, one.floor, merged.planned[place],
                                    p_pausing, p_parking), '{}');
            plain := plain || picked;
            more := more OR cardinality(picked) < merged.planned[place];
        END LOOP;
        seqs := take_lanes(p_now, merged.chosen);
        more := more OR cardinality(seqs) < cardinality(merged.chosen);
        IF p_shut IS NOT NULL AND cardinality(seqs) < cardinality(drawn.chosen) THEN
            drawn.spare := drawn.spare || ARRAY(SELECT c.lane FROM unnest(drawn.chosen) c);
        END IF;
    END IF;
    IF drawn.spare <> '{}' THEN
        PERFORM open_lanes(drawn.spare);
    END IF;
    IF drawn.elsewhere <> '{}' THEN
        PERFORM open_keys(p_now, drawn.elsewhere);
    END IF;
    IF plain <> '{}' THEN
        limited := limited_lines(ARRAY(SELECT d.queue FROM unnest(p_lines) d),
                                 ARRAY(SELECT d.kind FROM unnest(p_lines) d));
        IF limited IS NOT NULL THEN
            -- Heads go their way. What came into the plain line a moment ago has to take the other.
            picked := ARRAY(SELECT j.seq FROM jobs_live j WHERE j.seq = ANY (plain)
                            AND (j.role IN (1, 3) OR j.queue || '/' || j.kind <> ALL (limited)));
            more := more OR cardinality(picked) < cardinality(plain);
            plain := picked;
        END IF;
    END IF;
    seqs := plain || seqs;
    IF NOT more AND cardinality(seqs) < p_lines[1].slots THEN
        -- What is open and has room was not to be had just now.
        more := any_open(p_now, p_lines);
        IF more AND EXISTS (SELECT FROM unnest(p_lines) d WHERE d.portion_slots < d.slots) THEN
            more := any_open(p_now, (
                SELECT array_agg(d) FROM unnest(p_lines) d WHERE d.portion_slots > (
                    SELECT count(*) FROM jobs_live j WHERE j.seq = ANY (seqs) AND EXISTS (
                        SELECT FROM unnest(p_lines) e WHERE e.portion = d.portion
                        AND e.queue = j.queue AND e.kind = j.kind))));
        END IF;
    END IF;
END $$;

-- The same of queues that are taken from by weight: each gives as many as its time says. What one of
-- them does not have is left to the next claim, at once.
CREATE OR REPLACE FUNCTION pick_lanes_in_turn(p_now bigint, p_lines demand[], p_pausing uuid[],
    p_parking uuid[], p_taken bigint[], OUT seqs bigint[], OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    mine demand[];
    one record;
    share record;
    filled boolean := false;
BEGIN
    seqs := '{}';
    more := false;
    FOR share IN
        SELECT t.queue, count(*)::integer AS n FROM (
            SELECT q.queue FROM (
                SELECT l.queue, min(l.ahead) AS ahead, min(l.step) AS step
                FROM unnest(p_lines) l WHERE anything_in_queue(p_lines, l.queue) GROUP BY l.queue) q,
                generate_series(1, p_lines[1].slots) n
            ORDER BY q.ahead + q.step * n LIMIT p_lines[1].slots) t
        GROUP BY t.queue
    LOOP
        mine := share_of(p_lines, share.queue, share.n, seqs);
        CONTINUE WHEN mine IS NULL;
        one := pick_lanes(p_now, mine, p_pausing, p_parking, p_taken || seqs, NULL);
        seqs := seqs || one.seqs;
        more := more OR one.more;
        filled := filled OR cardinality(one.seqs) = share.n;
    END LOOP;
    more := more OR (filled AND cardinality(seqs) < p_lines[1].slots);
END $$;

-- Whether a queue has ready jobs, in lanes or not, that a demand asks for.
CREATE OR REPLACE FUNCTION anything_in_queue(p_lines demand[], p_queue text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM unnest(p_lines) l WHERE l.queue = p_queue AND (
            (SELECT j.seq FROM jobs_live j
             WHERE j.queue = l.queue AND j.kind = l.kind AND j.state = 0 AND j.rank >= l.floor
             ORDER BY j.rank, j.seq LIMIT 1) IS NOT NULL
            OR EXISTS (SELECT FROM lanes n WHERE n.queue = l.queue AND n.kind = l.kind
                       AND n.place IS NOT NULL)));
END $$;

-- The lines of one queue, for so many jobs and no more than their portions have left; NULL: none.
CREATE OR REPLACE FUNCTION share_of(p_lines demand[], p_queue text, p_slots integer, p_taken bigint[])
RETURNS demand[] LANGUAGE plpgsql AS $$
DECLARE
    line demand;
    mine demand[];
BEGIN
    FOREACH line IN ARRAY p_lines LOOP
        CONTINUE WHEN line.queue <> p_queue;
        line.portion_slots := line.portion_slots - (
            SELECT count(*) FROM jobs_live j WHERE j.seq = ANY (p_taken) AND EXISTS (
                SELECT FROM unnest(p_lines) e
                WHERE e.portion = line.portion AND e.queue = j.queue AND e.kind = j.kind));
        line.slots := p_slots;
        line.step := NULL;
        IF line.portion_slots > 0 THEN
            mine := mine || line;
        END IF;
    END LOOP;
    RETURN mine;
END $$;

-- Merge what lanes would give with the plain lines, by rank: which of it, and how many of each plain
-- line. As pick_lines() does it.
CREATE OR REPLACE FUNCTION merge_lines(p_lines demand[], p_chosen candidate[],
    OUT chosen candidate[], OUT places integer[], OUT planned integer[]) LANGUAGE plpgsql AS $$
DECLARE
    lines demand[];
    ceilings bigint[];
    numbers integer[];
BEGIN
    SELECT array_agg(f.line), array_agg(f.number::integer),
           array_agg(CASE WHEN f.lines >= f.most THEN f.last ELSE 9223372036854775807 END)
    INTO lines, numbers, ceilings
    FROM (
        SELECT n.line, n.number, n.most, count(*) OVER w AS lines, max(n.rank) OVER w AS last
        FROM (
            SELECT p_lines[l.ordinality] AS line, l.ordinality AS number, l.portion,
                   least(l.slots, l.portion_slots) AS most, j.rank,
                   row_number() OVER (PARTITION BY l.portion ORDER BY j.rank, j.seq) AS nth
            FROM unnest(p_lines) WITH ORDINALITY l, LATERAL (
                SELECT rank, seq FROM jobs_live
                WHERE queue = l.queue AND kind = l.kind AND state = 0 AND rank >= l.floor
                ORDER BY rank, seq LIMIT 1) j) n
        WHERE n.nth <= n.most WINDOW w AS (PARTITION BY n.portion)) f;
    IF lines IS NULL THEN
        chosen := p_chosen;
        RETURN;
    END IF;
    WITH c AS (
        SELECT c.number, c.choice FROM (
            SELECT m.*, row_number() OVER (ORDER BY m.rank, m.seq) AS nth_of
            FROM (
                SELECT u.*, row_number() OVER (PARTITION BY u.portion ORDER BY u.rank, u.seq) AS nth
                FROM (
                    SELECT l.number, NULL::integer AS choice, l.portion, l.portion_slots, l.slots,
                           j.rank, j.seq
                    FROM (SELECT (lines[i]).*, numbers[i] AS number, ceilings[i] AS ceiling
                          FROM generate_subscripts(lines, 1) i) l, LATERAL (
                        SELECT rank, seq FROM jobs_live j
                        WHERE j.queue = l.queue AND j.kind = l.kind AND j.state = 0
                          AND j.rank BETWEEN l.floor AND l.ceiling
                        ORDER BY rank, seq LIMIT least(l.slots, l.portion_slots)) j
                    UNION ALL
                    SELECT NULL, c.ordinality::integer, c.portion, c.portion_slots,
                           p_lines[1].slots, c.merit, c.seq
                    FROM unnest(p_chosen) WITH ORDINALITY c) u) m
            WHERE m.nth <= m.portion_slots) c
        WHERE c.nth_of <= c.slots)
    SELECT coalesce((SELECT array_agg(p_chosen[c.choice] ORDER BY c.choice) FROM c
                     WHERE c.choice IS NOT NULL), '{}'),
           (SELECT array_agg(s.number ORDER BY s.number) FROM (
                SELECT c.number FROM c WHERE c.number IS NOT NULL GROUP BY c.number) s),
           (SELECT array_agg(s.n ORDER BY s.number) FROM (
                SELECT c.number, count(*)::integer AS n FROM c
                WHERE c.number IS NOT NULL GROUP BY c.number) s)
    INTO chosen, places, planned;
END $$;

-- Lock these jobs and count them as running; those that were to be had. A closed lane that is filled by
-- it stays closed.
CREATE OR REPLACE FUNCTION take_lanes(p_now bigint, p_chosen candidate[]) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[];
    whole boolean;
BEGIN
    -- In these words it is the condition of no index but that of the numbers.
    seqs := ARRAY(SELECT j.seq FROM jobs_live j
                  WHERE j.seq = ANY (ARRAY(SELECT c.seq FROM unnest(p_chosen) c))
                    AND j.state < 1 AND j.gate > 3 FOR UPDATE SKIP LOCKED);
    whole := cardinality(seqs) = cardinality(p_chosen);
    UPDATE lanes n SET running = n.running + t.n, turn = greatest(p_now, n.turn + t.n),
        floor = CASE WHEN t.whole THEN t.rank ELSE n.floor END,
        place = CASE WHEN NOT t.whole OR (n.why = 1 AND t.full) THEN n.place
                     ELSE greatest(p_now, n.turn + t.n) - t.follows * 360000000::bigint END,
        since = CASE WHEN NOT t.whole OR (n.why = 1 AND t.full) THEN n.since
                     ELSE greatest(p_now, n.turn + t.n) END,
        why = CASE WHEN NOT t.whole OR (n.why = 1 AND t.full) THEN n.why END,
        wake_at = CASE WHEN NOT t.whole OR (n.why = 1 AND t.full) THEN n.wake_at END
    FROM (SELECT c.lane, count(*) FILTER (WHERE whole OR c.seq = ANY (seqs)) AS n,
                 bool_and(whole OR c.seq = ANY (seqs)) AS whole, max(c.rank) AS rank,
                 (array_agg(c.follows ORDER BY c.nth DESC))[1] AS follows,
                 coalesce(count(*) >= min(c.own), false) AS full
          FROM unnest(p_chosen) c GROUP BY c.lane) t
    WHERE n.id = t.lane;
    IF NOT whole THEN
        p_chosen := ARRAY(SELECT c FROM unnest(p_chosen) c WHERE c.seq = ANY (seqs));
    END IF;
    PERFORM spend(p_now, p_chosen);
    RETURN seqs;
END $$;

-- Slots that are not per key, and tokens.
CREATE OR REPLACE FUNCTION spend(p_now bigint, p_taken candidate[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM slots) THEN
        UPDATE slots s SET used = s.used + CASE WHEN t.gap IS NULL THEN t.n ELSE 0 END,
            full_at = CASE WHEN t.gap IS NULL THEN s.full_at
                           ELSE greatest(s.full_at, p_now) + t.n * t.gap END
        FROM (SELECT l.name, l.gap, count(*)::integer AS n
              FROM unnest(p_taken) c JOIN limits l ON NOT l.deleted AND NOT l.per_key
               AND (l.queue IS NULL OR l.queue = c.queue) AND (l.kind IS NULL OR l.kind = c.kind)
              GROUP BY l.name, l.gap) t
        WHERE s.name = t.name;
    END IF;
    IF EXISTS (SELECT FROM limits WHERE per_key AND gap IS NOT NULL AND NOT deleted) THEN
        INSERT INTO key_states AS k (name, key, full_at)
        SELECT l.name, c.key, p_now + count(*) * l.gap
        FROM unnest(p_taken) c JOIN limits l ON NOT l.deleted AND l.per_key AND l.gap IS NOT NULL
         AND (l.queue IS NULL OR l.queue = c.queue) AND (l.kind IS NULL OR l.kind = c.kind)
        WHERE c.key IS NOT NULL GROUP BY l.name, c.key, l.gap
        ON CONFLICT (name, key) DO UPDATE
        SET full_at = greatest(k.full_at, p_now) + excluded.full_at - p_now;
    END IF;
END $$;

-- Take one locked job that is to be run alone, if all its limits have room for it.
CREATE OR REPLACE FUNCTION take_alone(p_now bigint, p_seq bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    j jobs;
    line demand[];
    home uuid;
    held lanes[];
    fits fit[];
BEGIN
    SELECT * INTO j FROM jobs_live WHERE seq = p_seq;
    line := ARRAY[any_of(j.queue, j.kind)];
    IF j.role IN (1, 3) OR (j.lane IS NULL AND limited_lines(ARRAY[j.queue], ARRAY[j.kind]) IS NULL) THEN
        RETURN true;
    END IF;
    home := coalesce(j.lane, lane_of(j.queue, j.kind, j.key, j.batch));
    IF NOT EXISTS (SELECT FROM lanes WHERE id = home) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('haulier lanes', hashtext(current_schema)));
        INSERT INTO lanes (id, queue, kind, key, batch, turn)
        VALUES (home, j.queue, j.kind, j.key, j.batch, p_now) ON CONFLICT DO NOTHING;
    END IF;
    held := ARRAY(SELECT n::lanes FROM (SELECT * FROM lanes WHERE id = home FOR UPDATE SKIP LOCKED) n);
    IF held = '{}' THEN
        RETURN false;
    ELSIF j.key IS NOT NULL THEN
        held := ARRAY(SELECT n::lanes FROM (
            SELECT * FROM lanes WHERE key = j.key FOR UPDATE SKIP LOCKED) n);
        IF cardinality(held) < (SELECT count(*) FROM lanes WHERE key = j.key) THEN
            RETURN false;
        END IF;
    END IF;
    -- As if it stood open: the others of its lane are not asked for.
    held := ARRAY(SELECT (n.id, n.queue, n.kind, n.key, n.batch, n.turn,
                          CASE WHEN n.id = home THEN 0 END, NULL, NULL, n.running, n.floor,
                          n.since)::lanes FROM unnest(held) n);
    fits := judge(p_now, held, '{}', false, '{}', '{}');
    IF (fits[1]).room <= 0 OR (hurdles(p_now, line))[1].room <= 0 THEN
        RETURN false;
    END IF;
    UPDATE lanes SET running = running + 1 WHERE id = home;
    UPDATE jobs_live SET lane = home WHERE seq = p_seq;
    PERFORM spend(p_now, ARRAY[(1, 0, 1, home, j.key, j.queue, j.kind, p_seq, 1, 0, NULL, 0, 1, NULL,
                                NULL, NULL)::candidate]);
    RETURN true;
END $$;

-- ── Without a lock ───────────────────────────────────────────────────────────────────────────

-- Whether one of these lines has an open lane, and room under what is not per key.
CREATE OR REPLACE FUNCTION any_open(p_now bigint, p_lines demand[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    room hurdle[];
BEGIN
    IF NOT EXISTS (
        SELECT FROM unnest(p_lines) d WHERE EXISTS (
            SELECT FROM lanes n WHERE n.queue = d.queue AND n.kind = d.kind AND n.place IS NOT NULL))
    THEN
        RETURN false;
    END IF;
    room := hurdles(p_now, p_lines);
    RETURN EXISTS (
        SELECT FROM unnest(p_lines) WITH ORDINALITY d
        WHERE (room[d.ordinality]).room + coalesce((
                SELECT sum(s.freed) FROM slot_deltas s
                WHERE s.name = ANY ((room[d.ordinality]).names)), 0) > 0
          AND EXISTS (SELECT FROM lanes n
                      WHERE n.queue = d.queue AND n.kind = d.kind AND n.place IS NOT NULL));
END $$;

-- Whether there is an open lane with room, or one whose batch has room again, in any line: after runs
-- ended, for those who wait. Lines that have open lanes are few, lanes may be many.
CREATE OR REPLACE FUNCTION left_open(p_now bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    l record;
    lines demand[] := '{}';
BEGIN
    SELECT queue, kind INTO l FROM lanes WHERE place IS NOT NULL AND queue > ''
    ORDER BY queue, kind, place LIMIT 1;
    WHILE l.queue IS NOT NULL LOOP
        lines := lines || any_of(l.queue, l.kind);
        SELECT queue, kind INTO l FROM lanes
        WHERE place IS NOT NULL AND (queue, kind) > (l.queue, l.kind)
        ORDER BY queue, kind, place LIMIT 1;
    END LOOP;
    RETURN EXISTS (SELECT FROM lane_news) OR (lines <> '{}' AND any_open(p_now, lines))
        OR EXISTS (SELECT FROM lanes WHERE why = 2);
END $$;

-- Whether a claim would find something in lanes, or has to bring them up to date.
CREATE OR REPLACE FUNCTION anything_in_lanes(p_now bigint, p_lines demand[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT FROM lane_news) OR EXISTS (SELECT FROM key_news)
        OR any_open(p_now, p_lines)
        OR (EXISTS (SELECT FROM lanes WHERE why = 2) AND EXISTS (SELECT FROM held_lanes(p_lines)));
END $$;

-- Whether a job that is to be run alone would find room under its limits.
CREATE OR REPLACE FUNCTION room_alone(p_now bigint, p_queue text, p_kind text, p_key text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM limits l
        LEFT JOIN slots s ON s.name = l.name
        LEFT JOIN key_states k ON k.name = l.name AND k.key = p_key
        WHERE NOT l.deleted AND (l.queue IS NULL OR l.queue = p_queue)
          AND (l.kind IS NULL OR l.kind = p_kind) AND (NOT l.per_key OR p_key IS NOT NULL)
          AND CASE
            WHEN NOT l.per_key AND l.gap IS NULL THEN s.used >= l.concurrency + (
                SELECT coalesce(sum(d.freed), 0) FROM slot_deltas d WHERE d.name = l.name)
            WHEN NOT l.per_key THEN tokens(p_now, s.full_at, l.gap, l.depth) = 0
            WHEN l.gap IS NOT NULL THEN tokens(p_now, coalesce(k.full_at, 0), l.gap, l.depth) = 0
            WHEN l.concurrency IS NULL AND k.circuit = 1 AND k.opens_at > p_now THEN true
            WHEN l.concurrency IS NULL AND k.circuit IS DISTINCT FROM 1 THEN false
            ELSE coalesce(l.concurrency, l.probes) <= (
                SELECT coalesce(sum(n.running - (SELECT coalesce(sum(m.ended), 0) FROM lane_news m
                                                 WHERE m.lane = n.id)), 0)
                FROM lanes n WHERE n.key = p_key
                 AND (l.queue IS NULL OR l.queue = n.queue) AND (l.kind IS NULL OR l.kind = n.kind))
            END);
END $$;

-- When time alone may make room in these lines.
CREATE OR REPLACE FUNCTION next_room(p_now bigint, p_lines demand[]) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN least(
        (SELECT min(wake_at) FROM lanes WHERE wake_at IS NOT NULL),
        (SELECT min(s.full_at - (l.depth - 1) * l.gap)
         FROM limits l JOIN slots s ON s.name = l.name
         WHERE NOT l.deleted AND l.gap IS NOT NULL AND NOT l.per_key
           AND s.full_at - (l.depth - 1) * l.gap > p_now
           AND EXISTS (SELECT FROM unnest(p_lines) d
                       WHERE (l.queue IS NULL OR l.queue = d.queue)
                         AND (l.kind IS NULL OR l.kind = d.kind)
                         AND EXISTS (SELECT FROM lanes n WHERE n.queue = d.queue AND n.kind = d.kind
                                     AND n.place IS NOT NULL))));
END $$;
