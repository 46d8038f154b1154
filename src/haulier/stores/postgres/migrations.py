"""The schema: numbered steps for tables, then functions; made by whoever first opens the store."""

from __future__ import annotations

from importlib import resources

from haulier.exceptions import ConfigurationError
from haulier.services.urls import nothing_at
from haulier.stores.postgres.connection import OLDEST_SERVER, Connection, Place

PROTOCOL = 1
"""What workers and the functions of the schema say to each other; a step that breaks it raises the
lowest one that the store accepts."""

STEPS = (1, 10, 11, 12, 14, 15)
"""The steps that change tables and types; each runs once, in its turn. The numbers left out changed
functions alone."""

FUNCTIONS = (
    "settling",
    "moving",
    "flows",
    "claiming",
    "lanes",
    "admitting",
    "drawing",
    "limits",
    "breakers",
    "inserting",
    "bulk",
    "configuring",
    "control",
    "altering",
    "nesting",
    "draining",
    "upkeep",
    "keeping",
    "transfer",
    "enqueue",
)
"""Files of functions. All are made anew with every step, so that each stands in one place, as it is
now. One that gets another argument is dropped by a step; when producers or workers of an older
release call it, the argument has a default."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('haulier schema ' || $1, 0))"

# IF NOT EXISTS would ask for the right to create schemas even where an administrator made it.
_HAS_SCHEMA = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"

_VERBS = (
    "exchange",
    "configure",
    "insert_jobs",
    "begin_rows",
    "end_rows",
    "seal",
    "cancel_jobs",
    "requeue_jobs",
    "begin_retry",
    "switch_batch",
    "alter_batch",
    "delete_job",
    "drain_batch",
    "end_worker",
    "put_back",
    "follow_flows",
    "lock_parents",
    "add_edges",
    "note",
    "keep_steps",
    "keep_lines",
    "number_events",
    "prune_jobs",
    "prune_results",
    "prune_rest",
    "prune_lanes",
    "tell_new_lanes",
    "enqueue",
)

# Whoever calls them, verbs run with the store's own schema as their search path, and with plans for
# tables that grow from nothing to millions of rows within minutes, more quickly than statistics
# follow: always by an index, row by row. What they call inherits that, and need not set it again,
# which costs several microseconds for each call of a function.
_SETTINGS = """
DO $$
DECLARE
    f record;
    setting text;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS id, p.proname AS name
             FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
             WHERE p.pronamespace = current_schema()::regnamespace AND l.lanname = 'plpgsql'
    LOOP
        CONTINUE WHEN f.name <> ALL ('{VERBS}');
        EXECUTE format('ALTER FUNCTION %s SET search_path FROM CURRENT', f.id);
        FOREACH setting IN ARRAY ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin',
                                       'enable_bitmapscan', 'enable_hashagg', 'jit']
        LOOP
            EXECUTE format('ALTER FUNCTION %s SET %s = off', f.id, setting);
        END LOOP;
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_generic_plan', f.id);
    END LOOP;
END $$
""".replace("VERBS", ",".join(_VERBS))


async def prepare(place: Place, connection: Connection, *, create: bool = True) -> None:
    """Bring the store to the newest step. A store that is there already is only looked at.

    Raises ConfigurationError for a server that is too old or a store that is too new; without
    `create` also where there is none.
    """
    if connection.get_server_version().major < OLDEST_SERVER:
        raise ConfigurationError(
            f"the store {place.shown} is PostgreSQL {connection.get_server_version().major}; "
            f"haulier needs {OLDEST_SERVER} or later"
        )
    step = await _step(place, connection)
    if step >= STEPS[-1]:
        return
    if step == 0 and not create:
        raise nothing_at(f"{place.shown} (schema {place.schema})")
    async with connection.transaction():
        await connection.execute(_LOCK, place.schema)
        # Another process may just have done it.
        step = await _step(place, connection)
        if step >= STEPS[-1]:
            return
        if step == 0 and not await connection.fetchval(_HAS_SCHEMA, place.schema):
            await connection.execute(f'CREATE SCHEMA "{place.schema}"')
        await connection.execute(f'SET LOCAL search_path = "{place.schema}", pg_temp')
        for number in STEPS:
            if number > step:
                await connection.execute(step_text(number))
        for name in FUNCTIONS:
            await connection.execute(_text(name))
        await connection.execute(_SETTINGS)
        await connection.execute("DELETE FROM store")
        await connection.execute(
            "INSERT INTO store (step, protocol) VALUES ($1, $2)", STEPS[-1], PROTOCOL
        )


def step_text(number: int) -> str:
    """What a step does, as SQL."""
    return _text(f"step_{number:02}")


def _text(name: str) -> str:
    files = resources.files("haulier.stores.schema")
    return files.joinpath("postgres", f"{name}.sql").read_text("utf-8")


async def _step(place: Place, connection: Connection) -> int:
    """How far the schema is; 0 when there is none."""
    # Asked for first, as an error would end the transaction; and of the catalog itself: what
    # to_regclass says may be as old as the wait for the lock.
    there = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND c.relname = 'store')",
        place.schema,
    )
    if not there:
        return 0
    row = await connection.fetchrow(f'SELECT step, protocol FROM "{place.schema}".store')
    if row is None:
        return 0
    step, protocol = row
    if protocol > PROTOCOL:
        raise ConfigurationError(
            f"the store {place.shown} (schema step {step}) serves protocol {protocol} and later, "
            f"this haulier speaks {PROTOCOL}: upgrade haulier"
        )
    return int(step)
