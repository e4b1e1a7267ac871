"""Stage proxy: serve a study's database to hundreds of workers, which then say ``storage=grpc``."""

from concurrent.futures import ThreadPoolExecutor

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.settings import Settings
from pipelines.storage import named, open_storage
from search.storages.postgres import CONNECTIONS


def run(settings: Settings) -> None:
    """Serve until interrupted.

    Raises:
        FlowpruneError: the storage is no PostgreSQL, or the address is taken.
    """
    if settings.storage.kind != "postgres":
        kind = settings.storage.kind
        raise FlowpruneError(f"stages=[proxy] serves a database, and storage is {kind}: set storage=postgres.")
    try:
        from optuna.storages._grpc.server import make_server

        threads = ThreadPoolExecutor(CONNECTIONS)
        server = make_server(open_storage(settings.storage), settings.proxy.host, settings.proxy.port, threads)
    except ImportError as error:
        raise FlowpruneError("stages=[proxy] needs grpcio: pip install 'flowprune[postgres]'.") from error
    except RuntimeError as error:
        where = f"{settings.proxy.host}:{settings.proxy.port}"
        raise FlowpruneError(f"{where} cannot be listened on: set proxy.host or proxy.port.") from error
    server.start()
    where = f"{settings.proxy.host}:{settings.proxy.port}"
    console.print(f"{named(settings.storage)} is served at {where}; Ctrl-C stops it")
    server.wait_for_termination()
