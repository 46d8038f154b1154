-- Finished transitions are applied, each to the job that still holds its lease, with all it brings
-- along.

-- Completions are nine of ten moves, so they have a statement of their own.
CREATE OR REPLACE FUNCTION complete_jobs(p_now bigint, p_seqs bigint[], p_leases integer[],
    p_results bytea[], OUT done bigint[], OUT touched uuid[], OUT freed freed[])
LANGUAGE plpgsql AS $$
DECLARE
    named uuid[];
BEGIN
    WITH given AS (
        SELECT DISTINCT ON (g.seq, g.lease) g.seq, g.lease, g.result
        FROM unnest(p_seqs, p_leases, p_results) g (seq, lease, result) ORDER BY g.seq, g.lease),
    gone AS (
        DELETE FROM jobs_live j USING given g
        WHERE j.seq = g.seq AND j.lease = g.lease AND j.state = 1
        RETURNING j.*, g.result AS outcome),
    kept AS (
        INSERT INTO jobs_done (seq, id, kind, queue, role, version, payload, state, priority,
            run_at, attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at,
            started_at, finished_at, progress, message, result, baggage, children)
        SELECT seq, id, kind, queue, role, version, payload, 2, priority,
            run_at, attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at,
            started_at, p_now, progress, message, outcome, baggage, children
        FROM gone),
    said AS (
        INSERT INTO journal (n, at, type, kind, queue, role, batch, source, target, worker, body)
        SELECT count(*), p_now, 'complete', kind, queue, role, batch, 1, 2, worker,
               string_agg(entry(id, attempt, lease), ''::bytea ORDER BY seq)
        FROM gone GROUP BY kind, queue, role, batch, worker),
    counted AS (
        INSERT INTO batch_deltas
        SELECT batch, 0, 0, -count(*), count(*), 0, 0, NULL
        FROM gone WHERE role = 2 AND batch IS NOT NULL GROUP BY batch)
    SELECT array_agg(seq), array_agg(DISTINCT batch) FILTER (WHERE role = 2 AND batch IS NOT NULL),
           array_agg(id) FILTER (WHERE uniq IS NOT NULL),
           array_agg((lane, 1, 0)::freed) FILTER (WHERE lane IS NOT NULL)
    INTO done, touched, named, freed FROM gone;
    IF named IS NOT NULL THEN
        PERFORM release_ended(named);
    END IF;
END $$;

-- Apply one transition to a locked job whose batch is locked too; NULL if its lease is lost.
CREATE OR REPLACE FUNCTION move_job(p_now bigint, t transition) RETURNS applied LANGUAGE plpgsql AS $$
DECLARE
    j jobs;
    doomed boolean := false;
    gated boolean := false;
    yielded boolean;
    target smallint := t.target;
    due bigint;
    new_gate smallint;
    new_rank bigint;
