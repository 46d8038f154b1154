-- New jobs, batches while they are being filled, unique names.

-- Whoever looks at unique names, to take them, holds these locks. They come before all others. The
-- lines of a stream share the lock of its key: the server has not room for thousands.
CREATE OR REPLACE FUNCTION lock_names(p_names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(h.key) FROM (
        SELECT DISTINCT hashtextextended(
            regexp_replace(u, '^idempotency-line:[0-9]+:', 'idempotency:'),
            hashtext(current_schema)) AS key
        FROM unnest(p_names) u ORDER BY 1) h;
END $$;

-- Who holds a name; a row without a job is left over from one that was removed.
CREATE OR REPLACE FUNCTION holder_of(p_now bigint, p_name text,
    OUT job uuid, OUT digest bytea, OUT state smallint, OUT role smallint, OUT begun boolean)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT u.job, u.digest, j.state, j.role, EXISTS (
        SELECT FROM batches b WHERE b.id = u.job AND (b.total > 0 OR EXISTS (
            SELECT FROM batch_deltas d WHERE d.batch = b.id)))
    INTO job, digest, state, role, begun
    FROM uniques u LEFT JOIN jobs j ON j.id = u.job
    WHERE u.name = p_name AND CASE WHEN u.until IS NULL THEN j.id IS NOT NULL
                                   ELSE u.until > p_now END;
END $$;

-- Look at all names of a new job before any of them is taken: `instead` of it there is another, or
-- pending jobs are `replaced`. Refuses where the conflict says so.
CREATE OR REPLACE FUNCTION judge(p_now bigint, p_job uuid, p_names uniqueness[],
    OUT instead uuid, OUT replaced uuid[]) LANGUAGE plpgsql AS $$
DECLARE
    one uniqueness;
    held record;
BEGIN
    replaced := '{}';
    FOREACH one IN ARRAY p_names LOOP
        held := holder_of(p_now, one.name);
        CONTINUE WHEN held.job IS NULL OR held.job = p_job;
        IF one.conflict = 3 AND held.digest <> one.digest THEN
            PERFORM refuse('HL005',
                'this idempotency key was used before, with another body', held.job::text);
        END IF;
        IF one.conflict IN (0, 3) THEN
            instead := held.job;
            RETURN;
        END IF;
        IF one.conflict = 2 OR held.state = 1 OR (held.state = 0 AND held.begun) THEN
            PERFORM refuse('HL004', format('job %s already holds this unique name', held.job),
                           held.job::text);
        END IF;
        IF held.state = 0 THEN
            replaced := replaced || held.job;
        END IF;
    END LOOP;
END $$;

-- Cancel pending jobs in whose place another one is inserted; false if one of them has begun.
CREATE OR REPLACE FUNCTION replace_jobs(p_now bigint, p_jobs uuid[], p_by uuid)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    j jobs;
    victim uuid;
BEGIN
    FOREACH victim IN ARRAY p_jobs LOOP
        -- A head's batch goes before the head itself.
        PERFORM lock_batches(ARRAY[victim]);
        SELECT * INTO j FROM jobs_live WHERE id = victim AND state = 0 FOR UPDATE;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        IF j.batch IS NOT NULL THEN
            PERFORM lock_batches(ARRAY[j.batch]);
        END IF;
        UPDATE jobs_live SET error_type = 'Replaced', error_at = p_now,
            error = json_build_object('type', 'Replaced', 'message', format('by job %s', p_by))
        WHERE seq = j.seq;
        PERFORM drop_job(p_now, j, 'Replaced');
        IF j.role IN (1, 3) THEN
            PERFORM begin_cancel(p_now, victim, 1::smallint);
            -- It has no items yet, or it would have stayed.
            PERFORM drain_batch(p_now, victim);
        END IF;
    END LOOP;
    RETURN true;
END $$;

-- Cancel a locked pending job, whose batch is locked too.
CREATE OR REPLACE FUNCTION drop_job(p_now bigint, j jobs, p_error text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM bury(p_now, ARRAY[j.seq], 4::smallint);
    PERFORM release_ended(ARRAY[j.id]);
    PERFORM write_moves(p_now, ARRAY[('drop', j.id, j.attempt, j.lease, j.queue, j.kind, j.role,
                                      j.batch, 0, 4, NULL, p_error)::moved]);
    IF j.batch IS NOT NULL THEN
        PERFORM follow_up(p_now, j.batch, 0);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION take_names(p_now bigint, p_job uuid, p_names uniqueness[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    one uniqueness;
BEGIN
    FOREACH one IN ARRAY p_names LOOP
        INSERT INTO uniques (name, job, scope, until, digest)
        VALUES (one.name, p_job, one.scope, CASE WHEN one.scope = 2 THEN p_now + one.period END,
                one.digest)
        ON CONFLICT (name) DO UPDATE SET job = excluded.job, scope = excluded.scope,
            until = excluded.until, digest = excluded.digest;
    END LOOP;
END $$;

-- Take back the names of a job that becomes active again; false if another holds one. Their locks
-- are held.
CREATE OR REPLACE FUNCTION retake(p_now bigint, p_job uuid, p_names text[])
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    one text;
BEGIN
    IF p_names IS NULL THEN
        RETURN true;
    END IF;
    FOREACH one IN ARRAY p_names LOOP
        IF (holder_of(p_now, one)).job <> p_job THEN
            RETURN false;
        END IF;
    END LOOP;
    INSERT INTO uniques (name, job, scope, digest) SELECT n, p_job, 1, '' FROM unnest(p_names) n
    ON CONFLICT (name) DO UPDATE SET job = p_job, scope = 1, until = NULL;
    RETURN true;
END $$;

-- ── Rows ─────────────────────────────────────────────────────────────────────────────────────

-- Insert jobs whose names were taken; returns how many were new. What is there already stays as it
-- is. Locks their batches.
CREATE OR REPLACE FUNCTION insert_rows(p_now bigint, p_ids uuid[], p_kinds text[], p_queues text[],
    p_roles smallint[], p_versions integer[], p_payloads bytea[], p_priorities integer[],
    p_run_ats bigint[], p_delays bigint[], p_keys text[], p_batches uuid[], p_positions integer[],
    p_retries text[], p_on_losts smallint[],
    p_names text[], p_state smallint, p_policy policy, p_baggages text[])
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parents uuid[];
    heads uuid[];
    fresh_ids uuid[];
    fresh_seqs bigint[];
    done_ids uuid[];
    limited text[] := limited_lines(p_queues, p_kinds);
BEGIN
    SELECT array_agg(DISTINCT b) INTO parents FROM unnest(p_batches) b WHERE b IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM lock_batches(parents);
    END IF;
    WITH fresh AS (
        INSERT INTO jobs_live (id, kind, queue, role, version, payload, state, rank, gate,
            priority, run_at, lease, on_lost, key, batch, position, retry, uniq, created_at,
            baggage, lane)
        SELECT g.id, g.kind, g.queue, g.role, g.version, g.payload, p_state,
            CASE WHEN g.due <= p_now AND g.lane IS NULL AND NOT coalesce(b.gated, false)
                 THEN rank_of(g.due, g.priority) END,
            CASE WHEN g.due <= p_now AND g.lane IS NOT NULL THEN 4
                 WHEN g.due <= p_now AND b.gated THEN 1 END,
            g.priority, g.due, coalesce(b.leases, 0), g.on_lost, g.key, g.batch, g.place,
            g.retry, p_names, p_now, g.baggage, g.lane
        FROM (
            -- An instant in the past counts as now, or a producer could jump the line by it.
            SELECT *, greatest(coalesce(u.run_at, p_now + u.delay), p_now) AS due,
                CASE WHEN limited IS NOT NULL AND u.role NOT IN (1, 3)
                      AND u.queue || '/' || u.kind = ANY (limited)
                     THEN lane_of(u.queue, u.kind, u.key, u.batch) END AS lane
            FROM unnest(p_ids, p_kinds, p_queues, p_roles, p_versions, p_payloads, p_priorities,
                p_run_ats, p_delays, p_keys, p_batches, p_positions, p_retries, p_on_losts,
                p_baggages)
                WITH ORDINALITY u (id, kind, queue, role, version, payload, priority, run_at,
                    delay, key, batch, place, retry, on_lost, baggage, nth)) g
        LEFT JOIN batches b ON b.id = g.batch
        ORDER BY g.nth
        ON CONFLICT (id) DO NOTHING
        RETURNING id, seq)
    SELECT array_agg(id), array_agg(seq) INTO fresh_ids, fresh_seqs FROM fresh;
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
    IF limited IS NOT NULL THEN
        PERFORM tell_lanes(p_now, fresh_seqs);
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
        FROM given WHERE role >= 2 AND batch IS NOT NULL GROUP BY batch)
    SELECT array_agg(DISTINCT batch) FILTER (WHERE batch IS NOT NULL),
           array_agg(id) FILTER (WHERE role IN (1, 3))
    INTO parents, heads FROM given;
    IF heads IS NOT NULL THEN
        PERFORM add_batches(heads, p_policy);
        IF parents IS NOT NULL THEN
            PERFORM put_within(heads);
        END IF;
    END IF;
    IF parents IS NOT NULL THEN
        PERFORM check_open(p_now, parents);
    END IF;
    RETURN cardinality(fresh_ids);
END $$;

CREATE OR REPLACE FUNCTION add_batches(p_heads uuid[], p_policy policy) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO batches (id, own_expander, finish_kind, finish_queue, concurrency, batch_size,
        max_failures, finish_ids, gated)
    SELECT h, p_policy.own_expander, p_policy.finish_kind, p_policy.finish_queue,
        p_policy.concurrency, p_policy.batch_size, p_policy.max_failures,
        ARRAY(SELECT f.id
              FROM unnest(p_policy.finish_of, p_policy.finish_ids) WITH ORDINALITY f (head, id, nth)
              WHERE f.head = h ORDER BY f.nth),
        p_policy.concurrency IS NOT NULL OR p_policy.batch_size IS NOT NULL
    FROM unnest(p_heads) h;
END $$;

-- Refuse new items of batches that are not open; let some of them in. Only for what is new:
-- repeating an insert is harmless, also after a batch was sealed.
CREATE OR REPLACE FUNCTION check_open(p_now bigint, p_batches uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b batches;
    parent uuid;
BEGIN
    FOREACH parent IN ARRAY p_batches LOOP
        SELECT * INTO b FROM batches WHERE id = parent FOR UPDATE;
        IF NOT FOUND THEN
            PERFORM refuse('HL002', format('there is no batch %s to add items to', parent));
        ELSIF b.sealed OR b.cancel > 0 THEN
            PERFORM refuse('HL002', format('batch %s is %s: no items can be added', parent,
                (ARRAY['sealed', 'cancelled', 'cut short, too many of its items failed']
                )[b.cancel + 1]));
        END IF;
        IF b.gated THEN
            PERFORM let_in(p_now, parent);
        END IF;
    END LOOP;
END $$;

-- ── Verbs ────────────────────────────────────────────────────────────────────────────────────
CREATE OR REPLACE FUNCTION check_fence(p_job uuid, p_lease integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- Whatever ends the claim of a head locks its batch too.
    PERFORM lock_batches(ARRAY[p_job]);
    PERFORM 1 FROM jobs_live WHERE id = p_job AND lease = p_lease AND state = 1 FOR SHARE;
    IF NOT FOUND THEN
        PERFORM refuse('HL003', format('job %s is no longer held by lease %s', p_job, p_lease));
    END IF;
END $$;

-- Insert jobs in their order, those with unique names one by one, as each has to see the names that
-- those before it took. Names say by its place which job they belong to. `jobs` were not inserted,
-- because there is another one `instead`.
CREATE OR REPLACE FUNCTION insert_jobs(p_now bigint, p_ids uuid[], p_kinds text[], p_queues text[],
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
    at integer := 1;
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
    -- Single jobs with an idempotency key each, none of which was used before: all at once.
    IF 3 = ALL (n_conflicts) AND 2 = ALL (n_scopes) AND 0 = ALL (p_roles)
        AND cardinality(n_names) = cardinality(p_ids)
        AND (SELECT count(DISTINCT n.name) = count(*) AND count(DISTINCT n.job) = count(*)
             FROM unnest(n_jobs, n_names) n (job, name))
        AND NOT EXISTS (SELECT FROM uniques u WHERE u.name = ANY (n_names))
        AND NOT EXISTS (SELECT FROM jobs_live j WHERE j.id = ANY (p_ids))
        AND NOT EXISTS (SELECT FROM jobs_done j WHERE j.id = ANY (p_ids))
    THEN
        INSERT INTO uniques (name, job, scope, until, digest)
        SELECT n.name, p_ids[n.job], 2, v_now + n.period, n.digest
        FROM unnest(n_jobs, n_names, n_periods, n_digests) n (job, name, period, digest);
        new := insert_rows(v_now, p_ids, p_kinds, p_queues, p_roles, p_versions, p_payloads,
            p_priorities, p_run_ats, p_delays, p_keys, p_batches, p_positions, p_retries,
            p_on_losts, '{}', p_state, rules, p_baggages);
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        -- Its names: they come in the order of the jobs.
        mine := NULL;
        WHILE at <= cardinality(n_jobs) AND n_jobs[at] = i LOOP
            mine := mine || (i, n_names[at], n_scopes[at], n_conflicts[at], n_periods[at],
                             n_digests[at])::uniqueness;
            at := at + 1;
        END LOOP;
        -- Repeated: who holds the names by now is no longer its affair.
        CONTINUE WHEN EXISTS (SELECT FROM jobs_live j WHERE j.id = p_ids[i])
                   OR EXISTS (SELECT FROM jobs_done j WHERE j.id = p_ids[i]);
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

CREATE OR REPLACE FUNCTION seal(p_now bigint, p_batch uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM must_be_open();
    PERFORM lock_batches(ARRAY[p_batch]);
    UPDATE batches SET sealed = true WHERE id = p_batch;
    IF NOT FOUND THEN
        PERFORM refuse('HL001', p_batch::text);
    END IF;
    PERFORM follow_up(coalesce(p_now, clock_us()), p_batch, 0);
END $$;
