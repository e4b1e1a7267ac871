"""Pruning inside the vision tower: rules by which patches leave it before the projector."""

from multimodal.tower.rule import TowerLayer, TowerRule

__all__ = ["TowerLayer", "TowerRule"]
