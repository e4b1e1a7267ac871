"""What pruning costs and saves on this machine: ``python -m multimodal.benchmark --help``.

Needs torch, transformers and pydantic alone, and no checkpoint: the speed of a model with random weights is its own.
"""
