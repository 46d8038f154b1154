-- The SQLite store, schema step 6: limits, flows, schedules, settings, nested batches.

-- ── Nested batches ───────────────────────────────────────────────────────────────────────────

-- A job of role 3 is the head of a batch and an item of another one: `within` that one. From here on
-- `paused` is 1 by itself, 2 by the batch around it, 3 both.
ALTER TABLE batches ADD COLUMN within BLOB;
CREATE INDEX batches_within ON batches (within, owed) WHERE within IS NOT NULL;
