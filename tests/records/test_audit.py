"""The audit log: one chain, whoever appends, and every tampering found."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from haulier.exceptions import StoreError
from haulier.records import open_records
from haulier.records.auditing import AuditLog
from haulier.services.audit import FIRST, Actor, Entry

ANN = Actor("ann", "token:1", "192.0.2.7", "r-1")


def entries(number):
    return [
        Entry(ANN, "POST /jobs", {"id": str(each), "deep": ["\u00e9", None]}, 201)
        for each in range(number)
    ]


@pytest.fixture
def log(records):
    return AuditLog(records)


async def execute(records, *statements):
    async def work(db):
        for statement in statements:
            await db.execute(text(statement))

    await records.write(work)


async def without_triggers(records, *statements):
    """What somebody does who may change the tables as well."""
    if records.place.shown.startswith("postgres"):
        drop = ["DROP TRIGGER audit_stays ON audit"]
    else:
        drop = ["DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete"]
    await execute(records, *drop, *statements)


async def test_what_was_appended_is_read_again_the_latest_first(log):
    made = entries(5)
    await log.append(made[:3])
    await log.append(made[3:])
    found = await log.latest(10)
    assert [each.entry for each in found] == made[::-1]
    assert [each.seq for each in found] == [5, 4, 3, 2, 1]
    assert [each.seq for each in await log.latest(2, before=4)] == [3, 2]


async def test_a_log_is_sound_also_when_it_is_empty_or_long(log):
    verdict = await log.verify()
    assert (verdict.seq, verdict.digest, verdict.fault) == (0, FIRST, None)
    await log.append(entries(2500))
    verdict = await log.verify()
    assert (verdict.seq, verdict.fault) == (2500, None)
    assert (await log.verify((verdict.seq, verdict.digest))).fault is None


async def test_many_that_append_at_once_make_one_chain(shared_url):
    async with open_records(shared_url) as one, open_records(shared_url) as other:
        logs = [AuditLog(one), AuditLog(other)]
        await asyncio.gather(*(logs[n % 2].append(entries(3)) for n in range(20)))
        assert (await logs[0].verify()).fault is None
        assert len(await logs[0].latest(100)) == 60


async def test_it_can_be_verified_while_others_append(shared_url):
    async with open_records(shared_url) as one, open_records(shared_url) as other:
        writer, reader = AuditLog(one), AuditLog(other)
        await writer.append(entries(1500))

        async def go_on():
            for _ in range(20):
                await writer.append(entries(1))

        async with asyncio.TaskGroup() as group:
            task = group.create_task(go_on())
            while not task.done():
                assert (await reader.verify()).fault is None


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET who = 'bob'", "DELETE FROM audit WHERE seq = 2"]
)
async def test_the_database_itself_refuses_to_change_it(records, log, statement):
    await log.append(entries(3))
    with pytest.raises((StoreError, DBAPIError), match="append-only"):
        await execute(records, statement)
    assert (await log.verify()).fault is None


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (f"UPDATE audit SET {change} WHERE seq = 3", "entry 3 was changed")
        for change in (
            "who = 'bob'",
            "at = at + 1",
            "credential = 'local'",
            "source = 'x'",
            "action = 'x'",
            "target = '{}'",
            "status = 500",
            "request = NULL",
            "digest = (SELECT digest FROM audit WHERE seq = 2)",
        )
    ]
    + [
        ("DELETE FROM audit WHERE seq = 3", "entry 3 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "entry 1 is missing"),
        ("DELETE FROM audit WHERE seq = 6", "ends with entry 5"),
        ("DELETE FROM audit", "ends with entry 0"),
        ("UPDATE audit_head SET digest = (SELECT digest FROM audit WHERE seq = 2)", "its end"),
    ],
)
async def test_tampering_is_found(records, log, statement, fault):
    await log.append(entries(6))
    await without_triggers(records, statement)
    assert fault in (await log.verify()).fault


async def test_two_entries_that_were_swapped_are_found(records, log):
    await log.append(entries(6))
    await without_triggers(
        records,
        "UPDATE audit SET seq = 99 WHERE seq = 3",
        "UPDATE audit SET seq = 3 WHERE seq = 4",
        "UPDATE audit SET seq = 4 WHERE seq = 99",
    )
    assert "entry 3" in (await log.verify()).fault


async def test_a_log_that_was_written_anew_is_found_by_what_was_kept_elsewhere(records, log):
    await log.append(entries(6))
    before = await log.verify()
    made = [dataclasses.replace(each, status=200) for each in entries(6)]
    zero = "zeroblob(32)" if "postgres" not in records.place.shown else f"'\\x{'00' * 32}'"
    await without_triggers(
        records, "DELETE FROM audit", f"UPDATE audit_head SET seq = 0, digest = {zero}"
    )
    await log.append(made)
    assert (await log.verify()).fault is None
    assert "expected" in (await log.verify((before.seq, before.digest))).fault
    assert "should have 7" in (await log.verify((7, before.digest))).fault
