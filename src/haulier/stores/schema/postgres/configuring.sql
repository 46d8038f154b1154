-- What operators change while everything runs.

-- Set and unset settings, unless another version is there than was expected. One statement, so that
-- no lock outlives a client that dies.
CREATE OR REPLACE FUNCTION configure(p_now bigint, p_names text[], p_texts text[], p_by text,
    p_expected bigint, p_kept integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_now bigint := coalesce(p_now, clock_us());
    there bigint;
    names text[];
    was text[];
BEGIN
    PERFORM must_be_open();
    LOCK TABLE configuration IN EXCLUSIVE MODE;
    there := coalesce((SELECT version FROM configuration), 0);
    IF there <> p_expected THEN
        PERFORM refuse('HL002', format(
            'the configuration has version %s by now, not %s: look at it again', there, p_expected));
    END IF;
    SELECT array_agg(u.name ORDER BY nth) INTO names
    FROM unnest(p_names, p_texts) WITH ORDINALITY u (name, text, nth)
    LEFT JOIN settings s ON s.name = u.name
    WHERE s.value IS DISTINCT FROM u.text;
    IF names IS NULL THEN
        RETURN;
    END IF;
    was := paused_now();
    there := announce(v_now, p_by, names);
    INSERT INTO alterations (version, at, by, name, before, after)
    SELECT there, v_now, p_by, u.name, s.value, u.text
    FROM unnest(p_names, p_texts) u (name, text) LEFT JOIN settings s ON s.name = u.name
    WHERE u.name = ANY (names);
    DELETE FROM alterations WHERE (version, name) IN (
        SELECT a.version, a.name FROM alterations a ORDER BY a.version DESC, a.name OFFSET p_kept);
    DELETE FROM settings WHERE name = ANY (names);
    INSERT INTO settings (name, value, version, changed_by, changed_at)
    SELECT u.name, u.text, there, p_by, v_now FROM unnest(p_names, p_texts) u (name, text)
    WHERE u.name = ANY (names) AND u.text IS NOT NULL;
    IF NOT coalesce(paused_now(), '{}') <@ coalesce(was, '{}') THEN
        -- Exchanges hold a row of this table to their end, and look at the configuration after they
        -- got it: those under way are waited for, and all others will see what is paused.
        LOCK TABLE workers IN EXCLUSIVE MODE;
    END IF;
    PERFORM note_paused();
END $$;

-- Make a new version, which all workers will hear of, and an event for each thing that changed. For
-- all that is changed while workers run, also where it is kept elsewhere.
CREATE OR REPLACE FUNCTION announce(p_now bigint, p_by text, p_names text[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
BEGIN
    LOCK TABLE configuration IN EXCLUSIVE MODE;
    UPDATE configuration SET version = version + 1 RETURNING version INTO made;
    IF NOT FOUND THEN
        INSERT INTO configuration (version) VALUES (1) RETURNING version INTO made;
    END IF;
    PERFORM say_of_nobody(p_now, 'configured', p_names, p_by);
    RETURN made;
END $$;

-- Append events that are no job's: what was changed, and who did it.
CREATE OR REPLACE FUNCTION say_of_nobody(p_now bigint, p_event text, p_names text[], p_by text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM write_moves(p_now, (
        SELECT array_agg((p_event, '00000000-0000-0000-0000-000000000000', 0, 0, '', u.name, 0,
                          NULL, 1, 1, NULL, p_by)::moved ORDER BY nth)
        FROM unnest(p_names) WITH ORDINALITY u (name, nth)));
END $$;

-- The queues that are paused by what is set; NULL: none.
CREATE OR REPLACE FUNCTION paused_now() RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(substr(name, 8, length(name) - 14)) FROM settings
            WHERE starts_with(name, 'queues.') AND right(name, 7) = '.paused');
END $$;

-- Put the paused queues where exchanges look for them.
CREATE OR REPLACE FUNCTION note_paused() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE configuration SET paused = paused_now();
END $$;

-- What is asked for of queues that are not paused; NULL: nothing.
CREATE OR REPLACE FUNCTION open_lines(p_lines demand[], p_paused text[]) RETURNS demand[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(l) FROM unnest(p_lines) l WHERE l.queue <> ALL (p_paused));
END $$;

-- Lock what one demand asks for of queues that are taken from by weight; as pick_lines does it of one
-- line. The n-th job of a queue goes by the time of its queue after n jobs.
CREATE OR REPLACE FUNCTION pick_in_turn(p_lines demand[], p_pausing uuid[], p_parking uuid[],
    OUT seqs bigint[], OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    place integer;
    planned integer;
    picked bigint[];
BEGIN
    more := false;
    seqs := '{}';
    FOR place, planned IN
        SELECT c.place, count(*) FROM (
            SELECT m.place, m.slots, row_number() OVER (ORDER BY m.turn) AS nth
            FROM (
                SELECT q.*, row_number() OVER (PARTITION BY q.portion ORDER BY q.turn) AS nth
                FROM (
                    SELECT l.place, l.portion, l.slots, l.portion_slots,
                           l.ahead + l.step * row_number() OVER
                               (PARTITION BY l.queue ORDER BY j.rank, j.seq) AS turn
                    FROM unnest(p_lines) WITH ORDINALITY l (demand, portion, queue, kind, floor,
                             portion_slots, slots, step, ahead, place), LATERAL (
                        SELECT rank, seq FROM jobs_live j
                        WHERE j.queue = l.queue AND j.kind = l.kind AND j.state = 0
                          AND j.rank >= l.floor
                        ORDER BY rank, seq LIMIT least(l.slots, l.portion_slots)) j) q) m
            WHERE m.nth <= m.portion_slots) c
        WHERE c.nth <= c.slots GROUP BY c.place
    LOOP
        picked := pick(p_lines[place].queue, p_lines[place].kind, p_lines[place].floor, planned,
                       p_pausing, p_parking);
        seqs := seqs || picked;
        more := more OR coalesce(cardinality(picked), 0) < planned;
    END LOOP;
END $$;
