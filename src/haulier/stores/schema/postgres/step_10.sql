-- The PostgreSQL store, step 10: the mark of a copy from or into this store.

-- At most one row.
CREATE TABLE transfer (
    stage text NOT NULL,
    mark  text NOT NULL
);

-- 1 while nothing may be changed. A sequence, since it is seen as it is by every transaction: one of
-- a caller's own may have a snapshot from before.
CREATE SEQUENCE shut AS smallint MINVALUE 0 START WITH 0;
