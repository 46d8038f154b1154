-- Whose turn it is: which of the jobs in lanes that have room come next.

-- The jobs that are next: within a line lane by lane in turn, each by the order of its own; between lines
-- by age. `empty` lanes have none. `cut`: a lane of which no more than `p_depth` jobs were looked at
-- has more.
--
-- To compare lines by age, the first in turn is given the rank of the oldest of those to be given, the
-- second that of the second, and so on.
CREATE OR REPLACE FUNCTION draw(p_now bigint, p_lines demand[], p_hurdles hurdle[], p_fits fit[],
    p_depth integer, OUT chosen candidate[], OUT cut boolean, OUT empty uuid[])
LANGUAGE plpgsql AS $$
BEGIN
    WITH f AS (
        SELECT d.ordinality::integer AS line, d.portion, d.portion_slots, n.lane, n.key, n.queue,
               n.kind, n.turn, n.names, n.rooms, n.own, r.room, j.seq, j.rank, j.priority
        FROM unnest(p_fits) n
        JOIN unnest(p_lines) WITH ORDINALITY d ON d.queue = n.queue AND d.kind = n.kind
        CROSS JOIN LATERAL (SELECT greatest(0, least(n.room, (p_hurdles[d.ordinality]).room,
                                                     d.slots, d.portion_slots)) AS room) r
        LEFT JOIN LATERAL (
            SELECT i.seq, i.run_at - i.priority * 360000000::bigint AS rank, i.priority
            FROM jobs_live i
            WHERE i.lane = n.lane AND i.state = 0 AND i.gate = 4
              AND i.run_at - i.priority * 360000000::bigint >= n.floor
            ORDER BY i.run_at - i.priority * 360000000::bigint, i.seq
            LIMIT least(r.room + 1, p_depth)) j ON true),
    g AS (
        SELECT *, row_number() OVER w AS nth, lead(priority) OVER w AS follows FROM f
        WINDOW w AS (PARTITION BY lane, line ORDER BY rank, seq)),
    h AS (
        -- Never before one of the same lane that stands before it, however urgent.
        SELECT *, max(CASE WHEN nth = 1 THEN turn ELSE greatest(p_now, turn + nth - 1) END
                      - priority * 360000000::bigint)
                  OVER (PARTITION BY lane, line ORDER BY nth) AS due
        FROM g WHERE seq IS NOT NULL),
    o AS (SELECT *, row_number() OVER (PARTITION BY line ORDER BY due, nth, turn, lane) AS pos FROM h),
    k AS (
        SELECT *, min(pos) FILTER (WHERE nth = p_depth AND nth <= room)
                  OVER (PARTITION BY line) AS frontier
        FROM o),
    m AS (
        SELECT *, (array_agg(rank) OVER (PARTITION BY line ORDER BY rank, seq
                       ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
                  )[row_number() OVER (PARTITION BY line ORDER BY pos)] AS merit
        FROM k WHERE nth <= room AND (frontier IS NULL OR pos < frontier))
    SELECT (SELECT array_agg((line, portion, portion_slots, lane, key, queue, kind, seq, nth, rank,
                follows, merit, pos, names || (p_hurdles[line]).names,
                rooms || (p_hurdles[line]).rooms, own)::candidate ORDER BY merit, line, pos) FROM m),
           (SELECT bool_or(frontier IS NOT NULL) FROM k),
           (SELECT array_agg(DISTINCT lane) FROM g WHERE seq IS NULL)
    INTO chosen, cut, empty;
    cut := coalesce(cut, false);
    IF EXISTS (SELECT FROM unnest(chosen) c WHERE c.names IS NOT NULL) THEN
        -- Of what shares room with others, the first ones.
        chosen := (
            SELECT array_agg(c ORDER BY c.merit, c.line, c.pos) FROM unnest(chosen) c
            WHERE c.names IS NULL OR (c.line, c.pos) IN (
                SELECT s.line, s.pos FROM (
                    SELECT e.line, e.pos, r.room,
                           row_number() OVER (PARTITION BY r.name ORDER BY e.merit, e.line, e.pos) AS nth
                    FROM unnest(chosen) e, unnest(e.names, e.rooms) r (name, room)) s
                GROUP BY s.line, s.pos HAVING bool_and(s.nth <= s.room)));
    END IF;
END $$;

-- The same at less cost where it is plain to see: lanes of one line that share nothing, and none of them
-- goes twice. NULL: else.
CREATE OR REPLACE FUNCTION draw_firsts(p_now bigint, p_lines demand[], p_hurdles hurdle[], p_fits fit[],
    OUT chosen candidate[], OUT cut boolean, OUT empty uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    one integer;
    line demand;
    most integer;
    last bigint;
    seconds bigint;
BEGIN
    cut := false;
    SELECT min(d.ordinality) INTO one FROM unnest(p_lines) WITH ORDINALITY d
    WHERE d.queue = p_fits[1].queue AND d.kind = p_fits[1].kind HAVING count(*) = 1;
    IF one IS NULL OR (p_hurdles[one]).names IS NOT NULL OR EXISTS (
        SELECT FROM unnest(p_fits) n
        WHERE n.names IS NOT NULL OR n.queue <> p_fits[1].queue OR n.kind <> p_fits[1].kind)
    THEN
        RETURN;
    END IF;
    line := p_lines[one];
    most := least((p_hurdles[one]).room, line.slots, line.portion_slots);
    WITH f AS (
        -- A lane that is filled at once and stays closed needs no priority of the job after.
        SELECT n.lane, n.key, n.turn, n.own, j.seqs[1] AS seq, j.ranks[1] AS rank,
               j.priorities[2] AS follows, n.turn - j.priorities[1] * 360000000::bigint AS due,
               CASE WHEN n.room > 1
                    THEN greatest(p_now, n.turn + 1) - j.priorities[2] * 360000000::bigint END AS due_2
        FROM unnest(p_fits) n, LATERAL (
            SELECT array_agg(i.seq) AS seqs, array_agg(i.rank) AS ranks,
                   array_agg(i.priority) AS priorities
            FROM (SELECT i.seq, i.run_at - i.priority * 360000000::bigint AS rank, i.priority
                  FROM jobs_live i
                  WHERE i.lane = n.lane AND i.state = 0 AND i.gate = 4
                    AND i.run_at - i.priority * 360000000::bigint >= n.floor
                  ORDER BY i.run_at - i.priority * 360000000::bigint, i.seq
                  LIMIT CASE WHEN n.shut AND n.own = 1 THEN 1 ELSE 2 END) i) j),
    o AS (SELECT *, row_number() OVER (ORDER BY due, turn, lane)::integer AS pos FROM f
          WHERE seq IS NOT NULL),
    -- As draw() says: the oldest rank for the first in turn, and so on.
    r AS (SELECT array_agg(rank ORDER BY rank) AS ranks FROM o WHERE pos <= most)
    SELECT array_agg((one, line.portion, line.portion_slots, lane, key, line.queue, line.kind, seq, 1, rank,
                      follows, r.ranks[pos], pos, NULL, NULL, own)::candidate ORDER BY pos)
               FILTER (WHERE pos <= most),
           CASE WHEN count(*) >= most THEN max(due) FILTER (WHERE pos <= most) END, min(due_2),
           (SELECT array_agg(lane) FROM f WHERE seq IS NULL)
    INTO chosen, last, seconds, empty
    FROM o, r;
    -- A second one that is due before the last of these, or that there are slots for, is draw()'s affair.
    IF seconds IS NOT NULL AND (last IS NULL OR seconds < last) THEN
        chosen := NULL;
        empty := NULL;
    END IF;
END $$;

-- Whether some line could be given more than what is chosen, as far as what it shares goes.
CREATE OR REPLACE FUNCTION wants_more(p_lines demand[], p_hurdles hurdle[], p_chosen candidate[])
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    open integer[] := ARRAY(
        SELECT d.ordinality FROM unnest(p_lines) WITH ORDINALITY d WHERE EXISTS (
            SELECT FROM lanes n
            WHERE n.queue = d.queue AND n.kind = d.kind AND n.place IS NOT NULL));
BEGIN
    RETURN open <> '{}' AND EXISTS (
        SELECT FROM unnest(p_lines) WITH ORDINALITY d
        WHERE d.ordinality = ANY (open)
          AND (SELECT count(*) FROM unnest(p_chosen) c WHERE c.portion = d.portion) < d.portion_slots
          AND (SELECT count(*) FROM unnest(p_chosen) c
               WHERE c.names && (p_hurdles[d.ordinality]).names) < (p_hurdles[d.ordinality]).room);
END $$;

-- The jobs in lanes that a demand could have, if it got no others. `more`: there may be more of them.
-- `spare`: those of the closed lanes of the keys `p_shut` that have room and give none of these jobs,
-- `elsewhere` the keys of those that others hold.
CREATE OR REPLACE FUNCTION gather(p_now bigint, p_lines demand[], p_taken bigint[], p_shut text[],
    OUT chosen candidate[], OUT more boolean, OUT spare uuid[], OUT elsewhere text[])
LANGUAGE plpgsql AS $$
DECLARE
    slots integer := p_lines[1].slots;
    limits_of hurdle[] := hurdles(p_now, p_lines);
    width integer := slots;
    depth integer;
    cut boolean;
    looked integer := 0;
    seen record;
    drawn record;
BEGIN
    more := false;
    LOOP
        seen := survey(p_now, p_lines, limits_of, width, p_taken, p_shut);
        more := more OR seen.passed;
        looked := looked + seen.looked;
        chosen := NULL;
        cut := false;
        IF cardinality(seen.fits) > 0 THEN
            depth := greatest(coalesce(depth, 0), slots / cardinality(seen.fits) + 2);
            drawn := draw_firsts(p_now, p_lines, limits_of, seen.fits);
            chosen := drawn.chosen;
            IF chosen IS NULL THEN
                drawn := draw(p_now, p_lines, limits_of, seen.fits, depth);
                SELECT array_agg(e.choice ORDER BY e.spot) INTO chosen FROM (
                    SELECT u AS choice, u.portion_slots, row_number() OVER o AS spot,
                           row_number() OVER (PARTITION BY u.portion
                                              ORDER BY u.merit, u.line, u.pos) AS nth
                    FROM unnest(drawn.chosen) u WINDOW o AS (ORDER BY u.merit, u.line, u.pos)) e
                WHERE e.nth <= e.portion_slots;
                chosen := chosen[:slots];
            END IF;
            cut := drawn.cut;
            IF drawn.empty IS NOT NULL THEN
                UPDATE lanes SET place = NULL, why = NULL, wake_at = NULL, since = turn
                WHERE id = ANY (drawn.empty);
                seen.closed := seen.closed + cardinality(drawn.empty);
            END IF;
        END IF;
        EXIT WHEN coalesce(cardinality(chosen), 0) >= slots
            OR NOT (wants_more(p_lines, limits_of, chosen) OR (cut AND p_shut IS NOT NULL));
        IF looked >= 1000 THEN
            more := true;
            EXIT;
        ELSIF seen.closed > 0 THEN
            CONTINUE;
        ELSIF seen.looked >= width THEN
            -- There may be lanes behind these.
            width := 2 * width;
        ELSIF cut THEN
            depth := 2 * depth;
        ELSE
            EXIT;
        END IF;
    END LOOP;
    IF p_shut IS NOT NULL THEN
        elsewhere := seen.elsewhere;
        spare := ARRAY(SELECT f.lane FROM unnest(seen.fits) f WHERE f.shut
                       EXCEPT SELECT c.lane FROM unnest(chosen) c);
    END IF;
END $$;
