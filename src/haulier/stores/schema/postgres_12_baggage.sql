-- The PostgreSQL store, step 12: baggage, which jobs carry from their enqueue to their run. Functions
-- that write whole rows are made anew, with one column more; those that got an argument more are
-- dropped first. It has a default, so that producers of an older release can still call them.

ALTER TABLE all_jobs ADD COLUMN baggage text;           -- a JSON object; NULL: none
CREATE OR REPLACE VIEW jobs AS SELECT * FROM all_jobs WHERE state >= 0;
ALTER TYPE claimed ADD ATTRIBUTE baggage text;

-- Lives end here: locked rows leave for the partition of what is done.
CREATE OR REPLACE FUNCTION bury(p_now bigint, p_seqs bigint[], p_state smallint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM jobs_live WHERE seq = ANY (p_seqs) RETURNING *)
    INSERT INTO jobs_done (seq, id, kind, queue, role, version, payload, state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        finished_at, progress, message, result, error, error_at, error_type, baggage)
    SELECT seq, id, kind, queue, role, version, payload, p_state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        p_now, progress, message, result, error, error_at, error_type, baggage
    FROM gone;
END $$;

-- And begin anew: locked rows come back, without an end, as pending or running.
CREATE OR REPLACE FUNCTION revive(p_seqs bigint[], p_state smallint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM jobs_done WHERE seq = ANY (p_seqs) RETURNING *)
    INSERT INTO jobs_live (seq, id, kind, queue, role, version, payload, state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        progress, message, result, error, error_at, error_type, baggage)
    SELECT seq, id, kind, queue, role, version, payload, p_state, priority, run_at,
        attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at, started_at,
        progress, message, result, error, error_at, error_type, baggage
    FROM gone;
END $$;

-- A batch that was reopened and settles again calls back again, with the next of its ids.
CREATE OR REPLACE FUNCTION call_back(p_now bigint, b batches, p_priority integer, p_state smallint,
    p_counts json) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    callback uuid;
BEGIN
    SELECT f.id INTO callback FROM unnest(b.finish_ids) WITH ORDINALITY f (id, place)
    WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = f.id) ORDER BY f.place LIMIT 1;
    callback := coalesce(callback, new_id(p_now));
    INSERT INTO jobs_live (id, kind, queue, role, version, payload, state, rank, priority, run_at,
        created_at, baggage)
    SELECT callback, b.finish_kind, b.finish_queue, 0, 1,
        convert_to(json_build_object('batch_id', b.id, 'state',
            (ARRAY['pending', 'running', 'completed', 'failed', 'cancelled'])[p_state + 1],
            'counts', p_counts)::text, 'UTF8'),
        0, rank_of(p_now, p_priority), p_priority, p_now, p_now,
        (SELECT j.baggage FROM jobs j WHERE j.id = b.id);
    RETURN callback;
END $$;

-- Completions are nine of ten moves, so they have a statement of their own.
CREATE OR REPLACE FUNCTION complete_jobs(p_now bigint, p_seqs bigint[], p_leases integer[],
    p_results bytea[], OUT done bigint[], OUT touched uuid[]) LANGUAGE plpgsql AS $$
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
            started_at, finished_at, progress, message, result, baggage)
        SELECT seq, id, kind, queue, role, version, payload, 2, priority,
            run_at, attempt, lease, lost, on_lost, key, batch, position, retry, uniq, created_at,
            started_at, p_now, progress, message, outcome, baggage
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
           array_agg(id) FILTER (WHERE uniq IS NOT NULL)
    INTO done, touched, named FROM gone;
    IF named IS NOT NULL THEN
        PERFORM release_ended(named);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION exchange(p_now bigint, p_worker uuid, p_turn bigint, p_doubt bigint,
    p_seqs bigint[], p_leases integer[], p_results bytea[], p_moves jsonb,
    p_demands integer[], p_portions integer[], p_queues text[], p_kinds text[], p_floors bigint[],
    p_portion_slots integer[], p_slots integer[], p_wanted integer)
RETURNS SETOF claimed LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    nothing boolean := cardinality(p_seqs) = 0 AND p_moves IS NULL;
    lines demand[];
    me record;
    applied record;
    picked record;
    due_at bigint;
    began timestamptz := clock_timestamp();
    slow integer;
