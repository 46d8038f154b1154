"""Looks at every key of a Redis store: none that the key map does not know, nothing orphaned."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import redis

from haulier.stores.codes import (
    ALONE,
    CANCELLED,
    COMPLETED,
    FAILED,
    HEAD,
    INNER,
    ITEM,
    LET_IN,
    PARKED,
    PENDING,
    RUNNING,
    SINGLE,
    STATES,
    WAITING,
)
from haulier.stores.redis.keys import escaped, family_of, unescaped

COUNTERS = ("total", *STATES)
PERIOD = 2


class Keyspace:
    """All that lies behind one prefix."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client = client
        self.prefix = prefix
        names = sorted(client.scan_iter(match=f"{prefix}*", count=1000))
        self.all = [name.removeprefix(prefix) for name in names]
        types = dict(zip(self.all, self.each("type", self.all), strict=True))
        # The health of a worker may have expired between two questions.
        self.types = {name: kind for name, kind in types.items() if kind != "none"}
        self.all = list(self.types)
        self.jobs = self.hashes("job:")
        self.batches = self.hashes("batch:")
        self.workers = {
            name: row for name, row in self.hashes("worker:").items() if ":" not in name
        }

    def each(self, command: str, names: list[str], *args: Any) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            getattr(pipe, command)(self.prefix + name, *args)
        return pipe.execute()

    def hashes(self, start: str) -> dict[str, dict[str, str]]:
        names = [n for n in self.all if n.startswith(start) and self.types[n] == "hash"]
        rows = self.each("hgetall", names)
        return {name.removeprefix(start): row for name, row in zip(names, rows, strict=True)}

    def members(self, name: str) -> dict[str, None]:
        return dict.fromkeys(self.client.zrange(self.prefix + name, 0, -1))

    def under(self, start: str) -> dict[str, dict[str, None]]:
        """The sorted sets of one family: by what follows `start`, their members."""
        names = [name for name in self.all if name.startswith(start)]
        found = self.each("zrange", names, 0, -1)
        return {
            name.removeprefix(start): dict.fromkeys(members)
            for name, members in zip(names, found, strict=True)
        }

    def clear(self) -> None:
        for start in range(0, len(self.all), 1000):
            self.client.unlink(*(self.prefix + name for name in self.all[start : start + 1000]))


def check(keys: Keyspace) -> None:
    """Assert that all keys belong together."""
    for name in keys.all:
        family = family_of(name)
        assert family is not None, f"{name} is not in the key map"
        assert keys.types[name] == family.type, f"{name} is a {keys.types[name]}"
    history = keys.client.hgetall(keys.prefix + "history")
    if history.get("stage") == "receiving":
        # A copy that is not complete: the rest is still to come.
        return
    _check_indexes(keys)
    _check_lines(keys)
    _check_lanes(keys)
    _check_limits(keys)
    _check_flows(keys)
    _check_batches(keys)
    _check_workers(keys)
    _check_names(keys)
    _check_counts(keys)
    _check_schedules(keys)
    last = keys.client.xrevrange(keys.prefix + "events", count=1)
    assert not last or last[0][0] == f"{history['last']}-0"


def _num(row: dict[str, str], name: str) -> int:
    return int(row.get(name, 0))


def _place(job_id: str, row: dict[str, str]) -> str:
    return f"{int(row['seq']):015d}:{job_id}"


def _of(keys: Keyspace, *, states: tuple[int, ...] = (), roles: tuple[int, ...] = ()) -> set[str]:
    return {
        job_id
        for job_id, row in keys.jobs.items()
        if (not states or _num(row, "state") in states)
        and (not roles or _num(row, "role") in roles)
    }


def _check_indexes(keys: Keyspace) -> None:
    top = (SINGLE, HEAD)
    assert keys.members("below").keys() == _of(keys, roles=(ITEM, INNER))
    assert keys.members("top").keys() == _of(keys, roles=top)
    assert keys.members("dead").keys() == _of(keys, states=(FAILED,))
    finished: dict[str, set[str]] = defaultdict(set)
    results: dict[str, set[str]] = defaultdict(set)
    for job_id in _of(keys, states=(COMPLETED, FAILED, CANCELLED), roles=top):
        row = keys.jobs[job_id]
        finished[f"{row['state']}:{row['kind']}"].add(job_id)
        done = (_num(row, "state"), _num(row, "role")) == (COMPLETED, SINGLE)
        if done and row.get("result", "null") != "null":
            results[row["kind"]].add(job_id)
    assert {name: set(ids) for name, ids in keys.under("finished:").items()} == finished
    assert {name: set(ids) for name, ids in keys.under("results:").items()} == results
    for name in keys.all:
        family, _, job_id = name.partition(":")
        if family in ("errors", "steps", "lines", "edges"):
            assert job_id in keys.jobs, f"{name} is orphaned"
    beside = {n.removeprefix("payload:") for n in keys.all if n.startswith("payload:")}
    assert beside == {job_id for job_id, row in keys.jobs.items() if "payload" not in row}


