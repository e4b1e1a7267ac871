"""The composed configuration at the door: a wrong value is one sentence before any work."""

import re

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from multimodal import FlowpruneError
from multimodal.errors import one_sentence
from pipelines.settings.composed import Settings


def flat_name(path: str) -> str:
    """A path or hub id as one word, for names of studies and folders."""
    return re.sub(r"[^\w.-]+", "_", str(path)).strip("_")


def register_resolvers() -> None:
    """Make ``${flat_name:…}`` known to the configuration files."""
    OmegaConf.register_new_resolver("flat_name", flat_name, replace=True)


def check_settings(cfg: DictConfig) -> Settings:
    """Resolve and check a composed configuration.

    Raises:
        FlowpruneError: the first wrong value, in one sentence.
    """
    try:
        return Settings.model_validate(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise FlowpruneError(f"{str(error).splitlines()[0]}: give it on the command line as key=value.") from error
    except ValidationError as error:
        raise FlowpruneError(one_sentence(error)) from error
