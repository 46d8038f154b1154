"""The kind `proxy_diagnostics`: does each proxy of a list work, how fast, and what does it reveal.

A proxy that cannot be used is a result, not a failed job: its item completes and says why. The
check URL is best the operator's own echo server (`haulier.runners.echo`), which tells the exit
address and the headers; with any other URL these stay unknown.
"""

from __future__ import annotations

import json
import math
import re
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError, from_json
from typing_extensions import override

from haulier.domain.job import JobState
from haulier.exceptions import PermanentError
from haulier.runners._probe import SENT_HEADERS, Answer, Attempt, ErrorClass, Phase, Probe
from haulier.runners.base import BaseTaskRunner, BatchFinished
from haulier.runners.proxy_input import ProxySpec, Scheme, Target
from haulier.services.context import Context
from haulier.services.outbound import Guard

REVEALING_HEADERS = frozenset(
    {
        "client-ip",
        "cf-connecting-ip",
        "forwarded",
        "true-client-ip",
        "x-client-ip",
        "x-forwarded-for",
        "x-real-ip",
    }
)
"""Headers in which proxies tell the address of their client; `Forwarded` is RFC 7239."""

_HOPELESS = frozenset({ErrorClass.AUTH_REFUSED, ErrorClass.FORBIDDEN, ErrorClass.UNSUPPORTED})
"""Further tries cannot end otherwise; after a wrong password they could even lock the account."""

_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
_MAX_HEADERS = 32


class Verdict(StrEnum):
    """Whether a proxy can be used: every try succeeded, some did, none did."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DEAD = "dead"


class Anonymity(StrEnum):
    """What the target learns: the client's address, that there is a proxy, or neither."""

    TRANSPARENT = "transparent"
    ANONYMOUS = "anonymous"
    ELITE = "elite"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    check_url: str
    """What is asked for through each proxy, http or https; any 2xx answer counts as success."""
    tries: int = Field(default=5, ge=1, le=50)
    timeout: float = Field(default=5.0, ge=0.1, le=60.0)
    """Seconds that one try may take in all."""
    verify_tls: bool = True
    ca_file: str | None = Field(default=None, min_length=1)
    """A PEM file on the worker's machine with authorities to trust besides the system's."""

    @field_validator("check_url")
    @classmethod
    def _is_target(cls, value: str) -> str:
        try:
            Target.parse(value)
        except ValueError as error:
            raise PydanticCustomError("check_url", "{reason}", {"reason": str(error)}) from None
        return value


class ProxyDiagnosticsStart(_Settings):
    """What to check: the proxies, and how."""

    proxies: list[ProxySpec] = Field(min_length=1)


class ProxyDiagnosticsItem(_Settings):
    """One proxy to check, and how."""

    proxy: ProxySpec


class Percentiles(BaseModel):
    """Milliseconds by the nearest-rank method: the value at rank ceil(p/100 x n) of n sorted."""

    p50: float
    p95: float


class Timings(BaseModel):
    """How long the phases took, each over the tries that completed it; None when none did.

    connect: the TCP dial to the proxy, name resolution left out. proxy_tls: the handshake with an
    https proxy. tunnel: the negotiation, authentication included. tls: the handshake with an
    https target. first_byte: from the request to the first byte of the answer. total: a whole
    successful try.
    """

    connect_ms: Percentiles | None = None
    proxy_tls_ms: Percentiles | None = None
    tunnel_ms: Percentiles | None = None
    tls_ms: Percentiles | None = None
    first_byte_ms: Percentiles | None = None
    total_ms: Percentiles | None = None


class ProxyDiagnosticsResult(BaseModel):
    """What was found out about one proxy.

    `error` is the most frequent class among the failed tries, `detail` says more about it.
    `tries` counts those that were made: fewer than asked for when going on was useless.
    `anonymity`, `added_headers` and `credentials_leaked` come from what the echo server saw and
    are None when it saw nothing; `forwards` tells whether an HTTP proxy answers requests in
    absolute form, None when that was not tried.
    """

    proxy: str
    has_credentials: bool
    line: int | None
    verdict: Verdict
    reachable: bool
    error: ErrorClass | None
    detail: str | None
    tries: int
    ok: int
    timings: Timings
    exit_address: str | None
    anonymity: Anonymity | None
    added_headers: list[str] | None
    credentials_leaked: bool | None
    forwards: bool | None


