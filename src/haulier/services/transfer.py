"""Moving all that a store holds into another one, of whatever kind.

The order of the steps makes every moment a safe one to be broken off at: the source is frozen
before anything is read, the target does not serve until all is there and was compared, and the
source is marked as moved before the target opens. So no job can ever run in both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from haulier.domain.job import JobState
from haulier.domain.transfer import Mark, Section, Stage, Standing, Tally
from haulier.exceptions import JobStateError, JobTimeoutError, StoreCorruptError
from haulier.parts import Transferable
from haulier.ports import JobStore
from haulier.services.ids import new_id

Progress = Callable[[str, Section, int, int], None]
"""Told after each page: what is done (`copy` or `compare`), the section, records done, and all."""

LOOK_EVERY = 0.5
"""Seconds between two looks whether the last running jobs have finished."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy came to: what was inserted, and whether this run only ended an earlier one.

    `states` counts the jobs in each state. `kept`: the source was opened again.
    """

    tallies: Mapping[Section, Tally]
    states: Mapping[JobState, int]
    resumed: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class End:
    """One end of a copy: a store, and its URL as people may see it."""

    store: JobStore
    label: str

    @property
    def data(self) -> Transferable:
        """The part of the store that copies speak to."""
        return self.store.transferable()


async def copy(
    source: End,
    target: End,
    *,
    wait: float | None = None,
    keep_source: bool = False,
    progress: Progress = lambda *_: None,
) -> Copied:
    """Copy everything; the source is then marked as moved, or with `keep_source` open again.

    Goes on with a copy of the same two stores that was broken off. Raises JobStateError when the
    stores are not fit for it: the target is not empty, either takes part in another copy, or
    workers are still there. With `wait` no more jobs are given to these, and they have so many
    seconds to finish: JobTimeoutError. Raises StoreCorruptError if both do not hold the same in
    the end; the target is not opened then.
    """
    ours, theirs = await source.data.standing(), await target.data.standing()
    resumed = _is_unfinished(ours.mark, theirs.mark)
    if not resumed:
        _refuse_unfit(source, ours, target, theirs)
        await _drain(source, target, ours, wait)
        try:
            theirs = await _begin(source, target, theirs)
        except BaseException:
            await _give_jobs_again(source)
            raise
    mark = theirs.mark
    assert mark is not None
    if mark.stage is Stage.RECEIVING:
        mark = await _copy_pages(source, target, mark, progress)
        await _compare(source, target, mark, progress)
    await _end(source, target, mark, keep_source=keep_source)
    states = dict.fromkeys(JobState, 0)
    for (*_, state), count in (await target.store.counts()).items():
        states[state] += count
    return Copied(mark.tallies, states, resumed, keep_source)


async def thaw(end: End, *, force: bool = False) -> Stage | None:
    """Open a store again that a copy has marked; returns the stage that it was in.

    One that was being filled is emptied. Raises JobStateError for one that was moved, unless
    forced: its jobs are elsewhere too.
    """
    mark = (await end.data.standing()).mark
    if mark is None or mark.stage is Stage.RECEIVED:
        return None
    if mark.stage is Stage.MOVED and not force:
        raise JobStateError(
            f"{end.label} was moved to {mark.peer}: with both open, each job may run in both"
        )
    await end.data.thaw()
    return mark.stage


# ── Before ───────────────────────────────────────────────────────────────────────────────────


def _is_unfinished(ours: Mark | None, theirs: Mark | None) -> bool:
    """Whether two stores are in the middle of one copy, or at its end."""
    return (
        ours is not None
        and theirs is not None
        and ours.token == theirs.token
        and ours.stage in (Stage.FROZEN, Stage.MOVED)
        and theirs.stage in (Stage.RECEIVING, Stage.RECEIVED)
    )


_UNFIT_SOURCE = {
    Stage.FROZEN: "is being copied to {peer}: go on with that, or give it up with "
    "`haulier store thaw`",
    Stage.MOVED: "was moved to {peer}",
    Stage.RECEIVING: "holds an unfinished copy of {peer}: go on with that one",
}


def _refuse_unfit(source: End, ours: Standing, target: End, theirs: Standing) -> None:
    mark = ours.mark
    if mark is not None and mark.stage in _UNFIT_SOURCE:
        raise JobStateError(f"{source.label} {_UNFIT_SOURCE[mark.stage].format(peer=mark.peer)}")
    mark = theirs.mark
    if mark is not None and mark.stage in (Stage.DRAINING, Stage.FROZEN, Stage.MOVED):
        raise JobStateError(f"{target.label} is being moved to {mark.peer} itself, or was")
    if mark is not None and mark.stage is Stage.RECEIVING:
        if mark.source != ours.numbers.epoch:
            raise JobStateError(
                f"{target.label} holds an unfinished copy of {mark.peer}: go on with that, or "
                "throw it away with `haulier store thaw`"
            )
    elif ours.numbers.epoch == theirs.numbers.epoch:
        raise JobStateError(f"{source.label} and {target.label} are the same store")
    elif not theirs.empty:
        raise JobStateError(f"{target.label} is not empty: a store is copied into a new one")


async def _drain(source: End, target: End, ours: Standing, wait: float | None) -> None:
    """See to it that no worker holds a job."""
    # What lost workers have left is somebody's to finish, and not theirs.
    await source.store.sweep()
    if wait is not None:
        await _wait_for_workers(source, target, ours, wait)
        return
    workers = sum(worker.alive for worker in await source.store.workers())
    running = (await source.data.standing()).running
    if workers or running:
        raise JobStateError(
            f"{source.label} has {_many(workers, 'live worker')} and "
            f"{_many(running, 'running job')}: stop the workers first, or give the jobs time to "
            "finish with --wait SECONDS"
        )


async def _wait_for_workers(source: End, target: End, standing: Standing, wait: float) -> None:
    mark = Mark(
        stage=Stage.DRAINING,
        token=new_id(),
        peer=target.label,
        source=standing.numbers.epoch,
    )
    standing = await source.data.freeze(mark)
    try:
        async with asyncio.timeout(wait):
            while not standing.idle:
                await asyncio.sleep(LOOK_EVERY)
                await source.store.sweep()
                standing = await source.data.standing()
    except TimeoutError:
        await _give_jobs_again(source)
        raise JobTimeoutError(
            f"{_many(standing.running, 'job')} of {source.label} did not finish within {wait:g} s; "
            "workers are given jobs again"
        ) from None
    except BaseException:
        await _give_jobs_again(source)
        raise


async def _give_jobs_again(source: End) -> None:
    """End the draining of a store that is not to be copied now."""
    mark = (await source.data.standing()).mark
    if mark is not None and mark.stage is Stage.DRAINING:
        await source.data.thaw()


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


async def _begin(source: End, target: End, theirs: Standing) -> Standing:
    """Mark both; how the target stands then."""
    if theirs.mark is not None and theirs.mark.stage is Stage.RECEIVING:
        # Of an earlier copy that was given up: the source was open again since.
        await target.data.thaw()
    epoch = (await source.data.standing()).numbers.epoch
    receiving = Mark(
        stage=Stage.RECEIVING,
        token=new_id(),
        peer=source.label,
        source=epoch,
        section=next(iter(Section)),
    )
    # The target first: when the source is frozen, it is known what to go on with.
    theirs = await target.data.receive(receiving)
    if theirs.mark != receiving:
        raise JobStateError(f"{target.label} is not empty, or another copy has just begun")
    frozen = replace(receiving, stage=Stage.FROZEN, peer=target.label, section=None)
    ours = await source.data.freeze(frozen)
    if ours.mark != frozen:
        await target.data.thaw()
        raise JobStateError(f"{source.label} was used again just now: stop what works on it")
    return theirs


# ── The copy ─────────────────────────────────────────────────────────────────────────────────


async def _copy_pages(source: End, target: End, mark: Mark, progress: Progress) -> Mark:
    """Copy what is left; returns the target's mark then."""
    totals = (await source.data.standing()).totals
    while (section := mark.section) is not None:
        page = await source.data.read(section, mark.cursor)
        tally = mark.tallies.get(section, Tally()).plus(page.records)
        following = replace(
            mark,
            section=section.following if page.next is None else section,
            cursor=page.next,
            tallies={**mark.tallies, section: tally},
        )
        await target.data.advance(mark, following, page.records)
        mark = following
        progress("copy", section, tally.count, totals[section])
    return mark


