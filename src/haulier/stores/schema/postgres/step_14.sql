-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.


-- ── Nested batches ───────────────────────────────────────────────────────────────────────────

-- A job of role 3 is the head of a batch and an item of another one: `within` that one. Who has paused a
-- batch: 1 itself, 2 the batch around it, 3 both.
ALTER TABLE batches ADD COLUMN within uuid, ADD COLUMN pauses smallint NOT NULL DEFAULT 0;
UPDATE batches SET pauses = 1 WHERE paused;
CREATE INDEX batches_within ON batches (within, id) WHERE within IS NOT NULL;

-- Batches of which something within them has settled; see nesting.sql.
CREATE TABLE nested_due (
    batch    uuid    NOT NULL,
    failures integer NOT NULL
);
CREATE INDEX nested_due_batch ON nested_due (batch);