class ProxyDiagnosticsTaskRunner(BaseTaskRunner[ProxyDiagnosticsStart, ProxyDiagnosticsItem]):
    """Checks every proxy of a list. See the models for what is asked and what is answered.

    `guard` says which proxies may be dialled: public ones, unless it allows others.
    """

    task_type: ClassVar[str] = "proxy_diagnostics"
    start_model: ClassVar[type[BaseModel]] = ProxyDiagnosticsStart
    item_model: ClassVar[type[BaseModel]] = ProxyDiagnosticsItem
    per_worker: ClassVar[int | None] = 64

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard or Guard()

    @override
    def expand(self, ctx: Context, start: ProxyDiagnosticsStart) -> Iterator[ProxyDiagnosticsItem]:
        """One item per proxy, in the order given; raises PermanentError for a bad `ca_file`."""
        client_tls(verify=start.verify_tls, ca_file=start.ca_file)
        for proxy in start.proxies:
            yield ProxyDiagnosticsItem(
                proxy=proxy,
                check_url=start.check_url,
                tries=start.tries,
                timeout=start.timeout,
                verify_tls=start.verify_tls,
                ca_file=start.ca_file,
            )

    @override
    async def run_item(self, ctx: Context, item: ProxyDiagnosticsItem) -> ProxyDiagnosticsResult:
        """Try the proxy; raises PermanentError for a bad `ca_file`, never for a bad proxy."""
        target = Target.parse(item.check_url)
        tls = client_tls(verify=item.verify_tls, ca_file=item.ca_file)
        probe = Probe(item.proxy, target, timeout=item.timeout, tls=tls, guard=self._guard)
        attempts: list[Attempt] = []
        while len(attempts) < item.tries:
            ctx.progress(100 * len(attempts) / item.tries)
            attempts.append(await probe.attempt())
            if attempts[-1].error in _HOPELESS:
                break
        forwarded = None
        if _worth_forwarding(item.proxy, target, attempts):
            forwarded = await probe.forward()
        return _judge(item.proxy, attempts, forwarded)

    @override
    async def finish(
        self, ctx: Context, start: ProxyDiagnosticsStart, finished: BatchFinished
    ) -> dict[str, Any]:
        """Counts per verdict and per error class, and the fastest and slowest usable proxy.

        Fast and slow are told by the p50 of `total_ms`. `unfinished` counts the items that have
        no result: cancelled, or failed for a reason that lies not in the proxy.
        """
        verdicts, errors, unfinished = Counter[str](), Counter[str](), 0
        usable: list[dict[str, Any]] = []
        async for job in ctx.items(finished.batch_id):
            if job.state is not JobState.COMPLETED or job.result is None:
                unfinished += 1
                continue
            result = from_json(job.result)
            verdicts[result["verdict"]] += 1
            if result["error"]:
                errors[result["error"]] += 1
            if total := result["timings"]["total_ms"]:
                usable.append(
                    {"proxy": result["proxy"], "line": result["line"], "p50_ms": total["p50"]}
                )
        usable.sort(key=lambda entry: entry["p50_ms"])
        return {
            "proxies": verdicts.total() + unfinished,
            "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
            "errors": dict(errors.most_common()),
            "unfinished": unfinished,
            "fastest": usable[0] if usable else None,
            "slowest": usable[-1] if usable else None,
        }


@dataclass(frozen=True, slots=True)
class _Echo:
    """What the echo server saw: the caller's address and the names of the headers."""

    remote: str | None
    headers: frozenset[str]

    @classmethod
    def read(cls, answer: Answer | None) -> Self | None:
        """The echo in an answer; None if something else gave it.

        Nothing but addresses and header names is taken over: the answer came through a proxy
        that may have written it.
        """
        if answer is None:
            return None
        try:
            seen = json.loads(answer.body)
            remote, names = seen["remote"], list(seen["headers"].keys())
            address = None if remote is None else _address(str(remote))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None
        headers = [name.lower() for name in names if _HEADER_NAME.match(name.lower())]
        return cls(address, frozenset(headers[:_MAX_HEADERS]))


