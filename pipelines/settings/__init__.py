"""What a run is told: one schema a group of conf/, checked before torch or MLflow is imported."""

from pipelines.settings.budget import MEASURES, BudgetSettings
from pipelines.settings.check import check_settings, flat_name, register_resolvers
from pipelines.settings.cluster import ClusterSettings, LocalCluster, NoCluster, RayCluster, SlurmCluster
from pipelines.settings.composed import Settings
from pipelines.settings.data import Columns, DataSettings
from pipelines.settings.engine import EngineSettings, TransformersSettings, VllmSettings
from pipelines.settings.method import MethodSettings, Untuned
from pipelines.settings.model import ModelSettings
from pipelines.settings.search import SearchSettings
from pipelines.settings.serving import NO_ENGINE, ServingSettings
from pipelines.settings.stages import (
    BenchmarkSettings,
    CompareSettings,
    GenerateSettings,
    MapsSettings,
    ProxySettings,
    ServeSettings,
    Stage,
)
from pipelines.settings.storage import FileStorage, GrpcStorage, PostgresStorage, StorageSettings
from pipelines.settings.tracking import TrackingSettings

__all__ = [
    "MEASURES",
    "NO_ENGINE",
    "BenchmarkSettings",
    "BudgetSettings",
    "ClusterSettings",
    "Columns",
    "CompareSettings",
    "DataSettings",
    "EngineSettings",
    "FileStorage",
    "GenerateSettings",
    "GrpcStorage",
    "LocalCluster",
    "MapsSettings",
    "MethodSettings",
    "ModelSettings",
    "NoCluster",
    "PostgresStorage",
    "ProxySettings",
    "RayCluster",
    "SearchSettings",
    "ServeSettings",
    "ServingSettings",
    "Settings",
    "SlurmCluster",
    "Stage",
    "StorageSettings",
    "TrackingSettings",
    "TransformersSettings",
    "Untuned",
    "VllmSettings",
    "check_settings",
    "flat_name",
    "register_resolvers",
]
