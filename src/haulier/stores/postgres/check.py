"""A look at the health of a PostgreSQL store."""

from __future__ import annotations

import re
import time

from haulier.domain.finding import Finding
from haulier.domain.job import MICROSECOND
from haulier.domain.transfer import Section
from haulier.stores.checking import (
    copying,
    counters,
    ok,
    problem,
    skew,
    slots,
    under_way,
    waiting,
    warning,
)
from haulier.stores.codes import IN_LANE, PENDING
from haulier.stores.postgres import queries, transfer
from haulier.stores.postgres.connection import OLDEST_SERVER, Connection, Place
from haulier.stores.postgres.migrations import PROTOCOL, STEPS, step_text

NEWEST_SERVER = 18
"""The newest major version that the suite runs on."""

LONG_SNAPSHOT = 300.0
"""Seconds: rows that died since such an old snapshot cannot be cleaned away."""

MANY_DEAD = 100_000
CROWDED = 0.8

_OLDEST = f"""
SELECT min(at) FROM (
    SELECT min(run_at) AS at FROM jobs_live WHERE state = {PENDING} AND rank IS NOT NULL
    UNION ALL
    SELECT min(run_at) FROM jobs_live WHERE state = {PENDING} AND gate = {IN_LANE}
    UNION ALL
    SELECT min(run_at) FROM jobs_live
    WHERE state = {PENDING} AND rank IS NULL AND gate IS NULL
      AND run_at <= coalesce($1::bigint, clock_us())) o
"""
_SLOTS = """
WITH there AS (
    SELECT lane, count(*) AS n FROM jobs_live
    WHERE state = 1 AND worker IS NOT NULL AND lane IS NOT NULL GROUP BY lane),
counted AS (
    SELECT l.id, l.running - coalesce(
        (SELECT sum(ended) FROM lane_news n WHERE n.lane = l.id), 0) AS n FROM lanes l),
shared AS (
    SELECT s.used - coalesce((SELECT sum(freed) FROM slot_deltas d WHERE d.name = l.name), 0) AS n,
        (SELECT count(*) FROM jobs_live j
         WHERE j.state = 1 AND j.worker IS NOT NULL AND j.role NOT IN (1, 3)
           AND (l.queue IS NULL OR j.queue = l.queue) AND (l.kind IS NULL OR j.kind = l.kind))
            AS there
    FROM limits l JOIN slots s ON s.name = l.name
    WHERE NOT l.deleted AND l.concurrency IS NOT NULL)
SELECT (SELECT count(*) FROM limits WHERE NOT deleted),
    (SELECT coalesce(sum(n), 0)::bigint FROM there),
    (SELECT count(*) FROM there t FULL JOIN counted c ON c.id = t.lane
     WHERE coalesce(t.n, 0) <> coalesce(c.n, 0)) +
    (SELECT count(*) FROM shared WHERE n <> there)
"""
_WIRE = """
SELECT inet_server_addr() IS NULL,
    host(inet_client_addr()) IN ('127.0.0.1', '::1'),
    (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl)
"""
_RIGHTS = """
SELECT current_user,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
    has_schema_privilege(current_schema, 'CREATE') OR EXISTS (
        SELECT FROM pg_class c WHERE relnamespace = current_schema::regnamespace
        AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'USAGE'))
"""
_MISSING = """
SELECT format('%s on %s', p.privilege, c.relname)
FROM pg_class c, unnest(CASE WHEN c.relkind = 'S' THEN ARRAY['USAGE', 'SELECT', 'UPDATE']
    WHEN c.relname = 'store' THEN ARRAY['SELECT']
    ELSE ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'] END) p (privilege)
WHERE c.relnamespace = current_schema::regnamespace AND c.relkind IN ('r', 'p', 'S')
  AND NOT c.relispartition
  AND NOT CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, p.privilege)
               ELSE has_table_privilege(c.oid, p.privilege) END
ORDER BY 1
"""
_INDEXES = """
SELECT c.relname, i.indisvalid AND i.indisready
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = current_schema::regnamespace
"""
_DEAD = """
SELECT relname, n_dead_tup, n_live_tup FROM pg_stat_user_tables WHERE schemaname = current_schema
ORDER BY n_dead_tup DESC LIMIT 1
"""
_SIZE = """
SELECT sum(pg_total_relation_size(oid)) FROM pg_class
WHERE relnamespace = current_schema::regnamespace AND relkind = 'r'
"""
_SNAPSHOT = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
  AND backend_type <> 'autovacuum worker'
"""
_CONNECTIONS = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::integer
"""


