-- Claiming, and the exchange, which is the hot path: finished transitions in, newly claimed jobs out,
-- one round trip, one transaction.

-- Scheduled jobs that are due, locked; each with its batch.
CREATE OR REPLACE FUNCTION lock_due(p_now bigint, OUT seqs bigint[], OUT batches uuid[]) LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(d.seq), array_agg(DISTINCT d.batch) FILTER (WHERE d.batch IS NOT NULL)
    INTO seqs, batches
    FROM (SELECT j.seq, j.batch FROM jobs_live j
          WHERE j.state = 0 AND j.rank IS NULL AND j.gate IS NULL AND j.run_at <= p_now
          ORDER BY j.run_at LIMIT 1000 FOR UPDATE SKIP LOCKED) d;
END $$;

-- Put due jobs into the line, or in front of their batch's gate. They are locked, and so are their
-- batches: a pause or resume that is under way cannot pass them by.
CREATE OR REPLACE FUNCTION promote(p_now bigint, p_seqs bigint[], p_batches uuid[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    gates uuid[];
    b uuid;
BEGIN
    SELECT coalesce(array_agg(id), '{}') INTO gates FROM batches
    WHERE id = ANY (p_batches) AND gated;
    IF EXISTS (SELECT FROM limits) THEN
        UPDATE jobs_live SET gate = 4
        WHERE seq = ANY (p_seqs) AND state = 0 AND rank IS NULL AND gate IS NULL
          AND lane IS NOT NULL;
        PERFORM tell_lanes(p_now, p_seqs);
    END IF;
    UPDATE jobs_live SET rank = rank_of(run_at, priority)
    WHERE seq = ANY (p_seqs) AND state = 0 AND rank IS NULL AND gate IS NULL
      AND (batch IS NULL OR batch <> ALL (gates));
    IF gates <> '{}' THEN
        UPDATE jobs_live SET gate = 1
        WHERE seq = ANY (p_seqs) AND state = 0 AND rank IS NULL AND gate IS NULL
          AND batch = ANY (gates);
        FOREACH b IN ARRAY gates LOOP
            PERFORM let_in(p_now, b);
        END LOOP;
    END IF;
END $$;

-- When the next job becomes due that is not in the line yet.
CREATE OR REPLACE FUNCTION next_due(p_now bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT least(
        (SELECT min(run_at) FROM jobs_live WHERE state = 0 AND rank IS NULL AND gate IS NULL),
        (SELECT min(run_at) FROM jobs_live WHERE gate = 3 AND state = 0 AND run_at > p_now)));
END $$;

-- ── In the line ──────────────────────────────────────────────────────────────────────────────

-- Lock the first so many jobs of a line, from a rank on, that nobody else is just taking.
CREATE OR REPLACE FUNCTION pick(p_queue text, p_kind text, p_floor bigint, p_slots integer, p_pausing uuid[],
    p_parking uuid[])
RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
    IF p_pausing IS NULL THEN
        RETURN (SELECT array_agg(seq) FROM (
            SELECT seq FROM jobs_live
            WHERE queue = p_queue AND kind = p_kind AND state = 0 AND rank >= p_floor
            ORDER BY rank, seq LIMIT p_slots FOR UPDATE SKIP LOCKED) j);
    END IF;
    -- A batch that is just being paused still has items in the line. A claim takes those away that
    -- it meets: passing over them would cost every claim the same way again.
    UPDATE jobs_live SET rank = NULL, gate = 1
    WHERE seq = ANY (ARRAY(SELECT seq FROM (
        SELECT seq, batch, gate FROM jobs_live
        WHERE queue = p_queue AND kind = p_kind AND state = 0 AND rank >= p_floor
        ORDER BY rank, seq LIMIT 500 FOR UPDATE SKIP LOCKED) j
        WHERE batch = ANY (p_parking) AND NOT is_let_in(batch, gate)));
    RETURN (SELECT array_agg(seq) FROM (
        SELECT seq FROM jobs_live
        WHERE queue = p_queue AND kind = p_kind AND state = 0 AND rank >= p_floor
          AND (batch IS NULL OR batch <> ALL (p_pausing) OR is_let_in(batch, gate))
        ORDER BY rank, seq LIMIT p_slots FOR UPDATE SKIP LOCKED) j);
END $$;

-- Of a batch that gets limits just now, those that are let in may be claimed.
CREATE OR REPLACE FUNCTION is_let_in(p_batch uuid, p_gate smallint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN p_gate IS NOT DISTINCT FROM 2 AND EXISTS (SELECT FROM batches WHERE id = p_batch AND draining = 8);
END $$;

-- Lock what one demand asks for; `more`: others took some of it just now.
CREATE OR REPLACE FUNCTION pick_lines(p_lines demand[], p_pausing uuid[], p_parking uuid[],
    OUT seqs bigint[], OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    lines demand[];
    ceilings bigint[];
    place integer;
    planned integer;
    picked bigint[];
BEGIN
    IF p_lines[1].step IS NOT NULL THEN
        SELECT t.seqs, t.more INTO seqs, more FROM pick_in_turn(p_lines, p_pausing, p_parking) t;
        RETURN;
    END IF;
    more := false;
    seqs := '{}';
    -- Of the first so many jobs of a portion, none stands in a line that begins after so many others,
    -- and none after the last of these beginnings.
    SELECT array_agg(f.line),
           array_agg(CASE WHEN f.lines >= f.most THEN f.last ELSE 9223372036854775807 END)
    INTO lines, ceilings
    FROM (
        SELECT n.line, n.most, count(*) OVER w AS lines, max(n.rank) OVER w AS last
        FROM (
            SELECT l AS line, l.portion, least(l.slots, l.portion_slots) AS most, j.rank,
                   row_number() OVER (PARTITION BY l.portion ORDER BY j.rank, j.seq) AS nth
            FROM unnest(p_lines) l, LATERAL (
                SELECT rank, seq FROM jobs_live
                WHERE queue = l.queue AND kind = l.kind AND state = 0 AND rank >= l.floor
                ORDER BY rank, seq LIMIT 1) j) n
        WHERE n.nth <= n.most WINDOW w AS (PARTITION BY n.portion)) f;
    IF cardinality(lines) = 1 THEN
        picked := pick(lines[1].queue, lines[1].kind, lines[1].floor,
                       least(lines[1].slots, lines[1].portion_slots), p_pausing, p_parking);
        seqs := coalesce(picked, '{}');
        RETURN;
    END IF;
    -- Merged into one line by rank, so that none of them starves another: how many of each.
    FOR place, planned IN
        SELECT c.place, count(*) FROM (
            SELECT m.place, m.slots, row_number() OVER (ORDER BY m.rank, m.seq) AS nth
            FROM (
                SELECT l.place, l.slots, l.portion_slots, j.rank, j.seq,
                       row_number() OVER (PARTITION BY l.portion ORDER BY j.rank, j.seq) AS nth
                FROM unnest(lines, ceilings) WITH ORDINALITY l (demand, portion, queue, kind,
                         floor, portion_slots, slots, step, ahead, ceiling, place), LATERAL (
                    SELECT rank, seq FROM jobs_live j
                    WHERE j.queue = l.queue AND j.kind = l.kind AND j.state = 0
                      AND j.rank BETWEEN l.floor AND l.ceiling
                    ORDER BY rank, seq LIMIT least(l.slots, l.portion_slots)) j) m
            WHERE m.nth <= m.portion_slots) c
        WHERE c.nth <= c.slots GROUP BY c.place
    LOOP
        picked := pick(lines[place].queue, lines[place].kind, lines[place].floor, planned,
                       p_pausing, p_parking);
        seqs := seqs || picked;
        more := more OR coalesce(cardinality(picked), 0) < planned;
    END LOOP;
END $$;

-- ── Alone ────────────────────────────────────────────────────────────────────────────────────

-- Whether an item of a batch may be run alone now. Those in the line count as if they ran already:
-- nobody counts again when they are claimed.
CREATE OR REPLACE FUNCTION has_room(p_batch uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM batches b WHERE b.id = p_batch AND (b.paused OR b.concurrency <=
            b.running + (SELECT coalesce(sum(running), 0) FROM batch_deltas d
                         WHERE d.batch = b.id)
            + (SELECT count(*) FROM jobs_live j
               WHERE j.batch = b.id AND j.state = 0 AND j.gate = 2)));
END $$;

-- The first job to be run alone that this worker could take, or is to run dry for. `mine`: it does
-- so already, or is idle.
CREATE OR REPLACE FUNCTION suitable_loner(p_now bigint, p_worker uuid, p_lines demand[],
    OUT seq bigint, OUT idle boolean, OUT reserved boolean) LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM jobs_live WHERE gate = 3 AND state = 0) THEN
        RETURN;
    END IF;
    idle := NOT EXISTS (SELECT FROM jobs_live WHERE worker = p_worker AND state = 1);
    SELECT l.seq, l.waiter IS NOT DISTINCT FROM p_worker INTO seq, reserved
    FROM (
        SELECT j.seq, j.run_at, j.queue, j.kind, j.waiter,
               EXISTS (SELECT FROM workers w WHERE w.id = j.waiter AND w.ended_at IS NULL
                       AND w.expires > p_now) AS waits
        FROM jobs_live j
        WHERE j.gate = 3 AND j.state = 0 AND j.run_at <= p_now
          AND EXISTS (SELECT FROM unnest(p_lines) d WHERE d.queue = j.queue AND d.kind = j.kind)
          AND (j.batch IS NULL OR has_room(j.batch))
          AND (j.role IN (1, 3) OR room_alone(p_now, j.queue, j.kind, j.key))
        ORDER BY j.run_at LIMIT 100) l
    WHERE idle OR l.waiter = p_worker OR NOT l.waits
    ORDER BY l.run_at LIMIT 1;
END $$;

-- Lock a job that runs alone, for a worker without any other; no `seqs`: claim as usual. `more`: it
-- or its batch is in other hands just now.
--
-- A worker that is busy gets nothing more until it has run dry, so that one that never would be
-- idle takes it too. An idle one comes first.
CREATE OR REPLACE FUNCTION pick_loner(p_now bigint, p_worker uuid, p_lines demand[],
    OUT seqs bigint[], OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    loner record;
    held record;
BEGIN
    more := false;
    IF EXISTS (SELECT FROM jobs_live WHERE gate = 3 AND state = 1 AND worker = p_worker) THEN
        seqs := '{}';
        RETURN;
    END IF;
    loner := suitable_loner(p_now, p_worker, p_lines);
    IF loner.seq IS NULL THEN
        RETURN;
    END IF;
    SELECT j.seq, j.batch INTO held FROM jobs_live j
    WHERE j.seq = loner.seq AND j.gate = 3 AND j.state = 0 FOR UPDATE SKIP LOCKED;
    IF held.seq IS NULL THEN
        more := true;
        RETURN;
    END IF;
    IF NOT loner.idle THEN
        seqs := '{}';
        IF NOT loner.reserved THEN
            UPDATE jobs_live SET waiter = p_worker WHERE seq = held.seq;
        END IF;
        RETURN;
    END IF;
    -- With its batch, or two that are claimed at the same time could be more than it may run.
    IF held.batch IS NOT NULL THEN
        PERFORM 1 FROM batches WHERE id = held.batch FOR UPDATE SKIP LOCKED;
        more := NOT FOUND;
        IF more OR NOT has_room(held.batch) THEN
            RETURN;
        END IF;
    END IF;
    IF EXISTS (SELECT FROM limits) AND NOT take_alone(p_now, held.seq) THEN
        more := true;
        RETURN;
    END IF;
    seqs := ARRAY[held.seq];
END $$;

-- ── The exchange ─────────────────────────────────────────────────────────────────────────────
CREATE OR REPLACE FUNCTION answer(p_told json) RETURNS claimed LANGUAGE plpgsql AS $$
DECLARE
    last claimed;
BEGIN
    last.message := p_told::text;
    RETURN last;
END $$;

-- Whether a claim would find something, asked without a lock.
CREATE OR REPLACE FUNCTION anything_to_claim(p_now bigint, p_worker uuid, p_lines demand[])
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    loner record;
BEGIN
    IF EXISTS (SELECT FROM jobs_live WHERE gate = 3 AND state = 1 AND worker = p_worker) THEN
        RETURN false;
    END IF;
    loner := suitable_loner(p_now, p_worker, p_lines);
    IF loner.seq IS NOT NULL THEN
        RETURN NOT loner.reserved OR loner.idle;
    END IF;
    IF EXISTS (SELECT FROM limits) AND anything_in_lanes(p_now, p_lines) THEN
        RETURN true;
    END IF;
    RETURN EXISTS (
        SELECT FROM unnest(p_lines) l WHERE (
            SELECT j.seq FROM jobs_live j
            WHERE j.queue = l.queue AND j.kind = l.kind AND j.state = 0 AND j.rank >= l.floor
            ORDER BY j.rank, j.seq LIMIT 1) IS NOT NULL);
END $$;

CREATE OR REPLACE FUNCTION cancels_of(p_worker uuid) RETURNS uuid[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT coalesce(array_agg(id), '{}') FROM jobs_live
            WHERE worker = p_worker AND state = 1 AND cancel > 0);
END $$;

-- Lock a worker's row against its end, and take its turn; `late` if a later exchange was served.
--
-- `p_doubt`: exchanges up to this turn got no answer. Their last one may still be under way, so
-- this waits for it, and none that comes later does anything.
CREATE OR REPLACE FUNCTION take_turn(p_now bigint, p_worker uuid, p_turn bigint, p_doubt bigint,
    OUT late boolean, OUT alive boolean, OUT version bigint, OUT paused text[]) LANGUAGE plpgsql AS $$
BEGIN
    IF p_doubt IS NOT NULL THEN
        PERFORM 1 FROM workers WHERE id = p_worker FOR UPDATE;
        UPDATE workers SET turn = p_doubt WHERE id = p_worker AND turn < p_doubt;
    END IF;
    -- This lock lets heartbeats pass.
    SELECT p_turn <= w.turn, w.ended_at IS NULL AND w.expires > p_now,
           (SELECT c.version FROM configuration c), (SELECT c.paused FROM configuration c)
    INTO late, alive, version, paused
    FROM workers w WHERE w.id = p_worker FOR KEY SHARE;
    late := coalesce(late, false);
    alive := coalesce(alive, false);
    version := coalesce(version, 0);
END $$;

CREATE OR REPLACE FUNCTION exchange(p_now bigint, p_worker uuid, p_turn bigint, p_doubt bigint,
    p_seqs bigint[], p_leases integer[], p_results bytea[], p_moves jsonb,
    p_demands integer[], p_portions integer[], p_queues text[], p_kinds text[], p_floors bigint[],
    p_portion_slots integer[], p_slots integer[], p_wanted integer,
    p_steps bigint[] DEFAULT NULL, p_aheads bigint[] DEFAULT NULL)
RETURNS SETOF claimed LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    nothing boolean := cardinality(p_seqs) = 0 AND p_moves IS NULL;
    lines demand[];
    me record;
    applied record;
    picked record;
    due_at bigint;
    followed integer := 0;
    began timestamptz := clock_timestamp();
    slow integer;
    limited boolean;
BEGIN
    IF NOT gives_jobs() THEN
        p_wanted := 0;
    END IF;
    IF p_wanted > 0 THEN
        SELECT array_agg(u::demand) INTO lines
        FROM unnest(p_demands, p_portions, p_queues, p_kinds, p_floors, p_portion_slots,
                    p_slots, p_steps, p_aheads) u;
    END IF;
    IF nothing AND p_doubt IS NULL THEN
        me := look(v_now, p_worker, lines);
        IF NOT me.worth THEN
            RETURN NEXT answer(json_build_object('alive', me.alive, 'due_in', me.due_at - v_now,
                'cancels', cancels_of(p_worker), 'slow', slow_since(began),
                'version', me.version));
            RETURN;
        END IF;
    END IF;
    me := take_turn(v_now, p_worker, p_turn, p_doubt);
    IF me.late THEN
        RETURN NEXT answer('{"alive": true, "late": true}');
        RETURN;
    END IF;
    IF me.paused IS NOT NULL AND p_wanted > 0 THEN
        lines := open_lines(lines, me.paused);
        IF lines IS NULL THEN
            p_wanted := 0;
        END IF;
    END IF;
    limited := heed_limits();
    -- Applied before the claim, so that a finish callback is among what it finds.
    applied := apply_moves(v_now, p_seqs, p_leases, p_results, p_moves,
                           me.alive AND p_wanted > 0);
    IF NOT nothing THEN
        followed := follow_flows(v_now);
    END IF;
    IF me.alive AND p_wanted > 0 THEN
        IF followed & 1 = 1 THEN
            PERFORM promote_released(v_now);
        END IF;
        IF applied.due_seqs IS NOT NULL THEN
            PERFORM promote(v_now, applied.due_seqs, applied.due_batches);
        END IF;
        began := clock_timestamp();
        picked := pick_jobs(v_now, p_worker, lines, limited, applied.shut);
        slow := slow_since(began);
        IF cardinality(picked.seqs) > 0 THEN
            -- Counters of batches are appended, so that a claim waits for no batch.
            RETURN QUERY WITH c AS (
                UPDATE jobs_live SET state = 1, attempt = attempt + 1, lease = lease + 1,
                    worker = p_worker, started_at = v_now, finished_at = NULL, progress = NULL,
                    message = NULL, waiter = NULL
                WHERE seq = ANY (picked.seqs) AND state = 0
                RETURNING *),
            said AS (
                INSERT INTO journal
                    (n, at, type, kind, queue, role, batch, source, target, worker, body)
                SELECT count(*), v_now, 'claim', kind, queue, role, batch, 0, 1, p_worker,
                       string_agg(entry(id, attempt, lease), ''::bytea
                                  ORDER BY run_at - priority * 360000000::bigint, seq)
                FROM c GROUP BY kind, queue, role, batch),
            counted AS (
                INSERT INTO batch_deltas
                SELECT batch, 0, -count(*), count(*), 0, 0, 0, v_now
                FROM c WHERE role >= 2 AND batch IS NOT NULL GROUP BY batch),
            freed AS (
                DELETE FROM uniques u USING c
                WHERE c.uniq IS NOT NULL AND u.job = c.id AND u.scope = 0)
            SELECT id::text, seq, kind, queue, payload, state, version, role, priority, run_at,
                attempt, lease, lost, key, batch::text, position, retry, worker::text, cancel,
                gate, uniq IS NOT NULL, on_lost, created_at, started_at, finished_at, progress,
                message, result, error, error_at, baggage
            FROM c ORDER BY run_at - priority * 360000000::bigint, seq;
            IF picked.sized THEN
                picked.more := let_in_after(v_now, picked.seqs) OR picked.more;
            END IF;
        END IF;
        IF coalesce(cardinality(picked.seqs), 0) < p_wanted THEN
            due_at := CASE WHEN picked.more THEN v_now ELSE next_due(v_now) END;
            IF limited AND due_at IS DISTINCT FROM v_now THEN
                due_at := least(due_at, next_room(v_now, lines));
            END IF;
        END IF;
    END IF;
    IF applied.freed AND NOT applied.ready THEN
        applied.ready := left_open(v_now);
    END IF;
    RETURN NEXT answer(json_build_object(
        'alive', me.alive,
        'due_in', CASE WHEN due_at IS NOT NULL THEN greatest(due_at - v_now, 0) END,
        'cancels', cancels_of(p_worker),
        'lost_done', applied.lost_done, 'lost_moves', applied.lost_moves,
        'settled', applied.settled, 'ready', applied.ready OR followed & 1 = 1,
        'follow', followed > 1, 'drain', applied.drain,
        'slow', slow, 'version', me.version));
END $$;

-- Microseconds that the search took, if it was slow because of what was claimed before: the entries
-- of these stay in the index until a vacuum, which an old snapshot keeps from removing them.
CREATE OR REPLACE FUNCTION slow_since(p_began timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF clock_timestamp() - p_began < interval '1 ms'
        OR pg_stat_get_dead_tuples('jobs_live'::regclass) < 10000
    THEN
        RETURN NULL;
    END IF;
    RETURN extract(epoch FROM clock_timestamp() - p_began) * 1000000;
END $$;

-- Whether an exchange that hands in nothing is worth its locks.
CREATE OR REPLACE FUNCTION look(p_now bigint, p_worker uuid, p_lines demand[],
    OUT alive boolean, OUT due_at bigint, OUT worth boolean, OUT version bigint) LANGUAGE plpgsql AS $$
DECLARE
    held text[];
BEGIN
    SELECT (SELECT c.version FROM configuration c), (SELECT c.paused FROM configuration c)
    INTO version, held FROM workers w
    WHERE w.id = p_worker AND w.ended_at IS NULL AND w.expires > p_now;
    alive := FOUND;
    version := coalesce(version, 0);
    worth := false;
    IF held IS NOT NULL AND p_lines IS NOT NULL THEN
        p_lines := open_lines(p_lines, held);
    END IF;
    IF alive AND p_lines IS NOT NULL THEN
        due_at := next_due(p_now);
        IF EXISTS (SELECT FROM limits) THEN
            due_at := least(due_at, next_room(p_now, p_lines));
        END IF;
        worth := coalesce(due_at <= p_now, false) OR anything_to_claim(p_now, p_worker, p_lines)
            OR EXISTS (SELECT FROM batches WHERE gated AND NOT paused AND batch_size IS NOT NULL);
    END IF;
END $$;

-- Lock the jobs that a worker is to get. `sized`: there are batches of which one claim takes only
-- so many. `p_shut`: keys with closed lanes that have room since a moment ago.
CREATE OR REPLACE FUNCTION pick_jobs(p_now bigint, p_worker uuid, p_lines demand[], p_limited boolean,
    p_shut text[], OUT seqs bigint[], OUT more boolean, OUT sized boolean) LANGUAGE plpgsql AS $$
DECLARE
    b uuid;
    alone boolean;
    pausing uuid[];
    parking uuid[];
    number integer;
    mine demand[];
    one record;
    single boolean := p_lines[1].demand = p_lines[cardinality(p_lines)].demand;
BEGIN
    SELECT EXISTS (SELECT FROM jobs_live WHERE gate = 3),
           EXISTS (SELECT FROM batches WHERE gated AND NOT paused AND batch_size IS NOT NULL),
           (SELECT array_agg(id) FROM batches WHERE draining > 0 AND draining IN (4, 8))
    INTO alone, sized, pausing;
    more := false;
    IF sized THEN
        -- What a claim could not let in because another one held the batch.
        FOR b IN SELECT id FROM batches WHERE gated AND NOT paused AND batch_size IS NOT NULL
                 FOR UPDATE SKIP LOCKED
        LOOP
            PERFORM let_in(p_now, b);
        END LOOP;
    END IF;
    IF p_shut IS NOT NULL AND (alone OR NOT single OR p_lines[1].step IS NOT NULL) THEN
        PERFORM open_keys(p_now, p_shut);
        p_shut := NULL;
    END IF;
    IF p_limited THEN
        more := prepare_lanes(p_now, p_lines);
    END IF;
    IF alone THEN
        one := pick_loner(p_now, p_worker, p_lines);
        seqs := one.seqs;
        more := more OR one.more;
        IF seqs IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    IF pausing IS NOT NULL THEN
        -- Held until this is committed, or a resume could miss what the claim takes out of the line.
        SELECT array_agg(h.id) INTO parking FROM (
            SELECT id FROM batches WHERE draining > 0 AND draining IN (4, 8) FOR SHARE SKIP LOCKED) h;
    END IF;
    IF NOT p_limited AND single THEN
        one := pick_lines(p_lines, pausing, parking);
        seqs := one.seqs;
        more := more OR one.more;
        RETURN;
    END IF;
    seqs := '{}';
    FOR number IN SELECT DISTINCT l.demand FROM unnest(p_lines) l ORDER BY 1 LOOP
        mine := (SELECT array_agg(l) FROM unnest(p_lines) l WHERE l.demand = number);
        IF p_limited THEN
            one := pick_lanes(p_now, mine, pausing, parking, seqs, p_shut);
        ELSE
            one := pick_lines(mine, pausing, parking);
        END IF;
        seqs := seqs || one.seqs;
        more := more OR one.more;
    END LOOP;
END $$;

-- After a claim there is room again in batches of which one claim takes only so many. Whose batch
-- another one holds is let in by the next claim; true if there was room, or may be.
CREATE OR REPLACE FUNCTION let_in_after(p_now bigint, p_seqs bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    sized uuid[];
    batch uuid;
    count integer := 0;
BEGIN
    SELECT coalesce(array_agg(DISTINCT j.batch), '{}') INTO sized
    FROM jobs_live j JOIN batches b ON b.id = j.batch
    WHERE j.seq = ANY (p_seqs) AND b.gated AND NOT b.paused AND b.batch_size IS NOT NULL;
    FOR batch IN SELECT id FROM batches WHERE id = ANY (sized) FOR UPDATE SKIP LOCKED LOOP
        count := count + let_in(p_now, batch);
        sized := array_remove(sized, batch);
    END LOOP;
    RETURN count > 0 OR sized <> '{}';
END $$;
