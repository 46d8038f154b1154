"""Proves from the log of a run, and from what the store tells at its end, that nothing went wrong.

The order of things is that of the store's events. What processes wrote down says whether each of
them is true, and what was wrong with a worker whose jobs were taken away. What a history must be
like in general is proved by the simulation's checker; here is what only real trouble brings.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from faults.log import Line
from haulier.domain.event import Event
from haulier.domain.job import Job, JobState
from haulier.domain.limits import Limit
from haulier.domain.moves import RULES, Move
from simulation.checker import batches_agree, counters_agree
from simulation.event_log import check_events
from simulation.history import Entry, Final, What, callbacks_of

LOST = {Move.LOSE, Move.LOSE_LAST}


@dataclass(slots=True)
class Report:
    """What a run came to. `findings` is empty when all is well.

    repeated: starts of a job beyond its first. taken: jobs that workers lost. lost: accepted, and
    without a fate. unexplained: jobs taken from workers that had no trouble, and starts without a
    claim of their own. steps: those that were finished. redone: of these, those done again. stalls:
    how often the machine let a process stand still. stale: writes under a lease that was over, and
    accepted. refused: those that were not, by the store and by the sink. released, again: seconds
    from a kill until each job was free, and claimed again. crowded: starts that a limit did not
    allow. fullest: the most jobs at once under each limit, of one key if it is per key.
    """

    jobs: int = 0
    kills: int = 0
    repeated: int = 0
    taken: int = 0
    lost: int = 0
    unexplained: int = 0
    stalls: int = 0
    stale: int = 0
    redone: int = 0
    crowded: int = 0
    steps: int = 0
    refused: int = 0
    released: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    fullest: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills over {self.jobs} jobs: {self.lost} lost, {self.unexplained} "
            f"unexplained duplicates, {self.stale} stale writes accepted; {self.repeated} repeated "
            f"starts, {self.taken} jobs of lost workers, {self.refused} stale writes refused, "
            f"{self.stalls} stalls; "
            f"{self.steps} steps finished, {self.redone} done again; "
            f"free again {_spread(self.released)}, "
            f"claimed again {_spread(self.again)}"
        )


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "never"
    p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
    return f"p50 {p50:.2f} s p99 {p99:.2f} s max {max(seconds):.2f} s"


def percentile(seconds: list[float], percent: int) -> float:
    """What so many percent of them do not exceed."""
    return sorted(seconds)[-(-len(seconds) * percent // 100) - 1]


def prove(lines: Sequence[Line], final: Final) -> Report:
    """All that can be said of a run."""
    run = _Run(lines, final)
    report = Report(jobs=len(final.jobs))
    report.kills = sum(line["what"] in ("kill", "crash") for line in lines)
    for name, found in (
        ("lost", run.losses()),
        ("unexplained", run.unexplained()),
        ("stale", run.stale()),
        ("redone", run.redone()),
        ("crowded", run.crowds()),
        (None, run.untold()),
        (None, check_events(run.entries, final)),
        (None, counters_agree(final)),
        (None, batches_agree(run.heads, final)),
    ):
        findings = list(found)
        report.findings += findings
        if name is not None:
            setattr(report, name, len(findings))
    report.fullest = run.fullest
    report.steps = len(run.passed)
    report.repeated = len(run.starts) - len({job for job, *_ in run.starts})
    report.refused = sum(line["what"] == "effect" and not line["accepted"] for line in lines)
    report.refused += sum(entry.ok is False for entry in run.entries)
    report.stalls = sum(line["what"] == "stall" for line in lines)
    report.taken = sum(event.type in LOST for event in run.events)
    run.measure(report)
    return report


class _Run:
    """The lines and the events of one run, by what they are about."""

    def __init__(self, lines: Sequence[Line], final: Final) -> None:
        self.final = final
        self.events = list(final.events or ())
        self.accepted: set[str] = set()
        self.heads: set[str] = set()
        self.entries: list[Entry] = []
        self.starts: list[tuple[str, int, str]] = []
        self.ended: set[tuple[str, int]] = set()
        self.pid_of: dict[str, int] = {}
        self.struck: dict[int, list[int]] = defaultdict(list)
        # Events are stamped by the wall clock of this machine, lines by the monotonic one.
        self._offset = time.time_ns() // 1000 - time.monotonic_ns() // 1000
        self.trouble: list[tuple[int | None, int, int]] = []
        self.effects: list[tuple[str, int, bool]] = []
        self.passed: dict[tuple[str, int], int] = {}
        self.again: list[tuple[str, int, int]] = []
        self.limits: list[Limit] = []
        self.fullest: dict[str, int] = {}
        self.spans: dict[tuple[str, int], Line] = {}
        self.over: dict[tuple[str, int], int] = {}
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        match line["what"]:
            case "enqueue":
                self._enqueued(line)
            case "enlist":
                self.pid_of[line["worker"]] = line["by"]
            case "start":
                self._started(line)
            case "end" | "halted":
                self._ended(line)
            case "limit":
                self.limits.append(Limit.from_json(line["limit"]))
            case "hand_in":
                self._handed_in(line)
            case "effect":
                self.effects.append((line["job"], line["lease"], line["accepted"]))
            case "did" | "passed":
                self._stepped(line)
            case _:
                self._troubled(line)

    def _started(self, line: Line) -> None:
        job, lease, worker = line["job"], line["lease"], line["worker"]
        self.starts.append((job, lease, worker))
        self.spans[job, lease] = line
        self.entries.append(Entry(What.CLAIM, job, worker=worker, lease=lease))

    def _ended(self, line: Line) -> None:
        place = line["job"], line["lease"]
        self.over.setdefault(place, self._wall(line["at"]))
        if line["what"] == "end":
            self.ended.add(place)

    def _troubled(self, line: Line) -> None:
        match line["what"]:
            case "kill" | "stop" | "crash":
                self.struck[line.get("pid", line["by"])].append(self._wall(line["at"]))
            case "trouble" | "stall":
                span = self._wall(line["since"]), self._wall(line["until"])
                self.trouble.append((line.get("pid"), *span))

    def _stepped(self, line: Line) -> None:
        job, step, lease = line["job"], line["step"], line["lease"]
        if line["what"] == "passed":
            self.passed.setdefault((job, step), lease)
        # One that was given up may not know yet that others went on.
        elif (job, step) in self.passed and lease >= self.passed[job, step]:
            self.again.append((job, step, lease))

    def _handed_in(self, line: Line) -> None:
        for job, lease, move in line["moves"]:
            entry = Entry(What.FINISH, job, line["ok"], lease=lease, move=Move(move))
            self.entries.append(entry)

    def _enqueued(self, line: Line) -> None:
        self.heads.update(line["heads"])
        for job, batch in line["jobs"]:
            self.accepted |= {job} if line["ok"] else set()
            back = job in line["heads"]
            self.entries.append(Entry(What.ENQUEUE, job, line["ok"], batch, calls_back=back))

    def _wall(self, monotonic: int) -> int:
        return monotonic + self._offset

    # ── Findings ─────────────────────────────────────────────────────────────────────────────

    def losses(self) -> Iterator[str]:
        """What was accepted is there, each in a final state that a worker brought it to."""
        asked = {entry.job for entry in self.entries if entry.what is What.ENQUEUE}
        callbacks = {job for jobs in callbacks_of(self.final).values() for job in jobs}
        deleted = {event.job_id for event in self.events if event.type == "delete"}
        for job_id in self.accepted - self.final.jobs.keys() - deleted:
            yield f"job {job_id}: accepted and lost"
        for job_id, job in self.final.jobs.items():
            if job_id not in asked | callbacks:
                yield f"job {job_id}: there, but nobody enqueued it"
            if not job.state.final:
                yield f"job {job_id}: still {job.state} at the end"
            if _by_worker(job) and (job_id, job.lease) not in self.ended:
                yield f"job {job_id}: completed under {job.lease}, which never came to its end"

    def unexplained(self) -> Iterator[str]:
        """No claim is run twice, and no job is taken from a worker without a reason."""
        for (job, lease, _), times in Counter(self.starts).items():
            if times > 1:
                yield f"job {job}: started {times} times under the lease {lease}"
        for event in self.events:
            if event.type in LOST and not self._excused(event):
                later = self.struck[self.pid_of.get(event.worker or "", 0)]
                why = "before it was struck" if later else "which had no trouble"
                yield f"job {event.job_id}: taken at event {event.seq} from {event.worker}, {why}"

    def _excused(self, event: Event) -> bool:
        if self._struck(event) is not None:
            return True
        pid = self.pid_of.get(event.worker or "")
        return any(
            whose in (None, pid) and begin <= event.at <= end for whose, begin, end in self.trouble
        )

    def _struck(self, event: Event) -> int | None:
        """When the worker of a loss was struck last, before that loss."""
        strikes = self.struck[self.pid_of.get(event.worker or "", 0)]
        return max((strike for strike in strikes if strike <= event.at), default=None)

    def stale(self) -> Iterator[str]:
        """The store took nothing under a lease that was over, nor did the sink."""
        over = {(event.job_id, event.lease) for event in self.events if event.type in LOST}
        ended = {
            (event.job_id, event.lease - RULES[Move(event.type)].lease)
            for event in self.events
            if event.type in RULES and JobState.RUNNING in RULES[Move(event.type)].sources
        }
        for entry in self.entries:
            if entry.what is not What.FINISH:
                continue
            place = entry.job, entry.lease
            if entry.ok and place in over:
                yield f"job {entry.job}: {entry.move} accepted under {entry.lease}, which was lost"
            if entry.ok is False and place not in ended:
                yield f"job {entry.job}: {entry.move} refused under its own lease {entry.lease}"
        yield from self._stale_effects()

    def redone(self) -> Iterator[str]:
        """What a job has passed once, no later claim of it does again."""
        for job, step, lease in self.again:
            yield f"job {job}: step {step} done under {lease}, finished before"

    def crowds(self) -> Iterator[str]:
        """At no moment do more jobs run than a limit allows, by what they wrote down themselves.

        One that is killed, or whose end was not written down, has ended when its process was
        struck, or when the store took it for ended.
        """
        over = dict(self.over)
        for event in self.events:
            if event.type in RULES and JobState.RUNNING in RULES[Move(event.type)].sources:
                place = event.job_id, event.lease
                over[place] = min(over.get(place, event.at), event.at)
        for place, line in self.spans.items():
            begun = self._wall(line["at"])
            told = [at for at in self.struck[line["by"]] if at >= begun]
            told += [over[place]] if place in over else []
            over[place] = min(told, default=begun)
        for limit in self.limits:
            yield from self._crowd(limit, over)

    def _crowd(self, limit: Limit, over: dict[tuple[str, int], int]) -> Iterator[str]:
        marks: list[tuple[int, int, str | None, str]] = []
        for (job, lease), line in self.spans.items():
            key = line["key"] if limit.per_key else None
            if limit.concerns(line["queue"], line["kind"]) and (key or not limit.per_key):
                marks.append((self._wall(line["at"]), 1, key, job))
                marks.append((over[job, lease], -1, key, job))
        assert limit.concurrency is not None
        running: Counter[str | None] = Counter()
        # Of what happens at the same time, ends come first.
        for at, change, key, job in sorted(marks, key=lambda mark: mark[:2]):
            running[key] += change
            if running[key] > limit.concurrency and change > 0:
                place = f"number {running[key]} under {limit.name} ({key})"
                yield f"job {job}: began at {at} as {place}"
            self.fullest[limit.name] = max(self.fullest.get(limit.name, 0), running[key])

    def _stale_effects(self) -> Iterator[str]:
        highest: dict[str, int] = {}
        for job, lease, accepted in self.effects:
            if accepted and lease < highest.get(job, 0):
                yield f"job {job}: an effect under {lease} accepted after one under {highest[job]}"
            elif accepted:
                highest[job] = lease

    def untold(self) -> Iterator[str]:
        """Effects under each lease come from its own start, and leases rise."""
        begun = {(job, lease) for job, lease, _ in self.starts}
        for job, lease, _ in self.effects:
            if (job, lease) not in begun:
                yield f"job {job}: an effect under {lease}, which never started"

    # ── Figures ──────────────────────────────────────────────────────────────────────────────

    def measure(self, report: Report) -> None:
        """How long jobs of killed workers were away; later losses wait longer on purpose."""
        freed: dict[str, int] = {}
        before: Counter[str] = Counter()
        for event in self.events:
            if event.type in LOST:
                before[event.job_id] += 1
                struck = self._struck(event)
                if struck is not None:
                    report.released.append((event.at - struck) / 1e6)
                    if before[event.job_id] == 1:
                        freed[event.job_id] = struck
            elif event.type == Move.CLAIM and event.job_id in freed:
                report.again.append((event.at - freed.pop(event.job_id)) / 1e6)


def _by_worker(job: Job) -> bool:
    return job.state is JobState.COMPLETED and not job.role.heads
