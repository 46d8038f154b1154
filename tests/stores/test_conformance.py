"""The one suite for every store. Its themes are modules of `conformance`; this is the contents."""

from conformance.altering import (
    TestAlterBatchSize,
    TestAlterConcurrency,
    TestAlterEdges,
    TestAlterMaxFailures,
)
from conformance.baggage import TestBaggage, TestBaggageOfBatches
from conformance.batches import (
    TestCutOff,
    TestFinishCallback,
    TestManyItems,
    TestRetryFailed,
    TestSettling,
)
from conformance.breakers import (
    TestBreakerHalfOpen,
    TestBreakerOpen,
    TestBreakerOpens,
    TestBreakerState,
)
from conformance.checking import TestCheck
from conformance.claiming import TestDemands, TestOrder, TestSchedule
from conformance.configuring import TestConfigure, TestPausedQueues
from conformance.conflicts import TestManyKeys, TestMatch, TestReject, TestReplace, TestSkip
from conformance.drains import TestDrains, TestUsedAgain
from conformance.errors import TestErrors, TestFindByError
from conformance.events import TestMoves, TestOtherEvents
from conformance.failing import TestMaxFailures, TestOneCallback
from conformance.flow_model import TestFlowModel
from conformance.flows import (
    TestFailing,
    TestManyChildren,
    TestParents,
    TestRefused,
    TestRequeued,
    TestWaiting,
)
from conformance.gates import TestBatchSize, TestConcurrency
from conformance.inserting import TestFilling, TestInsert
from conformance.leases import TestFence, TestIncarnations
from conformance.limits import (
    TestBatchesUnderLimits,
    TestChanges,
    TestConcurrencyLimits,
    TestFairness,
    TestKeys,
    TestRates,
)
from conformance.lines import TestLines, TestLinesStay
from conformance.model import TestModel
from conformance.nested_limits import TestNestedBatchLimits, TestNestedUnderLimits
from conformance.nesting import (
    TestNested,
    TestNestedCancel,
    TestNestedCopy,
    TestNestedDelete,
    TestNestedPause,
    TestNestedRetry,
)
from conformance.operating import TestCancel, TestCancelBatch, TestDelete, TestRequeue
from conformance.pausing import TestPause, TestPauseOfMany, TestResume
from conformance.poison import TestAlone, TestLosses
from conformance.reading import TestFind, TestFronts, TestWatch
from conformance.retention import TestOldEvents, TestPrune, TestResultTtl
from conformance.retention_batches import TestPruneBatches
from conformance.retrying import TestExpandAnew, TestRetrySome
from conformance.routing import TestRouting
from conformance.rules import TestHeadRules, TestRules
from conformance.schedules import TestDue, TestKeptSchedules, TestOverlap, TestTicks
from conformance.shares import TestShares
from conformance.steps import TestKeep, TestStepsStay
from conformance.stream import TestCursors, TestNumbers, TestWatchEvents
from conformance.transfer import (
    TestBrokenOff,
    TestCopy,
    TestDrain,
    TestFit,
    TestFrozen,
    TestThaw,
)
from conformance.unique import (
    TestActiveNames,
    TestNamesOfBatches,
    TestNamesOfRequeuedJobs,
    TestOneHolder,
    TestPendingNames,
    TestPeriodNames,
)

__all__ = [
    "TestActiveNames",
    "TestAlone",
    "TestAlterBatchSize",
    "TestAlterConcurrency",
    "TestAlterEdges",
    "TestAlterMaxFailures",
    "TestBaggage",
    "TestBaggageOfBatches",
    "TestBatchSize",
    "TestBatchesUnderLimits",
    "TestBreakerHalfOpen",
    "TestBreakerOpen",
    "TestBreakerOpens",
    "TestBreakerState",
    "TestBrokenOff",
    "TestCancel",
    "TestCancelBatch",
    "TestChanges",
    "TestCheck",
    "TestConcurrency",
    "TestConcurrencyLimits",
    "TestConfigure",
    "TestCopy",
    "TestCursors",
    "TestCutOff",
    "TestDelete",
    "TestDemands",
    "TestDrain",
    "TestDrains",
    "TestDue",
    "TestErrors",
    "TestExpandAnew",
    "TestFailing",
    "TestFairness",
    "TestFence",
    "TestFilling",
    "TestFind",
    "TestFindByError",
    "TestFinishCallback",
    "TestFit",
    "TestFlowModel",
    "TestFronts",
    "TestFrozen",
    "TestHeadRules",
    "TestIncarnations",
    "TestInsert",
    "TestKeep",
    "TestKeptSchedules",
    "TestKeys",
    "TestLines",
    "TestLinesStay",
    "TestLosses",
    "TestManyChildren",
    "TestManyItems",
    "TestManyKeys",
    "TestMatch",
    "TestMaxFailures",
    "TestModel",
    "TestMoves",
    "TestNamesOfBatches",
    "TestNamesOfRequeuedJobs",
    "TestNested",
    "TestNestedBatchLimits",
    "TestNestedCancel",
    "TestNestedCopy",
    "TestNestedDelete",
    "TestNestedPause",
    "TestNestedRetry",
    "TestNestedUnderLimits",
    "TestNumbers",
    "TestOldEvents",
    "TestOneCallback",
    "TestOneHolder",
    "TestOrder",
    "TestOtherEvents",
    "TestOverlap",
    "TestParents",
    "TestPause",
    "TestPauseOfMany",
    "TestPausedQueues",
    "TestPendingNames",
    "TestPeriodNames",
    "TestPrune",
    "TestPruneBatches",
    "TestRates",
    "TestRefused",
    "TestReject",
    "TestReplace",
    "TestRequeue",
    "TestRequeued",
    "TestResultTtl",
    "TestResume",
    "TestRetryFailed",
    "TestRetrySome",
    "TestRouting",
    "TestRules",
    "TestSchedule",
    "TestSettling",
    "TestShares",
    "TestSkip",
    "TestStepsStay",
    "TestThaw",
    "TestTicks",
    "TestUsedAgain",
    "TestWaiting",
    "TestWatch",
    "TestWatchEvents",
]