BEGIN
    IF NOT gives_jobs() THEN
        p_wanted := 0;
    END IF;
    IF p_wanted > 0 THEN
        SELECT array_agg(u::demand) INTO lines
        FROM unnest(p_demands, p_portions, p_queues, p_kinds, p_floors, p_portion_slots,
                    p_slots) u;
    END IF;
    IF nothing AND p_doubt IS NULL THEN
        me := look(v_now, p_worker, lines);
        IF NOT me.worth THEN
            RETURN NEXT answer(json_build_object('alive', me.alive, 'due_in', me.due_at - v_now,
                'cancels', cancels_of(p_worker), 'slow', slow_since(began)));
            RETURN;
        END IF;
    END IF;
    me := take_turn(v_now, p_worker, p_turn, p_doubt);
    IF me.late THEN
        RETURN NEXT answer('{"alive": true, "late": true}');
        RETURN;
    END IF;
    -- Applied before the claim, so that a finish callback is among what it finds.
    applied := apply_moves(v_now, p_seqs, p_leases, p_results, p_moves,
                           me.alive AND p_wanted > 0);
    IF me.alive AND p_wanted > 0 THEN
        IF applied.due_seqs IS NOT NULL THEN
            PERFORM promote(v_now, applied.due_seqs, applied.due_batches);
        END IF;
        began := clock_timestamp();
        picked := pick_jobs(v_now, p_worker, lines);
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
                       string_agg(entry(id, attempt, lease), ''::bytea ORDER BY rank, seq)
                FROM c GROUP BY kind, queue, role, batch),
            counted AS (
                INSERT INTO batch_deltas
                SELECT batch, 0, -count(*), count(*), 0, 0, 0, v_now
                FROM c WHERE role = 2 AND batch IS NOT NULL GROUP BY batch),
            freed AS (
                DELETE FROM uniques u USING c
                WHERE c.uniq IS NOT NULL AND u.job = c.id AND u.scope = 0)
            SELECT id::text, seq, kind, queue, payload, state, version, role, priority, run_at,
                attempt, lease, lost, key, batch::text, position, retry, worker::text, cancel,
                gate, uniq IS NOT NULL, on_lost, created_at, started_at, finished_at, progress,
                message, result, error, error_at, baggage
            FROM c ORDER BY rank, seq;
            IF picked.sized THEN
                picked.more := let_in_after(v_now, picked.seqs) OR picked.more;
            END IF;
        END IF;
        IF coalesce(cardinality(picked.seqs), 0) < p_wanted THEN
            due_at := CASE WHEN picked.more THEN v_now ELSE next_due(v_now) END;
        END IF;
    END IF;
    RETURN NEXT answer(json_build_object(
        'alive', me.alive,
        'due_in', CASE WHEN due_at IS NOT NULL THEN greatest(due_at - v_now, 0) END,
        'cancels', cancels_of(p_worker),
        'lost_done', applied.lost_done, 'lost_moves', applied.lost_moves,
        'settled', applied.settled, 'ready', applied.ready, 'drain', applied.drain,
        'slow', slow));
END $$;

-- End an incarnation for good and lock the jobs that it holds, in the columns of a claim. With
-- `p_expired` only if it has expired: it may have been renewed just now.
CREATE OR REPLACE FUNCTION end_worker(p_now bigint, p_worker uuid, p_expired boolean)
RETURNS SETOF claimed LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    PERFORM 1 FROM workers WHERE id = p_worker AND (NOT p_expired OR expires <= v_now) FOR UPDATE;
    IF NOT FOUND AND p_expired THEN
        RETURN;
    END IF;
    UPDATE workers SET ended_at = v_now WHERE id = p_worker AND ended_at IS NULL;
    RETURN QUERY SELECT id::text, seq, kind, queue, payload, state, version, role, priority,
        run_at, attempt, lease, lost, key, batch::text, position, retry, worker::text, cancel,
        gate, uniq IS NOT NULL, on_lost, created_at, started_at, finished_at, progress, message,
        result, error, error_at, baggage
    FROM jobs_live WHERE worker = p_worker AND state = 1;
END $$;

DROP FUNCTION insert_rows;
-- Insert jobs whose names were taken; returns how many were new. What is there already stays as it
-- is. Locks their batches.
CREATE FUNCTION insert_rows(p_now bigint, p_ids uuid[], p_kinds text[], p_queues text[],
    p_roles smallint[], p_versions integer[], p_payloads bytea[], p_priorities integer[],
    p_run_ats bigint[], p_delays bigint[], p_keys text[], p_batches uuid[], p_positions integer[],
    p_retries text[], p_on_losts smallint[],
    p_names text[], p_state smallint, p_policy policy, p_baggages text[])
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parents uuid[];
    heads uuid[];
    fresh_ids uuid[];
    done_ids uuid[];
