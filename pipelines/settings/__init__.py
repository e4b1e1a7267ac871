"""What a run is told: one schema a group of conf/, checked before torch or MLflow is imported."""

from pipelines.settings.budget import MEASURES, BudgetSettings
from pipelines.settings.check import check_settings, flat_name, register_resolvers
from pipelines.settings.cluster import ClusterSettings, LocalCluster, NoCluster, RayCluster, SlurmCluster
from pipelines.settings.composed import Settings
from pipelines.settings.data import Columns, DataSettings
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
    "ServingSettings",
    "Settings",
    "SlurmCluster",
    "Stage",
    "StorageSettings",
    "TrackingSettings",
    "Untuned",
    "check_settings",
    "flat_name",
    "register_resolvers",
]
