-- Enqueue, for any driver and any language, inside the caller's own transaction.

-- Insert one job and return its id; if another job holds `unique_name` while it is pending or
-- running, that one's id. The payload is a JSON object, checked against the kind's own model when
-- the job runs. `delay` counts from now, `run_at` names an instant. An `id` that is there already
-- changes nothing. `bulk`: the kind is a bulk kind, whose job expands into items. `after`: jobs that
-- it waits for; `otherwise`: what becomes of it when one of them does not complete, cancel or run.
--
-- With the rights of the schema's owner, so that a producer needs no right to the tables.
CREATE OR REPLACE FUNCTION enqueue(kind text, payload jsonb DEFAULT '{}', queue text DEFAULT 'default',
    priority integer DEFAULT 0, run_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL,
    key text DEFAULT NULL, unique_name text DEFAULT NULL, id uuid DEFAULT NULL,
    bulk boolean DEFAULT false, version integer DEFAULT 1, baggage jsonb DEFAULT NULL,
    after uuid[] DEFAULT NULL, otherwise text DEFAULT 'cancel')
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    now_us bigint := clock_us();
    job uuid := coalesce(id, new_id(now_us));
    body bytea := convert_to(payload::text, 'UTF8');
    names text[] := CASE WHEN unique_name IS NOT NULL
                         THEN ARRAY[format('unique:%s:%s', kind, unique_name)] ELSE '{}' END;
    done record;
    there boolean;
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
    ELSIF otherwise IS NULL OR otherwise NOT IN ('cancel', 'run') THEN
        PERFORM refuse('22023', 'otherwise must be cancel or run');
    END IF;
    IF cardinality(after) > 0 THEN
        PERFORM check_after(job, after);
        there := EXISTS (SELECT FROM jobs j WHERE j.id = job);
    END IF;
    done := insert_jobs(now_us, ARRAY[job], ARRAY[kind], ARRAY[queue],
        ARRAY[CASE WHEN bulk THEN 1 ELSE 0 END]::smallint[], ARRAY[version], ARRAY[body],
        ARRAY[priority], ARRAY[(extract(epoch FROM run_at) * 1000000)::bigint],
        ARRAY[coalesce((extract(epoch FROM delay) * 1000000)::bigint, 0)], ARRAY[key],
        ARRAY[NULL]::uuid[], ARRAY[NULL]::integer[], ARRAY[NULL]::text[], ARRAY[0]::smallint[],
        CASE WHEN names = '{}' THEN '{}' ELSE ARRAY[1] END, names, ARRAY[1]::smallint[],
        ARRAY[0]::smallint[], ARRAY[0]::bigint[], ARRAY[''::bytea], 0::smallint, true,
        NULL, NULL, NULL, NULL, NULL, '{}', '{}', NULL, NULL, ARRAY[check_baggage(baggage)]);
    IF NOT there AND cardinality(done.instead) = 0 THEN
        PERFORM add_edges(
            array_fill(job, ARRAY[cardinality(after)]), array_agg(u.nth::integer - 1 ORDER BY u.nth), after,
            array_fill(CASE otherwise WHEN 'run' THEN 1 ELSE 0 END::smallint, ARRAY[cardinality(after)]))
        FROM unnest(after) WITH ORDINALITY u (parent, nth);
    END IF;
    -- Told when, and only if, the caller's transaction is committed.
    PERFORM pg_notify(current_schema, '5');
    RETURN coalesce(done.instead[1], job);
END $$;

CREATE OR REPLACE FUNCTION check_enqueue(what text, value text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF value IS NULL OR length(value) > 200 OR value !~ '^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$' THEN
        PERFORM refuse('22023', format(
            '%s %L is not a dotted name of letters, digits and underscores', what, left(value, 60)));
    END IF;
END $$;

-- Lock the jobs that a new one is to wait for; refuses what is no list of them.
CREATE OR REPLACE FUNCTION check_after(job uuid, parents uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(parents) > 10000 OR array_ndims(parents) > 1 THEN
        PERFORM refuse('22023', 'after must be a list of up to 10000 ids');
    ELSIF job = ANY (parents) THEN
        PERFORM refuse('22023', format('after: the job %s waits for itself', job));
    ELSIF (SELECT count(DISTINCT p) FROM unnest(parents) p) < cardinality(parents) THEN
        PERFORM refuse('22023', 'after names nothing, or the same job twice');
    END IF;
    PERFORM lock_parents(parents);
    IF EXISTS (SELECT FROM unnest(parents) p WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = p)) THEN
        PERFORM refuse('22023', format('after: there is no job %s', (
            SELECT string_agg(p::text, ', ') FROM (
                SELECT p FROM unnest(parents) p
                WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = p) LIMIT 5) m)));
    END IF;
END $$;

-- The text of baggage as a job keeps it, if it is some.
CREATE OR REPLACE FUNCTION check_baggage(value jsonb) RETURNS text LANGUAGE plpgsql AS $$
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
