-- The PostgreSQL store, step 12: baggage, which jobs carry from their enqueue to their run.

ALTER TABLE all_jobs ADD COLUMN baggage text;           -- a JSON object; NULL: none
CREATE OR REPLACE VIEW jobs AS SELECT * FROM all_jobs WHERE state >= 0;
ALTER TYPE claimed ADD ATTRIBUTE baggage text;

-- They got an argument more.
DROP FUNCTION IF EXISTS insert_rows, insert_jobs, enqueue;
