"""The Hydra configuration; config.yaml is its table of contents."""
