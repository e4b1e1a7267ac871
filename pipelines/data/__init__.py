"""Data sources: the shipped scenes, a folder of images, or anything that Hugging Face datasets loads."""

from pipelines.data.load import Part, data_digest, load_samples
from pipelines.data.sample import Sample

__all__ = ["Part", "Sample", "data_digest", "load_samples"]
