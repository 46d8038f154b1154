"""What the commands about the records share: where these are, and who it is that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from haulier.cli.output import DEFAULT_STORE, store_option
from haulier.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from haulier.records.database import Records
    from haulier.services.audit import Actor

F = TypeVar("F", bound="Callable[..., Any]")


def records_options(function: F) -> F:
    """`--records URL`, or HAULIER_RECORDS; without both those beside the store."""
    return click.option(
        "--records",
        metavar="URL",
        envvar="HAULIER_RECORDS",
        help="Where the records are.  [env: HAULIER_RECORDS; default: beside the store]",
    )(store_option(function))


def records_of(records: str | None, store: str | None, *, create: bool = False) -> Records:
    """The records that the options name, not yet opened."""
    from haulier.records import open_records
    from haulier.records.places import MEMORY, beside, place_of

    url = records or beside(store or DEFAULT_STORE)
    if getattr(place_of(url), "path", None) == MEMORY:
        raise ConfigurationError("records in memory cannot be shared with another process")
    return open_records(url, create=create)


def this_user() -> Actor:
    """Whoever runs this command, for the audit log."""
    from haulier.services.audit import Actor
    from haulier.services.who import who

    return Actor(who(), "local", "command line")