def _address(text: str) -> str:
    """An IP address in its usual form; raises ValueError for anything else."""
    if "%" in text:
        raise ValueError("a scope could be any text")
    address = ip_address(text)
    # A server that listens on IPv6 for both families sees IPv4 callers as ::ffff:a.b.c.d.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the value at rank ceil(percent/100 x n), counted from 1.

    `values` must not be empty, `percent` lies above 0 and is 100 at most.
    """
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


def client_tls(*, verify: bool, ca_file: str | None) -> ssl.SSLContext:
    """TLS settings of a client: the system's authorities and those of `ca_file`.

    Loading takes tens of milliseconds, so the result is kept until the file changes. Raises
    PermanentError for a file that cannot be read or holds no certificate.
    """
    try:
        changed = Path(ca_file).stat().st_mtime_ns if ca_file else 0
        return _load_tls(verify, ca_file, changed)
    except (OSError, ValueError) as error:
        # ssl.SSLError is an OSError whose strerror is OpenSSL's jargon.
        reason = "holds no PEM certificate" if isinstance(error, ssl.SSLError) else "cannot be read"
        raise PermanentError(f"ca_file: {ca_file} {reason}") from None


@lru_cache(maxsize=16)
def _load_tls(verify: bool, ca_file: str | None, _changed: int) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _worth_forwarding(proxy: ProxySpec, target: Target, attempts: Sequence[Attempt]) -> bool:
    """Whether to ask for the target in absolute form as well.

    Only plain http is asked for that way. Many HTTP proxies allow CONNECT to port 443 alone, so
    one that refuses the tunnel may still be of use.
    """
    if proxy.scheme is Scheme.SOCKS5 or target.tls:
        return False
    return any(attempt.error in (None, ErrorClass.TUNNEL_REFUSED) for attempt in attempts)


def _judge(
    proxy: ProxySpec, attempts: Sequence[Attempt], forwarded: Attempt | None
) -> ProxyDiagnosticsResult:
    ok = sum(attempt.error is None for attempt in attempts)
    failed = len(attempts) - ok
    error, detail = _commonest(attempts)
    if error and ok:
        detail = f"{failed} of {len(attempts)} tries failed. {detail}"
    echoes = [echo for attempt in attempts if (echo := _Echo.read(attempt.answer))]
    if proxy.scheme is Scheme.SOCKS5:
        judged = echoes[0] if echoes else None
    else:
        judged = _Echo.read(forwarded.answer) if forwarded else None
    added, leaked, anonymity = _revealed(judged)
    return ProxyDiagnosticsResult(
        proxy=proxy.address,
        has_credentials=proxy.has_credentials,
        line=proxy.line,
        verdict=Verdict.DEAD if not ok else Verdict.DEGRADED if failed else Verdict.HEALTHY,
        reachable=ok > 0,
        error=error,
        detail=detail,
        tries=len(attempts),
        ok=ok,
        timings=_timings(attempts),
        exit_address=next((echo.remote for echo in echoes if echo.remote), None),
        anonymity=anonymity,
        added_headers=added,
        credentials_leaked=leaked,
        forwards=forwarded.error is None if forwarded else None,
    )


def _commonest(attempts: Iterable[Attempt]) -> tuple[ErrorClass | None, str | None]:
    """The most frequent error class and its first detail; of equals, the one seen first."""
    failures = [attempt for attempt in attempts if attempt.error]
    if not failures:
        return None, None
    ((error, _),) = Counter(attempt.error for attempt in failures).most_common(1)
    return error, next(attempt.detail for attempt in failures if attempt.error is error)


def _revealed(echo: _Echo | None) -> tuple[list[str] | None, bool | None, Anonymity | None]:
    """Headers added on the way, whether the credentials went along, and what that amounts to."""
    if echo is None:
        return None, None, None
    leaked = "proxy-authorization" in echo.headers
    added = echo.headers - SENT_HEADERS - {"proxy-authorization"}
    if added & REVEALING_HEADERS:
        anonymity = Anonymity.TRANSPARENT
    elif added or leaked:
        anonymity = Anonymity.ANONYMOUS
    else:
        anonymity = Anonymity.ELITE
    return sorted(added), leaked, anonymity


def _timings(attempts: Sequence[Attempt]) -> Timings:
    def of(phase: Phase) -> Percentiles | None:
        return _percentiles([a.spans[phase] for a in attempts if phase in a.spans])

    return Timings(
        connect_ms=of(Phase.CONNECT),
        proxy_tls_ms=of(Phase.PROXY_TLS),
        tunnel_ms=of(Phase.TUNNEL),
        tls_ms=of(Phase.TLS),
        first_byte_ms=of(Phase.FIRST_BYTE),
        total_ms=_percentiles([a.total for a in attempts if a.total is not None]),
    )


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    return Percentiles(p50=round(percentile(values, 50), 3), p95=round(percentile(values, 95), 3))
