"""From what records are found to the newest tables, by Alembic, in one transaction.

A migration's `upgrade` is given the operations: Alembic's own `op` is one for the whole process,
and records may be opened twice at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from haulier.exceptions import ConfigurationError


def scripts() -> ScriptDirectory:
    """The migrations that come with haulier."""
    config = Config()
    folder = str(Path(__file__).parent).replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def upgrade(connection: Connection) -> None:
    """Run what these records have not seen; the transaction, and the lock, are the caller's.

    Raises ConfigurationError for records of a newer haulier.
    """
    found = scripts()

    def steps(revision: Any, context: MigrationContext) -> Iterable[Any]:
        del context
        return found._upgrade_revs("head", revision)  # noqa: SLF001 - there is no public name

    context = MigrationContext.configure(connection, opts={"fn": steps})
    try:
        context.run_migrations(op=Operations(context))
    except CommandError:
        raise ConfigurationError(
            "the records were made by a newer haulier than this one: upgrade haulier"
        ) from None