async def _compare(source: End, target: End, mark: Mark, progress: Progress) -> None:
    """Read all that was inserted; raises StoreCorruptError if it is not what was read before."""
    totals = (await source.data.standing()).totals
    for section in Section:
        tally, cursor = Tally(), None
        while True:
            page = await target.data.read(section, cursor)
            tally = tally.plus(page.records)
            progress("compare", section, tally.count, totals[section])
            cursor = page.next
            if cursor is None:
                break
        meant = mark.tallies[section]
        if tally != meant or tally.count != totals[section]:
            raise StoreCorruptError(
                f"the copy in {target.label} is not what {source.label} holds: {totals[section]} "
                f"{section}, of which {meant.count} were read and {tally.count} are there, "
                f"digests {meant.digest:064x} and {tally.digest:064x}"
            )
    if await source.store.counts() != await target.store.counts():
        raise StoreCorruptError(f"{source.label} and {target.label} count their jobs differently")


async def _end(source: End, target: End, mark: Mark, *, keep_source: bool) -> None:
    """Let the target open, and the source not, or again."""
    ours = await source.data.standing()
    frozen = ours.mark
    assert frozen is not None
    if frozen.stage is Stage.MOVED and keep_source:
        raise JobStateError(
            f"{source.label} was moved already: to open it again too, `haulier store thaw`"
        )
    if frozen.stage is Stage.FROZEN and not keep_source:
        # Before the target opens, or for a moment each job could be had in both.
        await source.data.advance(frozen, replace(frozen, stage=Stage.MOVED))
    if mark.stage is Stage.RECEIVING:
        received = replace(mark, stage=Stage.RECEIVED)
        await target.data.advance(mark, received, numbers=ours.numbers)
    if keep_source:
        await source.data.thaw()
