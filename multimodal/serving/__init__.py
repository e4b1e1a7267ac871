"""Pruned images for engines that serve the language model themselves."""
