"""`tidegate serve`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from tidegate import __version__, registry
from tidegate.cli import auth, descriptors, listen, logs, notify, server, shared, workers
from tidegate.cli.errors import Failure
from tidegate.cli.lines import Handler
from tidegate.config import PROCESS, Config, ConfigError
from tidegate.config.parsers import MAIN
from tidegate.ports import DataError, MetadataError

DATABASE_BYTES: Final = 160 * 1024
"""What an empty database takes, with its log and its index of the log."""

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tidegate.transports.asgi import Tidegate


def serve(
    settings: Config = Config(),  # noqa: B008 - immutable
    *,
    config: Annotated[
        str | None,
        Parameter(
            group=PROCESS,
            metavar="FILE",
            show_default="tidegate.toml, if there",
            help="Settings as TOML",
        ),
    ] = None,
) -> int:
    """Receive resumable uploads (tus 1.0.0) over HTTP.

    Every flag can also be set in the environment (TIDEGATE_MAX_SIZE=10GiB) or in a TOML file
    (max-size = "10GiB"); the flag wins over the environment, and that over the file. Where several
    values make sense, repeat the flag, or put commas between them.
    """
    del config  # read with the other sources of settings
    lines = logs.configure(settings.log_level, settings.log_format)
    shared.warn(settings)
    tls = listen.tls_context(settings)
    app = _app(settings, lines)
    with (
        listen.listening(settings) as sockets,
        listen.listening_for_metrics(settings.metrics_listen) as monitoring,
    ):
        where = listen.address(settings, sockets)

        def announce() -> None:
            also = f" (metrics: {listen.metrics_address(monitoring)})" if monitoring else ""
            logs.announce(f"tidegate {__version__} listening on {where}{also}", settings.log_format)

        descriptors.allow(settings.max_concurrent)

        def work(announce: Callable[[], None], supervisor: socket.socket | None = None) -> int:
            try:
                return server.run(
                    app,
                    sockets,
                    announce=announce,
                    tls=tls,
                    transport=settings.transport,
                    head_timeout=settings.head_timeout,
                    shutdown_timeout=settings.shutdown_timeout,
                    supervisor=supervisor,
                    monitoring=monitoring,
                )
            except (DataError, MetadataError) as error:
                raise Failure(f"{error}{_if_full(settings)}") from error

        if settings.workers == 1:
            return work(announce)

        def work_at(supervisor: socket.socket, place: int) -> int:
            app.take_place(place)
            return work(lambda: workers.serving(supervisor), supervisor)

        return workers.Supervisor(
            settings.workers,
            work_at,
            sockets=[*sockets, *monitoring],
            announce=announce,
            shutdown_timeout=settings.shutdown_timeout,
        ).run()


def _if_full(settings: Config) -> str:
    """What a store's error may not say: that there is no room, as SQLite does not always know."""
    for folder in registry.folders(settings.data, settings.metadata_url):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue  # that is what the error is about
        if found.f_blocks and (free := found.f_bavail * found.f_frsize) < DATABASE_BYTES:
            return f" (the disk is full: {free} bytes are free)"
    return ""


def _app(settings: Config, lines: Handler) -> Tidegate:
    # Imported here: `--help` and a wrong flag need none of it.
    from tidegate.engine.core import Settings  # noqa: PLC0415
    from tidegate.measures import Measures  # noqa: PLC0415
    from tidegate.protocol.capabilities import Capability  # noqa: PLC0415
    from tidegate.transports.asgi import Tidegate  # noqa: PLC0415
    from tidegate.transports.body import Patience  # noqa: PLC0415
    from tidegate.transports.monitoring import HEALTH, METRICS, OPENAPI  # noqa: PLC0415
    from tidegate.transports.slots import Slots  # noqa: PLC0415

    metadata = registry.metadata_store(settings.metadata_url)
    if settings.workers > 1 and not metadata.shared:
        raise ConfigError(
            f"--workers and --data {settings.data}: what one process keeps there no other sees:"
            " expected --workers 1, or a folder"
        )
    pages = [
        *(HEALTH if settings.health else ()),
        *((METRICS,) if settings.metrics_listen == MAIN else ()),
        *((OPENAPI,) if settings.openapi else ()),
    ]
    return Tidegate(
        registry.data_store(settings.data, settings.data_options),
        metadata,
        base_path=settings.base_path,
        public_url=settings.public_url,
        relative_location=settings.relative_location,
        trusted_proxies=settings.behind_proxy,
        cors_origins=settings.cors_origin,
        max_size=settings.max_size,
        expire_after=settings.expire_after,
        disable=settings.disable,
        downloads=settings.downloads,
        authorize=auth.authorizer(settings),
        owners=settings.owners,
        settings=Settings(
            authorize_within=settings.auth_timeout,
            durability=settings.durability,
            max_unfinished=settings.max_unfinished,
            reserve_disk=settings.reserve_disk,
            progress_every=settings.progress_every,
        ),
        on_event=notify.sinks(settings),
        patience=Patience(idle=settings.idle_timeout, rate=settings.min_rate),
        slots=Slots(
            settings.max_concurrent,
            settings.max_concurrent_per_client,
            places=settings.workers,
        ),
        measures=Measures(places=settings.workers) if settings.metrics_listen else None,
        pages=pages,
        tell=lines.tell if settings.log_level in ("debug", "info") else None,
        log_metadata=settings.log_metadata,
        # Both ways keep the body of such a request.
        accept_upgrade=True,
        transport=Capability.TRAILERS if settings.transport == "native" else Capability.NONE,
    )
