"""The one place where errors of Redis and of its driver become ours."""

from __future__ import annotations

import ssl

from redis import exceptions as driver

from haulier.domain.flow import absent
from haulier.exceptions import (
    ConfigurationError,
    DuplicateJobError,
    HaulierError,
    IdempotencyConflictError,
    JobNotFoundError,
    JobStateError,
    LeaseLostError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from haulier.stores.marks import refusal as frozen

_UNAVAILABLE = (
    driver.ConnectionError,
    driver.TimeoutError,
    driver.BusyLoadingError,
    driver.ReadOnlyError,
    driver.TryAgainError,
    driver.ClusterDownError,
    driver.MasterDownError,
    OSError,
    TimeoutError,
)
_WAITING_HELPS = (
    "LOADING",
    "READONLY",
    "BUSY ",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",
)
_DENIED = ("WRONGPASS", "NOAUTH", "NOPERM", "DENIED")


def is_denied(error: BaseException) -> bool:
    """Whether the server knows us and says no, so that waiting does not help."""
    if isinstance(
        error, driver.AuthenticationError | driver.NoPermissionError | driver.AuthorizationError
    ):
        return True
    return isinstance(error, driver.ResponseError) and any(code in str(error) for code in _DENIED)


def translated(error: BaseException, store: str) -> HaulierError:
    """Our error for one of the driver's."""
    text = str(error)
    if is_denied(error):
        return ConfigurationError(f"the store {store} does not let us in: {text}")
    if isinstance(error, ssl.SSLError):
        return StoreUnavailableError(f"the store {store} cannot be reached by TLS: {error.reason}")
    if isinstance(error, driver.OutOfMemoryError) or "OOM command not allowed" in text:
        return StoreFullError(f"no memory left for the store {store} (its maxmemory is reached)")
    if isinstance(error, driver.ResponseError) and any(code in text for code in _WAITING_HELPS):
        return StoreUnavailableError(f"the store {store} cannot serve now: {text}")
    if isinstance(error, _UNAVAILABLE):
        return StoreUnavailableError(f"the store {store} is not reachable: {text}")
    return StoreError(f"the store {store} failed: {text}")


def refusal(code: str, text: str, job_id: str) -> HaulierError:
    """The error that a script refused its verb with."""
    match code:
        case "missing":
            return JobNotFoundError(job_id)
        case "state":
            return JobStateError(text)
        case "lease":
            return LeaseLostError(text)
        case "duplicate":
            return DuplicateJobError(text, job_id)
        case "conflict":
            return IdempotencyConflictError(text, job_id)
        case "frozen":
            return frozen(text)
        case "absent":
            return absent(text.split(","))
        case "schema":
            return ConfigurationError(text)
        case _:
            return StoreError(text)