def _check_lines(keys: Keyspace) -> None:
    """Every pending job stands in exactly one place, and nobody else does."""
    standing: Counter[str] = Counter()
    for line, places in keys.under("ready:").items():
        for place in places:
            row = keys.jobs[place[16:]]
            assert [unescaped(part) for part in line.split(":")] == [row["queue"], row["kind"]]
            assert _num(row, "gate") in (0, LET_IN)
            standing[place] += 1
    for batch, places in keys.under("parked:").items():
        for place in places:
            assert keys.jobs[place[16:]]["batch"] == batch
            assert _num(keys.jobs[place[16:]], "gate") == PARKED
            standing[place] += 1
    for lane, places in keys.under("lane:").items():
        for place in places:
            assert _lane_of(keys.jobs[place[16:]]) == lane
            assert _num(keys.jobs[place[16:]], "gate") == 0
            standing[place] += 1
    for name, gate in (("scheduled", 0), ("alone", ALONE)):
        for job_id in keys.members(name):
            row = keys.jobs[job_id]
            assert _num(row, "gate") == gate
            standing[_place(job_id, row)] += 1
    pending = {
        _place(job_id, keys.jobs[job_id])
        for job_id in _of(keys, states=(PENDING,))
        if _num(keys.jobs[job_id], "gate") != WAITING
    }
    assert standing == Counter(pending)


def _lane_of(row: dict[str, str]) -> str:
    line = ":".join(map(escaped, (row["queue"], row["kind"])))
    if _num(row, "role") in (HEAD, INNER):
        return f"{line}:head:"
    return f"{line}:{row.get('batch', '')}:{row.get('key', '')}"


def _check_lanes(keys: Keyspace) -> None:
    """Every lane has a turn, and is open or closed for one reason."""
    there = {name.removeprefix("lane:") for name in keys.all if name.startswith("lane:")}
    assert set(keys.client.hgetall(keys.prefix + "turns")) == there
    standing: Counter[str] = Counter()
    for line, names in keys.under("open:").items():
        assert all(":".join(name.split(":", 2)[:2]) == line for name in names)
        standing.update(list(names))
    held = [
        start + key
        for key, starts in keys.client.hgetall(keys.prefix + "held").items()
        for start in starts.split("\0")
    ]
    assert sorted([*keys.members("waits"), *keys.members("again")]) == sorted(held)
    standing.update(held)
    for batch, names in keys.under("shut:").items():
        assert all(name.split(":", 3)[2] == batch for name in names)
        standing.update(list(names))
    assert standing == Counter(list(there))


def _check_limits(keys: Keyspace) -> None:
    """What counts against limits is what runs."""
    texts = keys.client.hgetall(keys.prefix + "limits")
    told = {name: json.loads(text) for name, text in texts.items() if text}
    described = {name.removeprefix("limit:") for name in keys.all if name.startswith("limit:")}
    assert described == texts.keys()
    for name in keys.all:
        family, _, of = name.partition(":")
        if family in ("used", "rest", "circuit"):
            assert of in told, f"{name} is orphaned"
    for name, limit in told.items():
        used = keys.client.hgetall(f"{keys.prefix}used:{name}")
        if "breaker" in limit:
            circuits = keys.client.hgetall(f"{keys.prefix}circuit:{name}")
            assert circuits.keys() == keys.members(f"rest:{name}").keys()
        counts: Counter[str] = Counter()
        if "concurrency" in limit or limit["per_key"]:
            for job_id in _of(keys, states=(RUNNING,), roles=(SINGLE, ITEM)):
                row = keys.jobs[job_id]
                if all(limit.get(each) in (None, row[each]) for each in ("queue", "kind")):
                    at = row.get("key") if limit["per_key"] else ""
                    if at is not None:
                        counts[at] += 1
        assert {at: int(n) for at, n in used.items()} == counts, name


def _check_flows(keys: Keyspace) -> None:
    """Every edge is known to both its ends, and who waits has one that is open."""
    children: dict[str, set[str]] = defaultdict(set)
    untold: dict[str, set[str]] = defaultdict(set)
    for child, edges in keys.hashes("edges:").items():
        row = keys.jobs[child]
        open_ones = {parent for parent, edge in edges.items() if edge.endswith(":")}
        assert _num(row, "waits") == len(open_ones), child
        waits = _num(row, "state") == PENDING and _num(row, "gate") == WAITING
        assert waits == (_num(row, "state") == PENDING and bool(open_ones)), child
        for parent in edges:
            children[parent].add(child)
        for parent in open_ones:
            untold[parent].add(child)
    assert {name: set(ids) for name, ids in keys.under("children:").items()} == children
    assert {name: set(ids) for name, ids in keys.under("untold:").items()} == untold
    assert keys.hashes("end:").keys() <= children.keys()
    for parent in untold.keys() & keys.jobs.keys():
        assert _num(keys.jobs[parent], "children") == 1, parent