BEGIN
    SELECT array_agg(DISTINCT b) INTO parents FROM unnest(p_batches) b WHERE b IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM lock_batches(parents);
    END IF;
    WITH fresh AS (
        INSERT INTO jobs_live (id, kind, queue, role, version, payload, state, rank, gate,
            priority, run_at, lease, on_lost, key, batch, position, retry, uniq, created_at,
            baggage)
        SELECT g.id, g.kind, g.queue, g.role, g.version, g.payload, p_state,
            CASE WHEN g.due <= p_now AND NOT coalesce(b.gated, false)
                 THEN rank_of(g.due, g.priority) END,
            CASE WHEN g.due <= p_now AND b.gated THEN 1 END,
            g.priority, g.due, coalesce(b.leases, 0), g.on_lost, g.key, g.batch, g.place,
            g.retry, p_names, p_now, g.baggage
        FROM (
            -- An instant in the past counts as now, or a producer could jump the line by it.
            SELECT *, greatest(coalesce(u.run_at, p_now + u.delay), p_now) AS due
            FROM unnest(p_ids, p_kinds, p_queues, p_roles, p_versions, p_payloads, p_priorities,
                p_run_ats, p_delays, p_keys, p_batches, p_positions, p_retries, p_on_losts,
                p_baggages)
                WITH ORDINALITY u (id, kind, queue, role, version, payload, priority, run_at,
                    delay, key, batch, place, retry, on_lost, baggage, nth)) g
        LEFT JOIN batches b ON b.id = g.batch
        ORDER BY g.nth
        ON CONFLICT (id) DO NOTHING
        RETURNING id)
    SELECT array_agg(id) INTO fresh_ids FROM fresh;
    IF fresh_ids IS NULL THEN
        RETURN 0;
    END IF;
    -- Looked at only now: a row may have moved on to what is done while the insert waited for it.
    SELECT array_agg(d.id) INTO done_ids FROM jobs_done d WHERE d.id = ANY (fresh_ids);
    IF done_ids IS NOT NULL THEN
        DELETE FROM jobs_live WHERE id = ANY (done_ids);
        SELECT coalesce(array_agg(f), '{}') INTO fresh_ids
        FROM unnest(fresh_ids) f WHERE f <> ALL (done_ids);
    END IF;
    WITH given AS (
        -- Usually all of them; else each that is new, once.
        SELECT DISTINCT ON (nth) u.* FROM (
            SELECT u.id, u.kind, u.queue, u.role, u.batch, u.nth FROM
                unnest(p_ids, p_kinds, p_queues, p_roles, p_batches)
                WITH ORDINALITY u (id, kind, queue, role, batch, nth)
            WHERE cardinality(fresh_ids) = cardinality(p_ids)
            UNION ALL
            SELECT u.id, u.kind, u.queue, u.role, u.batch, min(u.nth) FROM
                unnest(p_ids, p_kinds, p_queues, p_roles, p_batches)
                WITH ORDINALITY u (id, kind, queue, role, batch, nth)
            WHERE cardinality(fresh_ids) < cardinality(p_ids) AND u.id = ANY (fresh_ids)
            GROUP BY u.id, u.kind, u.queue, u.role, u.batch) u),
    said AS (
        INSERT INTO journal (n, at, type, kind, queue, role, batch, source, target, body)
        SELECT count(*), p_now, 'insert', g.kind, g.queue, g.role, g.batch, NULL, p_state,
               string_agg(entry(g.id, 0, coalesce(b.leases, 0)), ''::bytea ORDER BY g.nth)
        FROM given g LEFT JOIN batches b ON b.id = g.batch
        GROUP BY g.kind, g.queue, g.role, g.batch ORDER BY min(g.nth)),
    counted AS (
        INSERT INTO batch_deltas
        SELECT batch, count(*), count(*), 0, 0, 0, 0, NULL
        FROM given WHERE role = 2 AND batch IS NOT NULL GROUP BY batch)
    SELECT array_agg(DISTINCT batch) FILTER (WHERE batch IS NOT NULL),
           array_agg(id) FILTER (WHERE role = 1)
    INTO parents, heads FROM given;
    IF heads IS NOT NULL THEN
        PERFORM add_batches(heads, p_policy);
    END IF;
    IF parents IS NOT NULL THEN
        PERFORM check_open(p_now, parents);
    END IF;
    RETURN cardinality(fresh_ids);
