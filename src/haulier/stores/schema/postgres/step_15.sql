-- The PostgreSQL store, step 15: flows from SQL, and who resets a breaker.

-- They got arguments more.
DROP FUNCTION IF EXISTS enqueue, reset_circuit;
