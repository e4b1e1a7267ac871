"""The stages of the pipeline, a file each: ``run`` does it."""
