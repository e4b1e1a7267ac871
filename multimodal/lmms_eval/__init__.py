"""``lmms-eval --model flowprune``: benchmarks of the field on a model that is pruned as a config says."""

from typing import Any


def manifest() -> Any:
    """What the entry point gives lmms-eval: the model's name, and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("flowprune", chat_class_path=f"{__name__}.model.PrunedModel")
