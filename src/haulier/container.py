"""The composition root: from settings to an app with every kind that is installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from haulier.app import App
from haulier.config import Settings
from haulier.domain.shares import listened_to
from haulier.exceptions import ConfigurationError
from haulier.records.places import beside
from haulier.runners.proxy_diagnostics import ProxyDiagnosticsTaskRunner
from haulier.services.outbound import Guard
from haulier.stores import open_store
from haulier.worker.lanes import WorkerOptions


def build_app(settings: Settings, user_app: str | None = None) -> App:
    """The app that serves the built-in bulk kinds, and the tasks of the user's own app.

    `user_app` is `module:attribute`. Its store is used unless the settings name one.
    """
    named = "store" in settings.model_fields_set
    # The user's app itself, not another one on its store: its tasks enqueue by it.
    app = load_app(user_app) if user_app else App()
    store = None if user_app and not named else open_store(settings.store, ttl=settings.ttl)
    app.use(store, secret_key_file=settings.secret_key_file)
    add_builtin_runners(app, guard_of(settings))
    return app


def guard_of(settings: Settings) -> Guard:
    """The guard before connections on behalf of users, as the settings have it."""
    return Guard(settings.allowed_hosts, own_ports={settings.port})


def add_builtin_runners(app: App, guard: Guard | None = None) -> None:
    """Register the bulk kinds that come with haulier and whose libraries are installed."""
    app.add_runner(ProxyDiagnosticsTaskRunner(guard))
    try:
        from haulier.runners.media_uniq import MediaUniqTaskRunner
    except ModuleNotFoundError:
        app.registry.missing("media_uniq", "pip install 'haulier[media]'")
    else:
        app.add_runner(MediaUniqTaskRunner())


def records_url(settings: Settings, app: App) -> str:
    """Where the records are: as the settings say, or beside the store of the app."""
    # A store that an app has made for itself may be of a kind that has no URL.
    return settings.records or beside(getattr(app.store, "url", settings.store))


def worker_options(settings: Settings) -> WorkerOptions:
    """What the settings say about workers."""
    return WorkerOptions(
        queues=listened_to(settings.queues),
        concurrency=settings.concurrency,
        threads=settings.threads,
        children=settings.children,
        jobs_per_child=settings.jobs_per_child,
        child_memory=settings.child_memory,
        grace=settings.grace,
    )


def load_app(reference: str) -> App:
    """The App that `module:attribute` names; modules are found from the working folder too."""
    module_name, _, attribute = reference.partition(":")
    if not attribute:
        raise ConfigurationError(f"an app is given as module:attribute, not {reference!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"cannot load the app {reference!r}: {error}") from error
    if not isinstance(app, App):
        raise ConfigurationError(f"{reference!r} is a {type(app).__name__}, not a haulier App")
    return app
