"""``python -m pipelines.train_tiny``: all stages in order; see conf/train_tiny.yaml."""

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from pipelines.train_tiny.decoder import train_decoder
from pipelines.train_tiny.evaluate import evaluate
from pipelines.train_tiny.export import card_table, export, write_card
from pipelines.train_tiny.joint import train_joint, train_projector
from pipelines.train_tiny.loop import LOG_FILE
from pipelines.train_tiny.model import build_model, build_processor, start_from
from pipelines.train_tiny.tower import NamingTower, train_tower

log = logging.getLogger(__name__)


def train(config: DictConfig) -> None:
    """Run the stages that the config names; a finished stage only loads its checkpoint."""
    torch.set_num_threads(config.threads)
    folder, target = Path(config.folder), Path(config.export)
    model = build_model(config.model, config.seed)
    if config.start:
        start_from(model, Path(config.start))
    processor = build_processor(config.model)
    tower = NamingTower(model.model.vision_tower)
    if "tower" in config.stages:
        train_tower(tower, config.tower, folder)
    if "decoder" in config.stages:
        train_decoder(model, processor, config.decoder, folder)
    if "joint" in config.stages:
        train_projector(model, tower, config.projector, folder)
        train_joint(model, processor, tower, config.joint, folder)
    if "export" in config.stages:
        export(model, processor, target)
    if "evaluate" in config.stages:
        table = card_table(evaluate(target, config.evaluate))
        write_card(target, table, folder / LOG_FILE, config)
        log.info("exact match on %d test questions\n%s", config.evaluate.samples, table)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train_tiny")
def main(config: DictConfig) -> None:
    """Hydra entry."""
    train(config)


if __name__ == "__main__":
    main()
