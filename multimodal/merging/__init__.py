"""Merging: where the tokens that a method does not keep go. One file a rule; any method can be combined with any."""

from multimodal.merging.cells import CellMerging
from multimodal.merging.clusters import ClusterMerging, cluster_centres, merge_clusters
from multimodal.merging.nearest import NearestMerging, merge_into_nearest, most_similar
from multimodal.merging.none import NoMerging
from multimodal.merging.rule import MergingRule, make_merging, merging_named

__all__ = [
    "CellMerging",
    "ClusterMerging",
    "MergingRule",
    "NearestMerging",
    "NoMerging",
    "cluster_centres",
    "make_merging",
    "merge_clusters",
    "merge_into_nearest",
    "merging_named",
    "most_similar",
]
