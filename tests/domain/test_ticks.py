"""Ticks: when they are, which of them are made up for, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.domain.batch import BatchPolicy, FinishCallback
from haulier.domain.job import MICROSECOND, NewJob, OnLost, Role
from haulier.domain.retry import RetryPolicy
from haulier.domain.schedule import (
    GRACE,
    Cron,
    Interval,
    Missed,
    Overlap,
    Schedule,
    Template,
    by_hand,
    plan,
)
from haulier.exceptions import ValidationError

BERLIN, NEW_YORK, UTC = "Europe/Berlin", "America/New_York", "UTC"


def instant(text: str, zone: str = UTC) -> int:
    """An ISO time in a zone, or with its own offset."""
    stamp = datetime.fromisoformat(text)
    stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=ZoneInfo(zone))
    return round(stamp.timestamp()) * MICROSECOND


def local(tick: int, zone: str) -> str:
    return datetime.fromtimestamp(tick / MICROSECOND, ZoneInfo(zone)).isoformat()


def ticks(expression: str, zone: str, start: str, count: int) -> list[str]:
    found = islice(Cron(expression, zone).after(instant(start, zone)), count)
    return [local(tick, zone) for tick in found]


class TestCron:
    @pytest.mark.parametrize(
        ("expression", "start", "wanted"),
        [
            ("*/20 * * * *", "2026-01-01T00:00", ["01T00:20", "01T00:40", "01T01:00"]),
            ("0 3 * * *", "2026-01-01T03:00", ["02T03:00", "03T03:00", "04T03:00"]),
            ("0 9-10 * * mon-fri", "2026-01-02T09:30", ["02T10:00", "05T09:00", "05T10:00"]),
            ("30 6 1,15 * *", "2026-01-01T00:00", ["01T06:30", "15T06:30"]),
            # Either day counts if neither is a star.
            ("0 0 13 * fri", "2026-01-01T00:00", ["02T00:00", "09T00:00", "13T00:00", "16T00:00"]),
        ],
    )
    def test_fields(self, expression, start, wanted):
        assert [t[8:16] for t in ticks(expression, UTC, start, len(wanted))] == wanted

    def test_seconds_come_first_if_there_are_six(self):
        assert [t[11:19] for t in ticks("*/20 * * * * *", UTC, "2026-01-01T00:00", 4)] == [
            *("00:00:20", "00:00:40", "00:01:00", "00:01:20")
        ]

    def test_leap_days(self):
        found = ticks("0 12 29 2 *", UTC, "2026-01-01T00:00", 3)
        assert [t[:10] for t in found] == ["2028-02-29", "2032-02-29", "2036-02-29"]
        # 2100 has none.
        assert ticks("0 12 29 2 *", UTC, "2096-03-01T00:00", 1)[0][:10] == "2104-02-29"

    def test_ends_of_months(self):
        found = ticks("0 0 l * *", UTC, "2028-01-01T00:00", 4)
        assert [t[5:10] for t in found] == ["01-31", "02-29", "03-31", "04-30"]
        found = ticks("0 0 31 * *", UTC, "2026-01-01T00:00", 4)
        assert [t[5:10] for t in found] == ["01-31", "03-31", "05-31", "07-31"]

    def test_a_tick_is_after_the_instant_it_is_asked_for(self):
        cron, tick = Cron("0 3 * * *"), instant("2026-01-01T03:00")
        assert next(cron.after(tick - 1)) == tick
        assert next(cron.after(tick)) == instant("2026-01-02T03:00")
        assert next(cron.after(tick + MICROSECOND // 2)) == instant("2026-01-02T03:00")


class TestDaylightSaving:
    """A time of day ticks once on every day; what has a star counts real time."""

    @pytest.mark.parametrize(
        ("zone", "day", "before", "inside", "after"),
        [
            # The clocks go from 02:00 to 03:00.
            (BERLIN, "2026-03-29", "01:30:00+01:00", "03:00:00+02:00", "04:00:00+02:00"),
            (NEW_YORK, "2026-03-08", "01:30:00-05:00", "03:00:00-04:00", "04:00:00-04:00"),
        ],
    )
    def test_a_time_of_day_in_the_gap_is_made_up_for_at_its_end(
        self, zone, day, before, inside, after
    ):
        for expression, wanted in (("30 1", before), ("30 2", inside), ("0 4", after)):
            assert ticks(f"{expression} * * *", zone, day, 1) == [f"{day}T{wanted}"]
        following = ticks("30 2 * * *", zone, f"{day}T03:00", 1)
        assert following[0][11:16] == "02:30"

    def test_two_times_of_day_in_the_gap_are_one_tick(self):
        assert ticks("0,30 2 * * *", BERLIN, "2026-03-29", 2) == [
            *("2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00")
        ]

    @pytest.mark.parametrize(
        ("zone", "day", "first", "next_day"),
        [
            # 02:00 to 03:00 comes twice in Berlin, 01:00 to 02:00 in New York.
            (BERLIN, "2026-10-25", "02:30:00+02:00", "2026-10-26T02:30:00+01:00"),
            (NEW_YORK, "2026-11-01", "01:30:00-04:00", "2026-11-02T01:30:00-05:00"),
        ],
    )
    def test_a_time_of_day_that_comes_twice_ticks_the_first_time(self, zone, day, first, next_day):
        expression = f"30 {int(first[:2])} * * *"
        assert ticks(expression, zone, day, 2) == [f"{day}T{first}", next_day]
        # Asked for between the first and the second time.
        between = instant(f"{day}T{first}") + 45 * 60 * MICROSECOND
        assert local(next(Cron(expression, zone).after(between)), zone) == next_day

    def test_with_a_star_what_is_skipped_never_is_and_what_is_repeated_is_twice(self):
        assert ticks("*/30 * * * *", BERLIN, "2026-03-29T01:00", 3) == [
            "2026-03-29T01:30:00+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:30:00+02:00",
        ]
        assert [t[11:] for t in ticks("*/30 * * * *", BERLIN, "2026-10-25T01:30", 5)] == [
            "02:00:00+02:00",
            "02:30:00+02:00",
            "02:00:00+01:00",
            "02:30:00+01:00",
            "03:00:00+01:00",
        ]

    def test_with_seconds_it_counts_real_time_too(self):
        assert ticks("0 30 2 * * *", BERLIN, "2026-03-29", 1) == ["2026-03-30T02:30:00+02:00"]
        assert [t[11:] for t in ticks("0 30 2 * * *", BERLIN, "2026-10-25", 2)] == [
            *("02:30:00+02:00", "02:30:00+01:00")
        ]

    @pytest.mark.parametrize("zone", [BERLIN, NEW_YORK])
    def test_a_daily_tick_comes_once_on_each_day_of_a_year(self, zone):
        for hour in range(5):
            found = ticks(f"30 {hour} * * *", zone, "2026-01-01T00:00", 365)
            assert len({tick[:10] for tick in found}) == 365

    @given(
        st.sampled_from(["30 2 * * *", "*/7 1-3 * * *", "0 */2 * * *", "*/9 * * * * *"]),
        st.sampled_from([BERLIN, NEW_YORK, "Australia/Lord_Howe"]),
        st.integers(instant("2026-01-01"), instant("2027-01-01")),
    )
    def test_ticks_only_rise_and_do_not_depend_on_where_one_begins(self, expression, zone, start):
        cron = Cron(expression, zone)
        found = list(islice(cron.after(start), 12))
        assert found == sorted(set(found))
        assert found[0] > start
        for earlier, later in pairwise(found):
            assert next(cron.after(earlier)) == later


class TestInterval:
    def test_it_counts_from_its_start(self):
        every = Interval(2.5, 10 * MICROSECOND)
        found = list(islice(every.after(11 * MICROSECOND), 3))
        assert found == [12_500_000, 15_000_000, 17_500_000]
        assert next(every.after(12_500_000)) == 15_000_000
        # Also before it: a start is a place in the grid.
        assert next(every.after(0)) == 2_500_000


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "field", "reason"),
        [
            (lambda: Cron("* * * *"), "cron", "no cron expression: wrong number of fields"),
            (lambda: Cron("60 * * * *"), "cron", "no cron expression: bad minute"),
            (lambda: Cron("* * 32 * *"), "cron", "no cron expression: bad day-of-month"),
            (lambda: Cron("*/0 * * * *"), "cron", "no cron expression: bad minute"),
            (lambda: Cron(""), "cron", "no cron expression"),
            (lambda: Cron("@daily"), "cron", "no cron expression"),
            (lambda: Cron("1 " * 200), "cron", "at most 200 characters"),
            (lambda: Cron(None), "cron", "must be a text"),
            (lambda: Cron("0 0 30 2 *"), "cron", "never ticks"),
            (lambda: Cron("0 0 31 2,4,6 *"), "cron", "never ticks"),
            (lambda: Cron("0 0 0 31 11 *"), "cron", "never ticks"),
            (lambda: Cron("* * * * *", "Europe/Atlantis"), "zone", "no time zone"),
            (lambda: Cron("* * * * *", "Europe"), "zone", "no time zone"),
            (lambda: Cron("* * * * *", "../../etc/passwd"), "zone", "no time zone"),
            (lambda: Cron("* * * * *", ""), "zone", "no time zone"),
            (lambda: Cron("* * * * *", None), "zone", "no time zone"),
            (lambda: Interval(0), "interval", "must be seconds from 0.1"),
            (lambda: Interval(-1), "interval", "must be seconds from 0.1"),
            (lambda: Interval(float("nan")), "interval", "must be seconds from 0.1"),
            (lambda: Interval(float("inf")), "interval", "must be seconds from 0.1"),
            (lambda: Interval(True), "interval", "must be seconds from 0.1"),
            (lambda: Interval("1"), "interval", "must be seconds from 0.1"),
            (lambda: Interval(1, 0.5), "start", "must be microseconds"),
            (lambda: Missed.all(0), "missed", "from 1 to 1,000"),
            (lambda: Missed.all(1001), "missed", "from 1 to 1,000"),
            (lambda: Missed("never"), "missed", "must be one of skip, once, all"),
            (lambda: Missed.parse("all"), "missed", "must be skip, once, or all:N"),
            (lambda: Missed.parse("all:-1"), "missed", "from 1 to 1,000"),
            (lambda: Missed.parse("once:2"), "missed", "must be skip, once, or all:N"),
        ],
    )
    def test_with_field_and_reason(self, make, field, reason):
        with pytest.raises(ValidationError) as refused:
            make()
        (problem,) = refused.value.problems
        assert problem.field == field
        assert reason in problem.reason

    @pytest.mark.parametrize("missed", [Missed.skip(), Missed.once(), Missed.all(7)])
    def test_a_policy_is_read_as_it_is_written(self, missed):
        assert Missed.parse(str(missed)) == missed


SECOND = MICROSECOND


def schedule(**fields: object) -> Schedule:
    return Schedule(
        **{
            "name": "each",
            "id": "01990000-0000-7000-8000-000000000001",
            "template": Template(kind="work", payload=b"{}"),
            "cadence": Interval(1.0, 0),
            "next": 10 * SECOND,
            "revision": 3,
            **fields,
        }
    )


def planned(now: float, **fields: object) -> list[tuple[float, bool, float | None]]:
    """Of each planned tick: when, whether it has a job, since when ticks were missed."""
    firing = plan(schedule(**fields), round(now * SECOND))
    assert firing is not None
    return [
        (p.tick / SECOND, p.job is not None, p.since and p.since / SECOND) for p in firing.ticks
    ]


class TestPlan:
    def test_nothing_is_due_before_its_time_and_while_it_is_paused(self):
        assert plan(schedule(), 10 * SECOND - 1) is None
        assert plan(schedule(next=None), 99 * SECOND) is None

    def test_a_due_tick_has_a_job_and_the_next_one_follows(self):
        each = schedule(overlap=Overlap.SKIP)
        firing = plan(each, 10 * SECOND)
        assert (firing.name, firing.revision, firing.next) == ("each", 3, 11 * SECOND)
        assert firing.overlap is Overlap.SKIP
        (only,) = firing.ticks
        assert (only.tick, only.job.id, only.job.kind) == (
            *(10 * SECOND, each.job_id(10 * SECOND), "work"),
        )

    def test_the_same_tick_has_the_same_job(self):
        each, other = schedule(), schedule(id="01990000-0000-7000-8000-000000000002")
        assert each.job_id(5) == schedule(revision=9).job_id(5)
        assert len({each.job_id(5), each.job_id(6), other.job_id(5)}) == 3
        assert by_hand(each, 5).ticks[0].job.id != each.job_id(5)

    def test_one_by_hand_never_stands_in_the_place_of_a_tick(self):
        each = schedule()
        assert [p.tick for p in by_hand(each, 10_500_000).ticks] == [10_500_000]
        assert [p.tick for p in by_hand(each, 11_000_000).ticks] == [11_000_001]
        assert by_hand(each, 11_000_000).next == each.next

    @pytest.mark.parametrize(
        ("missed", "wanted"),
        [
            (Missed.once(), [(13, False, 10), (14, True, None)]),
            (Missed.skip(), [(13, False, 10), (14, True, None)]),
            (Missed.all(1), [(13, False, 10), (14, True, None)]),
            (Missed.all(2), [(12, False, 10), (13, True, None), (14, True, None)]),
            (Missed.all(5), [(n, True, None) for n in range(10, 15)]),
            (Missed.all(50), [(n, True, None) for n in range(10, 15)]),
        ],
    )
    def test_missed_ticks(self, missed, wanted):
        assert planned(14.5, missed=missed) == wanted

    def test_skip_lets_a_tick_go_that_is_more_than_a_minute_late(self):
        hourly = {"cadence": Interval(3600, 10 * SECOND), "missed": Missed.skip()}
        late = 10 + GRACE / SECOND
        assert planned(late, **hourly) == [(10, True, None)]
        assert planned(late + 0.1, **hourly) == [(10, False, 10)]
        assert planned(late + 3600 + 0.1, **hourly) == [(3610, False, 10)]
        assert planned(late + 3600 + 0.1, **hourly | {"missed": Missed.once()}) == [
            *((10, False, 10), (3610, True, None))
        ]

    def test_a_year_of_missed_seconds_costs_little(self):
        year = 365 * 86_400
        assert planned(10 + year + 0.5, missed=Missed.all(1000))[0] == (9 + year - 999, False, 10)
        cron = {"cadence": Cron("* * * * * *"), "missed": Missed.once()}
        assert planned(10 + year + 0.5, **cron) == [
            *((9 + year, False, 10), (10 + year, True, None))
        ]

    def test_a_promised_tick_is_kept_though_the_cadence_has_it_no_more(self):
        assert planned(10, cadence=Cron("0 0 1 1 *")) == [(10, True, None)]

    @given(
        st.integers(1, 400),
        st.integers(0, 4000),
        st.integers(1, 30),
        st.sampled_from([Interval(7, 0), Cron("*/7 * * * * *"), Cron("*/5 * * * *")]),
    )
    def test_it_finds_the_same_as_counting_from_the_first(self, first, late, most, cadence):
        due = next(cadence.after(first * SECOND))
        now = due + late * SECOND
        all_of_them = [due]
        for tick in cadence.after(due):
            if tick > now:
                break
            all_of_them.append(tick)
        firing = plan(schedule(cadence=cadence, next=due, missed=Missed.all(most)), now)
        assert [p.tick for p in firing.ticks if p.job] == all_of_them[-most:]
        left_out = [(p.tick, p.since) for p in firing.ticks if not p.job]
        assert left_out == ([(all_of_them[-most - 1], due)] if len(all_of_them) > most else [])
        assert firing.next == next(cadence.after(now)) > now


class TestStored:
    def test_everything_comes_back(self):
        full = schedule(
            template=Template(
                kind="bulk",
                payload='{"ä":"☕"}'.encode(),
                version=3,
                queue="other",
                priority=7,
                key="ada",
                retry=RetryPolicy(max_attempts=7),
                role=Role.HEAD,
                on_lost=OnLost.FAIL,
                policy=BatchPolicy(
                    finish=FinishCallback(kind="after", queue="last"),
                    concurrency=2,
                    batch_size=3,
                    max_failures=0,
                ),
            ),
            cadence=Cron("0 3 * * *", BERLIN),
            missed=Missed.all(3),
            overlap=Overlap.CANCEL,
            declared="digest",
        )
        for each in (full, schedule(), replace(full, cadence=Interval(2.5, None))):
            rest = {
                name: getattr(each, name)
                for name in ("name", "id", "revision", "next", "last_job", "changed_by")
            }
            template = each.template
            assert each == Schedule.stored(
                kind=template.kind, queue=template.queue, body=each.body(), **rest
            )

    def test_a_template_has_all_that_a_job_has_but_what_is_of_one_job(self):
        """A new field of jobs has to be thought of here: schedules would leave it out."""
        of_one_job = {
            *("id", "run_at", "delay", "batch_id", "position", "unique", "baggage", "after")
        }
        assert set(NewJob._fields) - of_one_job == set(Template.__slots__) - {"policy"}
