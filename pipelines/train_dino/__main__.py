"""``python -m pipelines.train_dino``: all stages in order; see conf/train_dino.yaml."""

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from pipelines.data.photos import photo_background
from pipelines.train_dino.encode import encode
from pipelines.train_dino.export import export, write_card
from pipelines.train_dino.learn import train_answers, train_projector
from pipelines.train_dino.model import build_dino, start_decoder
from pipelines.train_tiny.evaluate import evaluate
from pipelines.train_tiny.export import card_table
from pipelines.train_tiny.loop import LOG_FILE

log = logging.getLogger(__name__)

GROUNDS = {"photos": photo_background, "scenes": None}


def train(config: DictConfig) -> None:
    """Run the stages that the config names; a finished stage only loads what it left."""
    torch.set_num_threads(config.threads)
    folder, target = Path(config.folder), Path(config.export)
    model, processor = build_dino(config.model, config.seed)
    model.to(config.device)
    if "encode" in config.stages or "answers" in config.stages:
        encoded = encode(model, processor, config.encode, folder)
    if "answers" in config.stages:
        start_decoder(model, Path(config.decoder))
        train_projector(model, encoded, config.projector, folder)
        train_answers(model, processor, encoded, config.answers, folder)
        export(model, processor, encoded, target)
    if "evaluate" in config.stages:
        tables = {}
        for ground, samples in config.evaluate.samples.items():
            options = OmegaConf.merge(config.evaluate, {"samples": samples})
            tables[ground] = card_table(evaluate(target, options, GROUNDS[ground]))
            log.info("exact match on %d test questions of data=%s\n%s", samples, ground, tables[ground])
        write_card(target, tables, folder / LOG_FILE, config)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="train_dino")
def main(config: DictConfig) -> None:
    """Hydra entry."""
    train(config)


if __name__ == "__main__":
    main()
