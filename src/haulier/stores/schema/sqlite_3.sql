-- The SQLite store, schema step 3: the mark of a copy from or into this store.

-- At most one row. `stage` stands apart from the rest of the mark, because every write asks for it.
CREATE TABLE transfer (
    stage TEXT NOT NULL,
    mark  TEXT NOT NULL
) STRICT;