async def look(connection: Connection, place: Place, now: int | None) -> list[Finding]:
    """All findings, in one moment of the store where they have to agree."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        counts, jobs = await queries.counts(connection), await connection.fetchval(_JOBS)
        limited = await connection.fetchrow(_SLOTS)
    standing = await transfer.standing(connection)
    oldest = await connection.fetchval(_OLDEST, now)
    at = now or time.time_ns() // 1000
    return [
        await _wire(connection),
        await _rights(connection),
        *await _server(connection, place),
        await _schema(connection),
        await _durability(connection),
        await _indexes(connection),
        *await _bloat(connection),
        await _clock(connection, now),
        counters(counts, jobs),
        slots(*limited),
        *waiting(counts, oldest, await queries.workers(connection, now), at),
        under_way(standing.under_way),
        copying(standing.mark),
    ]


_JOBS = f"SELECT count(*) FROM {transfer.TABLES[Section.JOBS]}"


async def touch(connection: Connection) -> None:
    """A commit that changes nothing, to see how long one takes."""
    await connection.execute("UPDATE history SET last = last")


# ── The server ───────────────────────────────────────────────────────────────────────────────


async def _wire(connection: Connection) -> Finding:
    by_socket, loopback, tls = await connection.fetchrow(_WIRE)
    if by_socket:
        return ok("connection", "a local socket")
    if tls:
        return ok("connection", f"TCP with {tls}")
    if loopback:
        return ok("connection", "TCP on this machine, in the clear")
    advice = (
        "give the URL sslmode=verify-full: jobs and the password's proof can be read on the way"
    )
    return warning("connection", "TCP in the clear to another machine", advice)


async def _rights(connection: Connection) -> Finding:
    role, superuser, may_change = await connection.fetchrow(_RIGHTS)
    missing = [row[0] for row in await connection.fetch(_MISSING)]
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        advice = "grant them (docs/stores.md): without, the work stops"
        return problem("rights", f"{role} lacks {shown}", advice)
    if superuser or may_change:
        what = f"{role} {'is a superuser' if superuser else 'can change the schema'}"
        return warning("rights", what, "let workers use a role that only reads and writes rows")
    return ok("rights", f"{role} reads and writes rows, and cannot change the schema")


async def _server(connection: Connection, place: Place) -> list[Finding]:
    major = connection.get_server_version().major
    version = await connection.fetchval("SHOW server_version")
    what = f"PostgreSQL {version}, {OLDEST_SERVER} to {NEWEST_SERVER} are supported"
    found = [
        ok("version", what)
        if major <= NEWEST_SERVER
        else warning("version", what, "nobody has tried this one: look for a newer haulier")
    ]
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        found.append(problem("role", "a standby", "use the URL of the primary"))
    used, most = await connection.fetchrow(_CONNECTIONS)
    what = f"{used} of {most} in use, at most {place.pool} and two more by each process of ours"
    if used > CROWDED * most:
        advice = "raise max_connections, put a pooler in between, or lower ?pool="
        found.append(warning("connections", what, advice))
    else:
        found.append(ok("connections", what))
    return found


async def _schema(connection: Connection) -> Finding:
    # An older one was brought up to date, and a newer one refused, when the store was opened.
    step, protocol = await connection.fetchrow("SELECT step, protocol FROM store")
    what = (
        f"step {step} of {STEPS[-1]}, serves workers from protocol {protocol}, ours is {PROTOCOL}"
    )
    return ok("schema", what)


async def _durability(connection: Connection) -> Finding:
    values = {
        name: await connection.fetchval(f"SHOW {name}")
        for name in ("synchronous_commit", "fsync", "full_page_writes")
    }
    what = ", ".join(f"{name}={value}" for name, value in values.items())
    if "off" in (values["fsync"], values["full_page_writes"]):
        return problem("durability", what, "a crash of the machine can damage all: turn them on")
    if values["synchronous_commit"] == "off":
        advice = "a crash loses what was acknowledged in the last half second: turn it on"
        return warning("durability", what, advice)
    return ok("durability", f"{what}: what was acknowledged is on the disk")


# ── The schema ───────────────────────────────────────────────────────────────────────────────


async def _indexes(connection: Connection) -> Finding:
    there = dict(tuple(row) for row in await connection.fetch(_INDEXES))
    missing = sorted(name for name in _meant() if not there.get(name))
    if not missing:
        return ok("indexes", f"all {len(_meant())} are there and valid")
    advice = "REINDEX what is invalid; for what is missing, copy the store into a new one"
    return problem("indexes", f"missing or not valid: {', '.join(missing)}", advice)


def _meant() -> set[str]:
    """The names of the indexes that the steps make."""
    texts = [step_text(number) for number in STEPS]
    return {name for text in texts for name in re.findall(r"CREATE (?:UNIQUE )?INDEX (\w+)", text)}


async def _bloat(connection: Connection) -> list[Finding]:
    size = int(await connection.fetchval(_SIZE))
    what = f"{size / 2**20:.0f} MiB"
    row = await connection.fetchrow(_DEAD)
    if row is not None:
        table, dead, live = row
        what += f"; {table} has {dead} dead rows beside {live}"
    found = [ok("bloat", what)]
    if row is not None and dead > MANY_DEAD and dead > 2 * live:
        found = [warning("bloat", what, f"VACUUM {table}, and see why autovacuum does not")]
    held = await connection.fetchval(_SNAPSHOT)
    if held > LONG_SNAPSHOT:
        what = f"the oldest open transaction is {held:.0f} s old"
        found.append(warning("snapshot", what, "end it: dead rows of the queue stay until then"))
    if await connection.fetchval("SHOW autovacuum") != "on":
        found.append(problem("autovacuum", "off", "turn it on: the queue grows without end"))
    return found


async def _clock(connection: Connection, now: int | None) -> Finding:
    if now is not None:
        return ok("clock", "the test's own")
    began = time.time()
    theirs = await connection.fetchval("SELECT clock_us()")
    ended = time.time()
    return skew(theirs / MICROSECOND - (began + ended) / 2, (ended - began) / 2)
