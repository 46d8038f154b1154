-- The PostgreSQL store, step 14: limits, flows, schedules, configuration of what runs.
SELECT;