def _check_batches(keys: Keyspace) -> None:
    assert keys.members("batches").keys() == _of(keys, roles=(HEAD,))
    assert keys.members("nested").keys() == _of(keys, roles=(INNER,))
    assert keys.batches.keys() == _of(keys, roles=(HEAD, INNER))
    items: dict[str, dict[str, set[str]]] = {
        name: defaultdict(set) for name in ("items", "active", "failed")
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    let_in: Counter[str] = Counter()
    for job_id, row in keys.jobs.items():
        batch = row.get("batch")
        if batch is None:
            continue
        assert batch in keys.batches, f"item {job_id} is orphaned"
        state = _num(row, "state")
        items["items"][batch].add(job_id)
        if state == RUNNING and "worker" in row:
            items["active"][batch].add(job_id)
        if state == FAILED:
            items["failed"][batch].add(job_id)
        counts[batch].update(["total", STATES[state]])
        let_in[batch] += state == PENDING and _num(row, "gate") == LET_IN
    for name, expected in items.items():
        assert {batch: set(ids) for batch, ids in keys.under(f"{name}:").items()} == expected, name
    for batch, row in keys.batches.items():
        if _num(row, "draining") not in (3, 6):
            # Those of a batch that is being deleted go with it.
            for name in COUNTERS:
                assert _num(row, name) == counts[batch][name], (batch, name)
        assert _num(row, "let_in") == let_in[batch]
    for name in ("gated", "draining"):
        assert keys.client.smembers(keys.prefix + name) <= keys.batches.keys()


def _check_workers(keys: Keyspace) -> None:
    held: dict[str, set[str]] = defaultdict(set)
    asked: dict[str, set[str]] = defaultdict(set)
    for job_id in _of(keys, states=(RUNNING,)):
        row = keys.jobs[job_id]
        if "worker" in row:
            held[row["worker"]].add(job_id)
            if _num(row, "cancel"):
                asked[row["worker"]].add(job_id)
    assert {worker: set(ids) for worker, ids in keys.under("running:").items()} == held
    cancels = {
        name.removeprefix("cancels:"): keys.client.smembers(keys.prefix + name)
        for name in keys.all
        if name.startswith("cancels:")
    }
    assert cancels == asked
    assert keys.members("workers").keys() == keys.workers.keys()
    ended = {worker for worker, row in keys.workers.items() if "ended" in row}
    assert keys.members("ended").keys() == ended
    holding = {worker for worker in ended if worker in held}
    assert keys.members("alive").keys() == (keys.workers.keys() - ended) | holding
    for name, left in zip(keys.all, keys.each("pttl", keys.all), strict=True):
        # One that expired meanwhile is gone.
        assert left == -2 or (left >= 0) == name.startswith("worker:health:"), name


def _check_names(keys: Keyspace) -> None:
    periods = set()
    for name, holder in keys.client.hgetall(keys.prefix + "uniques").items():
        job_id, scope, until, _ = holder.split("|", 3)
        if int(scope) == PERIOD:
            assert until
            periods.add(name)
            continue
        assert not until
        assert job_id in keys.jobs, f"the name {name} is orphaned"
        assert _num(keys.jobs[job_id], "state") in (PENDING, RUNNING)
        assert name in [own for own, _ in json.loads(keys.jobs[job_id]["uniq"])]
    assert keys.members("periods").keys() == periods


def _check_counts(keys: Keyspace) -> None:
    expected = Counter(
        (row["queue"], row["kind"], str(_num(row, "role")), row["state"])
        for row in keys.jobs.values()
    )
    found = keys.client.hgetall(keys.prefix + "counts")
    told = {tuple(map(unescaped, field.split(":"))): int(n) for field, n in found.items()}
    assert told == expected


def _check_schedules(keys: Keyspace) -> None:
    schedules = keys.hashes("schedule:")
    assert keys.members("schedules").keys() == schedules.keys()
    assert keys.members("ticking").keys() == {n for n, row in schedules.items() if "next" in row}
    ticked = {}
    for name, ticks in keys.under("ticks:").items():
        assert name in schedules, f"the ticks of {name} are orphaned"
        for tick, *_, job in map(str.split, ticks):
            if job != "-":
                ticked[job] = f"{name} {tick}"
    assert keys.client.hgetall(keys.prefix + "ticked") == ticked