BEGIN
    SELECT * INTO j FROM jobs_live
    WHERE seq = t.seq AND lease = t.lease AND state = 1 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- Doomed: claimed while the cancel of its batch went through slice by slice, and passed by.
    SELECT b.cancel > 0, b.gated INTO doomed, gated FROM batches b WHERE b.id = j.batch;
    yielded := t.yields AND (j.cancel > 0 OR coalesce(doomed, false));
    due := coalesce(p_now + t.delay, j.run_at);
    IF yielded THEN
        target := 4;
    ELSIF target = 0 THEN
        IF t.alone THEN
            new_gate := 3;
        ELSIF j.lane IS NOT NULL THEN
            new_gate := CASE WHEN coalesce(t.delay, 0) = 0 THEN 4 END;
        ELSIF coalesce(t.delay, 0) = 0 AND coalesce(gated, false) THEN
            new_gate := 1;
        ELSIF coalesce(t.delay, 0) = 0 THEN
            new_rank := rank_of(due, j.priority);
        END IF;
    END IF;
    UPDATE jobs_live SET state = CASE WHEN target < 2 THEN target ELSE 1 END,
        attempt = j.attempt + CASE WHEN yielded THEN 0 ELSE t.attempt END,
        lost = j.lost + CASE WHEN yielded THEN 0 ELSE t.lost END,
        lease = j.lease + t.rise, rank = new_rank, gate = new_gate, run_at = due,
        cancel = CASE WHEN target = 1 THEN j.cancel ELSE 0 END, worker = NULL,
        error = coalesce(t.error, j.error), error_type = coalesce(t.error_type, j.error_type),
        error_at = CASE WHEN t.error IS NULL THEN j.error_at ELSE p_now END,
        finished_at = NULL
    WHERE seq = j.seq RETURNING jobs_live.attempt, jobs_live.lease INTO j.attempt, j.lease;
    IF target > 1 THEN
        PERFORM bury(p_now, ARRAY[j.seq], target);
        IF j.uniq IS NOT NULL THEN
            PERFORM release_ended(ARRAY[j.id]);
        END IF;
    END IF;
    IF t.records AND t.error IS NOT NULL THEN
        PERFORM record_error(p_now, t);
    END IF;
    RETURN (0, target = 3, j.role IN (1, 3) AND target > 1,
            j.role IN (1, 3) AND t.move = 'hand_over',
            (CASE WHEN yielded THEN 'cancel' ELSE t.move END, j.id, j.attempt, j.lease, j.queue,
             j.kind, j.role, j.batch, 1, target, j.worker, t.error_type)::moved,
            CASE WHEN j.lane IS NOT NULL
                 THEN (j.lane, 0, CASE WHEN NOT yielded AND t.move IN ('fail', 'retry') THEN 1
                                       ELSE 0 END)::freed END)::applied;
END $$;

CREATE OR REPLACE FUNCTION record_error(p_now bigint, t transition) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO errors (job, lease, at, error) VALUES (t.seq, t.lease, p_now, t.error)
    ON CONFLICT (job, lease) DO UPDATE SET at = excluded.at, error = excluded.error;
    -- Of a job that is tried for ever, the errors of its last claims are kept.
    IF t.lease > 100 THEN
        DELETE FROM errors WHERE job = t.seq AND lease <= t.lease - 100;
    END IF;
END $$;

-- Apply all that one worker hands in, then do what follows for the batches. Places count from 1.
-- `drain` names batches that are to be gone on with. With `p_due` also lock jobs that are due, and
-- their batches: after the jobs that are waited for and before all batches, as the one order says.
-- `freed`: what ended may have made room under limits for others; `shut`: keys whose closed lanes the
-- claim that `p_due` stands for has to look at.
CREATE OR REPLACE FUNCTION apply_moves(p_now bigint, p_seqs bigint[], p_leases integer[], p_results bytea[],
    p_moves jsonb, p_due boolean, OUT lost_done integer[], OUT lost_moves integer[],
    OUT settled boolean, OUT ready boolean, OUT drain uuid[], OUT due_seqs bigint[],
    OUT due_batches uuid[], OUT freed boolean, OUT shut text[]) LANGUAGE plpgsql AS $$
DECLARE
    given transition[];
    done bigint[];
    touched uuid[];
    ended uuid[] := '{}';
    failures jsonb := '{}';
    events moved[] := '{}';
    lanes_freed freed[];
    one applied;
    batch uuid;
    what integer;
