-- The SQLite store, schema step 5: baggage, which jobs carry from their enqueue to their run.

ALTER TABLE jobs ADD COLUMN baggage TEXT;                        -- a JSON object; NULL: none
