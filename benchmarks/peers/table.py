"""The peers, as data. What a setting means stands at the head of each adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ADAPTERS = HERE / "adapters"


@dataclass(frozen=True)
class Peer:
    """One row: a system on one kind of server, and the settings to try.

    `packages` go into an environment of its own, which rows with the same packages share; `shows`
    are those whose versions are told. Of several `settings` the fastest in a pilot run is measured.
    """

    name: str
    server: str
    adapter: str
    packages: tuple[str, ...]
    shows: tuple[str, ...]
    settings: tuple[str, ...] = ("",)
    language: str = "Python"
    at_least_once: bool = True

    @property
    def title(self) -> str:
        return f"{self.name} ({self.server})"

    @property
    def environment(self) -> str:
        """The folder of its environment."""
        return self.adapter.partition(".")[0].removeprefix("with_") + (
            "-node" if self.language == "Node" else ""
        )


HAULIER = "haulier"
SERVERS = ("sqlite", "postgres", "redis")

PEERS = (
    *(
        Peer(
            name=HAULIER,
            server=server,
            adapter="with_haulier.py",
            packages=("-e", f"{ROOT}[postgres,redis,speed]"),
            shows=("haulier", "apsw", "asyncpg", "redis"),
            settings=("concurrency=300", "concurrency=1000", "concurrency=3000"),
        )
        for server in SERVERS
    ),
    *(
        Peer(
            name="Huey",
            server=server,
            adapter="with_huey.py",
            packages=("huey==3.5.4", "redis", "hiredis"),
            shows=("huey",),
            settings=("threads=1", "threads=2"),
            at_least_once=False,
        )
        for server in ("sqlite", "redis")
    ),
    Peer(
        name="PgQueuer",
        server="postgres",
        adapter="with_pgqueuer.py",
        packages=("pgqueuer[asyncpg]==1.6.0", "uvloop"),
        shows=("pgqueuer", "asyncpg"),
        settings=("batch=10", "batch=50", "batch=100", "batch=200", "batch=500", "batch=1000"),
    ),
    Peer(
        name="Procrastinate",
        server="postgres",
        adapter="with_procrastinate.py",
        packages=("procrastinate==3.10.0", "psycopg[binary]", "uvloop"),
        shows=("procrastinate", "psycopg"),
        settings=("concurrency=5", "concurrency=20", "concurrency=20 delete=0"),
    ),
    Peer(
        name="BullMQ on Node",
        server="redis",
        adapter="with_bullmq.mjs",
        packages=("bullmq@6.7.0", "ioredis@5"),
        shows=("bullmq", "ioredis"),
        settings=("concurrency=50", "concurrency=100", "concurrency=300", "concurrency=1000"),
        language="Node",
    ),
    Peer(
        name="BullMQ for Python",
        server="redis",
        adapter="with_bullmq.py",
        packages=("bullmq==3.4.4", "hiredis", "uvloop"),
        shows=("bullmq",),
        settings=("concurrency=1", "concurrency=10", "concurrency=50"),
    ),
    Peer(
        name="Celery",
        server="redis",
        adapter="with_celery.py",
        packages=("celery[redis]==5.7.0", "hiredis"),
        shows=("celery", "kombu"),
        settings=("prefetch=4", "prefetch=100", "threads=4 prefetch=25"),
    ),
    Peer(
        name="RQ",
        server="redis",
        adapter="with_rq.py",
        packages=("rq==3.0.0", "hiredis"),
        shows=("rq",),
    ),
    Peer(
        name="Dramatiq",
        server="redis",
        adapter="with_dramatiq.py",
        packages=("dramatiq[redis]==2.2.1", "hiredis"),
        shows=("dramatiq",),
        settings=(
            "threads=8",
            "threads=8 prefetch=500",
            "threads=4 prefetch=1000",
            "threads=16 prefetch=1000",
        ),
    ),
    Peer(
        name="taskiq",
        server="redis",
        adapter="with_taskiq.py",
        packages=("taskiq==0.13.0", "taskiq-redis==1.2.4", "hiredis", "uvloop"),
        shows=("taskiq", "taskiq-redis"),
        settings=(
            "concurrency=10 prefetch=10",
            "concurrency=100 prefetch=100",
            "concurrency=100 prefetch=1000",
        ),
    ),
    Peer(
        name="arq",
        server="redis",
        adapter="with_arq.py",
        packages=("arq[hiredis]==0.28.0", "uvloop"),
        shows=("arq",),
        settings=("concurrency=20 poll=5", "concurrency=100 poll=10", "concurrency=300 poll=10"),
    ),
    Peer(
        name="SAQ",
        server="redis",
        adapter="with_saq.py",
        # It imports typing_extensions without asking for it.
        packages=("saq[redis,hiredis]==0.26.4", "typing_extensions", "uvloop"),
        shows=("saq",),
        settings=("concurrency=5", "concurrency=20", "concurrency=100"),
    ),
    Peer(
        name="streaQ",
        server="redis",
        adapter="with_streaq.py",
        packages=("streaq==7.2.0", "uvloop"),
        shows=("streaq", "coredis"),
        settings=("concurrency=16", "concurrency=100 prefetch=1000", "concurrency=300"),
    ),
    Peer(
        name="docket",
        server="redis",
        adapter="with_docket.py",
        packages=("pydocket==0.27.0", "hiredis", "uvloop"),
        shows=("pydocket",),
        settings=("concurrency=10 check=5", "concurrency=100 check=1", "concurrency=500 check=1"),
    ),
)