BEGIN
    lost_done := '{}'; lost_moves := '{}'; settled := false; ready := false; drain := '{}';
    IF p_moves IS NOT NULL THEN
        SELECT array_agg(m::transition ORDER BY n.ordinality) INTO given
        FROM jsonb_array_elements(p_moves) WITH ORDINALITY n (value, ordinality),
             jsonb_populate_record(NULL::transition, n.value) m;
        -- All of them at once, in the one order.
        PERFORM 1 FROM jobs_live j WHERE j.role NOT IN (1, 3)
            AND j.seq = ANY (p_seqs || ARRAY(SELECT t.seq FROM unnest(given) t))
            ORDER BY j.seq FOR UPDATE;
    END IF;
    IF cardinality(p_seqs) > 0 THEN
        SELECT * INTO done, touched, lanes_freed FROM complete_jobs(p_now, p_seqs, p_leases, p_results);
        lost_done := places_lost(p_seqs, p_leases, done);
    END IF;
    IF given IS NOT NULL THEN
        SELECT array_agg(DISTINCT u) || touched INTO touched
        FROM jobs_live j, unnest(given) t,
             LATERAL unnest(ARRAY[j.batch, CASE WHEN j.role IN (1, 3) THEN j.id END]) u
        WHERE j.seq = t.seq AND u IS NOT NULL;
    END IF;
    IF p_due THEN
        SELECT d.seqs, d.batches INTO due_seqs, due_batches FROM lock_due(p_now) d;
    END IF;
    IF touched || due_batches <> '{}' THEN
        PERFORM lock_batches(touched || due_batches);
    END IF;
    IF given IS NOT NULL THEN
        -- Heads last.
        FOR what IN SELECT t.ordinality FROM unnest(given) WITH ORDINALITY t
                    LEFT JOIN jobs_live j ON j.seq = t.seq ORDER BY j.role IS NOT NULL AND j.role IN (1, 3), 1
        LOOP
            one := move_job(p_now, given[what]);
            IF one.place IS NULL THEN
                lost_moves := lost_moves || what;
                CONTINUE;
            END IF;
            events := events || one.event;
            IF (one.freed).lane IS NOT NULL THEN
                lanes_freed := lanes_freed || one.freed;
            END IF;
            batch := (one.event).batch;
            IF one.failed AND batch IS NOT NULL THEN
                failures := failures
                    || jsonb_build_object(batch, coalesce((failures ->> batch::text)::int, 0) + 1);
            END IF;
            IF one.handed THEN
                UPDATE batches SET sealed = true WHERE id = (one.event).id;
            ELSIF one.ended THEN
                ended := ended || (one.event).id;
            END IF;
        END LOOP;
        PERFORM write_moves(p_now, events);
    END IF;
    FOREACH batch IN ARRAY ended LOOP
        PERFORM begin_cancel(p_now, batch, 1::smallint);
    END LOOP;
    FOR batch IN SELECT DISTINCT u FROM unnest(touched) u LOOP
        what := follow_up(p_now, batch, coalesce((failures ->> batch::text)::int, 0));
        settled := settled OR what = 1;
        ready := ready OR what = 4;
        IF what = 2 THEN
            ended := ended || batch;
        END IF;
    END LOOP;
    FOREACH batch IN ARRAY ended LOOP
        IF drain_batch(p_now, batch) THEN
            drain := drain || batch;
        END IF;
        settled := true;
    END LOOP;
    IF settled THEN
        -- Those that these lie within go on in transactions of their own.
        drain := drain || ARRAY(SELECT DISTINCT b.within FROM batches b
                                WHERE b.id = ANY (touched) AND b.within IS NOT NULL AND NOT b.owed);
    END IF;
    freed := false;
    IF lanes_freed IS NOT NULL THEN
        SELECT f.opened, f.shut INTO freed, shut FROM free_lanes(p_now, lanes_freed, p_due) f;
        IF given IS NOT NULL THEN
            PERFORM tell_lanes(p_now, ARRAY(SELECT t.seq FROM unnest(given) t));
        END IF;
    END IF;
END $$;

-- The same for jobs whose worker was lost; the batches that are to be gone on with.
CREATE OR REPLACE FUNCTION put_back(p_now bigint, p_moves jsonb) RETURNS uuid[] LANGUAGE plpgsql AS $$
BEGIN
    PERFORM heed_limits();
    RETURN (apply_moves(coalesce(p_now, clock_us()), '{}', '{}', '{}', p_moves, false)).drain;
END $$;

-- The places of completions that were not applied; each job counts once, even when a finish was
-- delivered twice.
CREATE OR REPLACE FUNCTION places_lost(p_seqs bigint[], p_leases integer[], p_done bigint[])
RETURNS integer[] LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(p_seqs) = cardinality(p_done) THEN
        RETURN '{}';
    END IF;
    RETURN coalesce((
        SELECT array_agg(place) FROM (
            SELECT g.ordinality::integer AS place, g.seq,
                   row_number() OVER (PARTITION BY g.seq ORDER BY g.lease DESC, g.ordinality) AS nth
            FROM unnest(p_seqs, p_leases) WITH ORDINALITY g (seq, lease, ordinality)) g
        WHERE nth > 1 OR NOT coalesce(seq = ANY (p_done), false)), '{}');
END $$;
