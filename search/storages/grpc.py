"""A study behind Optuna's gRPC proxy: hundreds of workers share its few connections to the database."""

from optuna.storages import BaseStorage, GrpcStorageProxy

from multimodal import FlowpruneError
from search.storages.patience import make_patient

ANSWER_SECONDS = 10.0  # within which a proxy that is there answers


def grpc_storage(host: str, port: int) -> BaseStorage:
    """A proxy that hundreds of workers on many hosts share; ``flowprune stages=[proxy]`` starts one.

    Raises:
        FlowpruneError: it does not answer.
    """
    where = f"{host}:{port}"
    try:
        storage = GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(ANSWER_SECONDS)
    except ImportError as error:
        raise FlowpruneError("storage=grpc needs grpcio: pip install 'flowprune[postgres]'.") from error
    except ConnectionError as error:
        raise FlowpruneError(
            f"No storage proxy answers at {where}: start one with flowprune stages=[proxy] storage=postgres, "
            "or set storage.host and storage.port."
        ) from error
    return make_patient(storage, where, _is_lost)


def _is_lost(error: Exception) -> bool:
    import grpc

    return isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.UNAVAILABLE
