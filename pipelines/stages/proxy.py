"""Stage proxy: serve a study's database to hundreds of workers, which then say ``storage=grpc``."""

from concurrent.futures import ThreadPoolExecutor

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.storage import named, open_storage
from pipelines.workspace import Workspace
from search.optuna_internals import proxy_server
from search.storages.postgres import CONNECTIONS


def run(workspace: Workspace) -> None:
    """Serve until interrupted.

    Raises:
        FlowpruneError: the storage is no PostgreSQL, or the address is taken.
    """
    storage, (host, port) = workspace.settings.storage, (workspace.settings.proxy.host, workspace.settings.proxy.port)
    if storage.kind != "postgres":
        raise FlowpruneError(f"stages=[proxy] serves a database, and storage is {storage.kind}: set storage=postgres.")
    try:
        threads = ThreadPoolExecutor(CONNECTIONS)
        server = proxy_server(open_storage(storage), host, port, threads)
    except ImportError as error:
        raise FlowpruneError("stages=[proxy] needs grpcio: pip install 'flowprune[postgres]'.") from error
    except RuntimeError as error:
        raise FlowpruneError(f"{host}:{port} cannot be listened on: set proxy.host or proxy.port.") from error
    server.start()
    console.print(f"{named(storage)} is served at {host}:{port}; Ctrl-C stops it")
    server.wait_for_termination()
