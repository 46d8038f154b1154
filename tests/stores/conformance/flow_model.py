"""Any flow, any outcomes: every job ends as a pure model says, and none starts too early."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haulier.domain.flow import PARENT_FAILED, After, Otherwise
from haulier.domain.job import Job, JobState, NewJob
from haulier.domain.moves import Move
from haulier.ports import JobStore
from haulier.services.ids import new_id
from support import Hand, move, works

ENDS = (Move.COMPLETE, Move.FAIL, Move.CANCEL)
ENDED = {
    Move.COMPLETE: JobState.COMPLETED,
    Move.FAIL: JobState.FAILED,
    Move.CANCEL: JobState.CANCELLED,
}


@dataclass(frozen=True)
class Plan:
    """A flow: of each job its parents, all of them earlier ones, and what it comes to if it runs.

    `inserted` is in how many calls, `order` by what the jobs of one are shuffled.
    """

    parents: tuple[tuple[tuple[int, Otherwise], ...], ...]
    ends: tuple[Move, ...]
    cuts: int
    retried: int


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 9))
    parents = []
    for number in range(count):
        chosen = draw(st.sets(st.integers(0, number - 1), max_size=4)) if number else set()
        parents.append(
            tuple((each, draw(st.sampled_from(list(Otherwise)))) for each in sorted(chosen))
        )
    ends = tuple(draw(st.sampled_from(ENDS)) for _ in range(count))
    return Plan(tuple(parents), ends, draw(st.integers(1, 3)), draw(st.integers(0, 2)))


def expected(plan: Plan, ends: tuple[Move, ...]) -> list[JobState | str]:
    """What becomes of each job: the state it ends in, or PARENT_FAILED if it never runs."""
    found: list[JobState | str] = []
    for number, parents in enumerate(plan.parents):
        barred = any(
            found[each] is not JobState.COMPLETED and rule is Otherwise.CANCEL
            for each, rule in parents
        )
        found.append(PARENT_FAILED if barred else ENDED[ends[number]])
    return found


async def work_off(
    store: JobStore, hand: Hand, jobs: list[NewJob], plan: Plan, ends: tuple[Move, ...]
) -> None:
    """Run what there is to run, and see that nothing starts before its parents have ended."""
    number_of = {job.id: number for number, job in enumerate(jobs)}
    while claimed := await hand.claim(2):
        for job in claimed:
            for each, _ in plan.parents[number_of[job.id]]:
                assert (await store.get(jobs[each].id)).state.final
        await hand.exchange(*(move(job, ends[number_of[job.id]]) for job in claimed))


def outcome_of(job: Job) -> JobState | str:
    if job.error is not None and job.error.type == PARENT_FAILED:
        assert job.state is JobState.CANCELLED
        return PARENT_FAILED
    return job.state


class TestFlowModel:
    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(plan=plans())
    async def test_every_job_of_any_flow_ends_as_the_model_says(
        self, store: JobStore, plan: Plan
    ) -> None:
        # Of its own, for the store is the same in all examples.
        queue = f"q{new_id()[-12:]}"
        hand = await Hand.enlist(store, queues=(queue,))
        jobs: list[NewJob] = []
        for job, parents in zip(works(len(plan.parents), queue=queue), plan.parents, strict=True):
            after = tuple(After(jobs[each].id, rule) for each, rule in parents)
            jobs.append(job._replace(after=after))
        size = -(-len(jobs) // plan.cuts)
        for begin in range(0, len(jobs), size):
            await store.insert(list(reversed(jobs[begin : begin + size])))
        await work_off(store, hand, jobs, plan, plan.ends)
        found = [outcome_of(await store.get(job.id)) for job in jobs]
        assert found == expected(plan, plan.ends)

        # Whoever failed is given another chance, and this time does well.
        for _ in range(plan.retried):
            # One by one: who comes back with the first is there when the next one is requeued.
            for job, state in zip(jobs, found, strict=True):
                if state in (JobState.FAILED, JobState.CANCELLED):
                    await store.requeue([job.id])
            await work_off(store, hand, jobs, plan, (Move.COMPLETE,) * len(jobs))
            found = [outcome_of(await store.get(job.id)) for job in jobs]
            assert not any(state is JobState.FAILED for state in found)
        if plan.retried:
            assert all(state is JobState.COMPLETED for state in found)
