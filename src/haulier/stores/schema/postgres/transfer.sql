-- The mark of a copy from or into this store.

-- Refuses while nothing of the store may change. The lock of looking at the mark is held to the end
-- of the transaction: a freeze waits for all who hold it.
CREATE OR REPLACE FUNCTION must_be_open() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t transfer;
BEGIN
    SELECT * INTO t FROM transfer;
    IF t.stage IN ('frozen', 'moved', 'receiving') THEN
        PERFORM refuse_frozen(t);
    ELSIF current_setting('transaction_isolation') <> 'read committed'
        AND (SELECT last_value FROM shut) = 1 THEN
        PERFORM refuse('HL006', 'the store is being moved to another one, or was');
    END IF;
END $$;

CREATE OR REPLACE FUNCTION refuse_frozen(t transfer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM refuse('HL006', format(CASE t.stage
        WHEN 'frozen' THEN 'the store is being copied to %s: nothing new is taken until that is done'
        WHEN 'moved' THEN 'the store was moved to %s: the work goes on there'
        ELSE 'the store is being filled from %s: it opens when all is there'
        END, t.mark::json ->> 'peer'));
END $$;

-- Whether workers may have jobs; refuses when they are in the wrong store.
CREATE OR REPLACE FUNCTION gives_jobs() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t transfer;
BEGIN
    SELECT * INTO t FROM transfer;
    IF t.stage IN ('moved', 'receiving') THEN
        PERFORM refuse_frozen(t);
    END IF;
    RETURN coalesce(t.stage = 'received', true);
END $$;

CREATE OR REPLACE FUNCTION set_mark(p_stage text, p_mark text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM transfer;
    INSERT INTO transfer SELECT p_stage, p_mark WHERE p_stage IS NOT NULL;
    PERFORM setval('shut', CASE WHEN p_stage IN ('frozen', 'moved', 'receiving') THEN 1 ELSE 0 END);
END $$;

-- Mark a store that is open or draining as draining, or if it is idle as frozen.
CREATE OR REPLACE FUNCTION freeze(p_stage text, p_mark text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE transfer IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM transfer WHERE stage NOT IN ('draining', 'received'))
        OR (p_stage = 'frozen' AND (
            EXISTS (SELECT FROM jobs_live WHERE state = 1 AND worker IS NOT NULL)
            OR EXISTS (SELECT FROM batches WHERE draining > 0)
            OR EXISTS (SELECT FROM nested_due) OR flows_wait()))
    THEN
        RETURN;
    END IF;
    PERFORM set_mark(p_stage, p_mark);
END $$;

-- Mark a store that is open and empty as receiving.
CREATE OR REPLACE FUNCTION receive(p_stage text, p_mark text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE transfer IN ACCESS EXCLUSIVE MODE;
    WHILE number_events() LOOP
    END LOOP;
    IF EXISTS (SELECT FROM transfer WHERE stage <> 'received')
        OR EXISTS (SELECT FROM jobs) OR EXISTS (SELECT FROM batches) OR EXISTS (SELECT FROM limits)
        OR EXISTS (SELECT FROM uniques) OR EXISTS (SELECT FROM schedules)
        OR EXISTS (SELECT FROM history WHERE last > 0)
    THEN
        RETURN;
    END IF;
    PERFORM set_mark(p_stage, p_mark);
END $$;

-- Replace a mark by the next one; false if that was done before, NULL if it is another one.
CREATE OR REPLACE FUNCTION replace_mark(p_was text, p_stage text, p_mark text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    there text;
BEGIN
    SELECT mark INTO there FROM transfer FOR UPDATE;
    IF there = p_mark THEN
        RETURN false;
    ELSIF there IS DISTINCT FROM p_was THEN
        RETURN NULL;
    END IF;
    PERFORM set_mark(p_stage, p_mark);
    RETURN true;
END $$;
