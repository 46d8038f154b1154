"""The one suite for every store. Its themes are modules of `conformance`; this is the contents."""

from conformance.batches import (
    TestCutOff,
    TestFinishCallback,
    TestManyItems,
    TestRetryFailed,
    TestSettling,
)
from conformance.claiming import TestDemands, TestOrder, TestSchedule
from conformance.inserting import TestFilling, TestInsert
from conformance.leases import TestFence, TestIncarnations
from conformance.model import TestModel
from conformance.operating import TestCancel, TestCancelBatch, TestDelete, TestRequeue
from conformance.reading import TestFind, TestWatch
from conformance.rules import TestHeadRules, TestRules

__all__ = [
    "TestCancel",
    "TestCancelBatch",
    "TestCutOff",
    "TestDelete",
    "TestDemands",
    "TestFence",
    "TestFilling",
    "TestFind",
    "TestFinishCallback",
    "TestHeadRules",
    "TestIncarnations",
    "TestInsert",
    "TestManyItems",
    "TestModel",
    "TestOrder",
    "TestRequeue",
    "TestRetryFailed",
    "TestRules",
    "TestSchedule",
    "TestSettling",
    "TestWatch",
]