END $$;

DROP FUNCTION insert_jobs;
-- Insert jobs in their order, those with unique names one by one, as each has to see the names that
-- those before it took. Names say by its place which job they belong to. `jobs` were not inserted,
-- because there is another one `instead`.
CREATE FUNCTION insert_jobs(p_now bigint, p_ids uuid[], p_kinds text[], p_queues text[],
    p_roles smallint[], p_versions integer[], p_payloads bytea[], p_priorities integer[],
    p_run_ats bigint[], p_delays bigint[], p_keys text[], p_batches uuid[], p_positions integer[],
    p_retries text[], p_on_losts smallint[],
    n_jobs integer[], n_names text[], n_scopes smallint[], n_conflicts smallint[],
    n_periods bigint[], n_digests bytea[], p_state smallint, p_own_expander boolean,
    p_finish_kind text, p_finish_queue text, p_concurrency integer, p_batch_size integer,
    p_max_failures integer, p_finish_of uuid[], p_finish_ids uuid[], p_fence uuid,
    p_fence_lease integer, p_baggages text[] DEFAULT NULL,
    OUT new integer, OUT jobs uuid[], OUT instead uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    rules policy := (p_own_expander, p_finish_kind, p_finish_queue, p_concurrency, p_batch_size,
                     p_max_failures, p_finish_of, p_finish_ids)::policy;
    mine uniqueness[];
    verdict record;
BEGIN
    PERFORM must_be_open();
    new := 0; jobs := '{}'; instead := '{}';
    IF cardinality(n_names) > 0 THEN
        PERFORM lock_names(n_names);
    END IF;
    IF p_fence IS NOT NULL THEN
        PERFORM check_fence(p_fence, p_fence_lease);
    END IF;
    IF cardinality(n_names) = 0 THEN
        new := insert_rows(v_now, p_ids, p_kinds, p_queues, p_roles, p_versions, p_payloads,
            p_priorities, p_run_ats, p_delays, p_keys, p_batches, p_positions, p_retries,
            p_on_losts, NULL, p_state, rules, p_baggages);
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        -- Repeated: who holds the names by now is no longer its affair.
        CONTINUE WHEN EXISTS (SELECT FROM jobs_live j WHERE j.id = p_ids[i])
                   OR EXISTS (SELECT FROM jobs_done j WHERE j.id = p_ids[i]);
        SELECT array_agg(n::uniqueness) INTO mine
        FROM unnest(n_jobs, n_names, n_scopes, n_conflicts, n_periods, n_digests)
             n (job, name, scope, conflict, period, digest) WHERE n.job = i;
        IF mine IS NOT NULL THEN
            LOOP
                verdict := judge(v_now, p_ids[i], mine);
                EXIT WHEN verdict.instead IS NOT NULL
                    OR replace_jobs(v_now, verdict.replaced, p_ids[i]);
            END LOOP;
            IF verdict.instead IS NOT NULL THEN
                jobs := jobs || p_ids[i]; instead := instead || verdict.instead;
                CONTINUE;
            END IF;
            PERFORM take_names(v_now, p_ids[i], mine);
        END IF;
        new := new + insert_rows(v_now, p_ids[i:i], p_kinds[i:i], p_queues[i:i], p_roles[i:i],
            p_versions[i:i], p_payloads[i:i], p_priorities[i:i], p_run_ats[i:i], p_delays[i:i],
            p_keys[i:i], p_batches[i:i], p_positions[i:i], p_retries[i:i], p_on_losts[i:i],
            CASE WHEN mine IS NOT NULL
                 THEN ARRAY(SELECT n.name FROM unnest(mine) n WHERE n.scope = 1) END,
            p_state, rules, p_baggages[i:i]);
    END LOOP;
END $$;

DROP FUNCTION enqueue;
-- Insert one job and return its id; if another job holds `unique_name` while it is pending or
-- running, that one's id. The payload is a JSON object, checked against the kind's own model when
-- the job runs. `delay` counts from now, `run_at` names an instant. An `id` that is there already
-- changes nothing. `bulk`: the kind is a bulk kind, whose job expands into items.
--
-- With the rights of the schema's owner, so that a producer needs no right to the tables.
CREATE FUNCTION enqueue(kind text, payload jsonb DEFAULT '{}', queue text DEFAULT 'default',
    priority integer DEFAULT 0, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL,
    key text DEFAULT NULL, unique_name text DEFAULT NULL, id uuid DEFAULT NULL,
    bulk boolean DEFAULT false, version integer DEFAULT 1, baggage jsonb DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    now_us bigint := clock_us();
    job uuid := coalesce(id, new_id(now_us));
    body bytea := convert_to(payload::text, 'UTF8');
    names text[] := CASE WHEN unique_name IS NOT NULL
                         THEN ARRAY[format('unique:%s:%s', kind, unique_name)] ELSE '{}' END;
    done record;
BEGIN
    PERFORM check_enqueue('kind', kind), check_enqueue('queue', queue);
    IF jsonb_typeof(payload) IS DISTINCT FROM 'object' THEN
        PERFORM refuse('22023', 'payload must be a JSON object');
    ELSIF length(body) > 262144 THEN
        PERFORM refuse('22023', format('payload has %s bytes; it may have 262144', length(body)));
    ELSIF jsonb_path_exists(payload,
        'strict $.**{32} ? (@.type() == "object" || @.type() == "array")') THEN
        PERFORM refuse('22023', 'payload is nested more than 32 levels deep');
    ELSIF coalesce(version, 0) NOT BETWEEN 1 AND 1000000 OR bulk IS NULL THEN
        PERFORM refuse('22023', 'version must be from 1 to 1000000, and bulk true or false');
    ELSIF priority IS NULL OR abs(priority) > 10000 THEN
        PERFORM refuse('22023', 'priority must be from -10000 to 10000');
    ELSIF run_at IS NOT NULL AND delay IS NOT NULL THEN
        PERFORM refuse('22023', 'run_at cannot be given together with delay');
    ELSIF NOT (delay BETWEEN interval '0' AND interval '3650 days') OR NOT isfinite(run_at) THEN
        PERFORM refuse('22023', 'delay must be from 0 up to ten years, and run_at an instant');
    ELSIF run_at >= '10000-01-01Z' THEN
        PERFORM refuse('22023', 'run_at must be before the year 10000');
    ELSIF length(key) NOT BETWEEN 1 AND 200 OR length(unique_name) NOT BETWEEN 1 AND 200 THEN
        PERFORM refuse('22023', 'key and unique_name must have 1 to 200 characters');
    END IF;
    done := insert_jobs(now_us, ARRAY[job], ARRAY[kind], ARRAY[queue],
        ARRAY[CASE WHEN bulk THEN 1 ELSE 0 END]::smallint[], ARRAY[version], ARRAY[body],
        ARRAY[priority], ARRAY[(extract(epoch FROM run_at) * 1000000)::bigint],
        ARRAY[coalesce((extract(epoch FROM delay) * 1000000)::bigint, 0)], ARRAY[key],
        ARRAY[NULL]::uuid[], ARRAY[NULL]::integer[], ARRAY[NULL]::text[], ARRAY[0]::smallint[],
        CASE WHEN names = '{}' THEN '{}' ELSE ARRAY[1] END, names, ARRAY[1]::smallint[],
        ARRAY[0]::smallint[], ARRAY[0]::bigint[], ARRAY[''::bytea], 0::smallint, true,
        NULL, NULL, NULL, NULL, NULL, '{}', '{}', NULL, NULL, ARRAY[check_baggage(baggage)]);
    -- Told when, and only if, the caller's transaction is committed.
    PERFORM pg_notify(current_schema, '5');
    RETURN coalesce(done.instead[1], job);
END $$;

-- The text of baggage as a job keeps it, if it is some.
CREATE FUNCTION check_baggage(value jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF value IS NULL OR value = '{}' THEN
        RETURN NULL;
    ELSIF jsonb_typeof(value) <> 'object' THEN
        PERFORM refuse('22023', 'baggage must be a JSON object');
    ELSIF length(value::text) > 2048 THEN
        PERFORM refuse('22023', 'baggage may have 2048 characters');
    ELSIF EXISTS (SELECT FROM jsonb_each(value) e
                  WHERE jsonb_typeof(e.value) NOT IN ('string', 'number', 'boolean')
                     OR e.key !~ '^[A-Za-z_][A-Za-z0-9_]{0,63}$')
    THEN
        PERFORM refuse('22023', 'baggage holds texts, numbers and booleans, by names of letters, '
            || 'digits and underscores');
    END IF;
    RETURN value::text;
END $$;
