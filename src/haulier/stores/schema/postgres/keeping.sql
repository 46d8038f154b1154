-- What jobs leave on their way: finished steps and log lines.

-- Keep finished steps, each if its lease holds; which of them do not, by their places. The rows of
-- their jobs are locked, or one could be claimed anew, and looked at, while its step is still on the way.
CREATE OR REPLACE FUNCTION keep_steps(p_now bigint, p_jobs uuid[], p_leases integer[], p_names text[],
    p_results bytea[]) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
BEGIN
    PERFORM 1 FROM jobs_live WHERE id = ANY (p_jobs) ORDER BY (role IN (1, 3)), seq FOR UPDATE;
    INSERT INTO steps (job, name, lease, at, result)
    SELECT j.seq, u.name, u.lease, v_now, u.result
    FROM unnest(p_jobs, p_leases, p_names, p_results) WITH ORDINALITY u (id, lease, name, result, nth)
    JOIN jobs_live j ON j.id = u.id AND j.lease = u.lease AND j.state = 1
    ORDER BY nth
    ON CONFLICT DO NOTHING;
    RETURN ARRAY(
        SELECT nth::integer FROM unnest(p_jobs, p_leases) WITH ORDINALITY u (id, lease, nth)
        WHERE NOT EXISTS (SELECT FROM jobs_live j
                          WHERE j.id = u.id AND j.lease = u.lease AND j.state = 1)
        ORDER BY nth);
END $$;

-- Record log lines of running jobs, each if its lease holds, and let go of all but the last ones.
CREATE OR REPLACE FUNCTION keep_lines(p_now bigint, p_jobs uuid[], p_leases integer[], p_numbers integer[],
    p_ago bigint[], p_texts text[], p_kept integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    held bigint;
BEGIN
    PERFORM 1 FROM jobs_live WHERE id = ANY (p_jobs) ORDER BY (role IN (1, 3)), seq FOR UPDATE;
    INSERT INTO lines (job, lease, number, at, text)
    SELECT j.seq, u.lease, u.number, v_now - u.ago, u.line
    FROM unnest(p_jobs, p_leases, p_numbers, p_ago, p_texts) u (id, lease, number, ago, line)
    JOIN jobs_live j ON j.id = u.id AND j.lease = u.lease AND j.state = 1
    ON CONFLICT DO NOTHING;
    FOR held IN SELECT seq FROM jobs_live WHERE id = ANY (p_jobs) AND state = 1 LOOP
        DELETE FROM lines l USING (
            SELECT k.lease, k.number FROM lines k WHERE k.job = held
            ORDER BY k.lease DESC, k.number DESC OFFSET p_kept LIMIT 1) o
        WHERE l.job = held AND (l.lease, l.number) <= (o.lease, o.number);
    END LOOP;
END $$;
