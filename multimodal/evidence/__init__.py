"""Evidence: what a pruning method may look at. It declares a few small requests, and is given what answers them."""

from multimodal.evidence.language import (
    LanguageAttention,
    LanguageVectors,
    TextEmbeddings,
    TextStates,
    VisualEmbeddings,
)
from multimodal.evidence.request import LanguageRequest, Request, VisionRequest, joined
from multimodal.evidence.tower import LayerAttention, TowerViews
from multimodal.evidence.views import VisionEvidence, stacked, token_evidence
from multimodal.evidence.vision import (
    AttentionSinks,
    ClassAttention,
    ContextRelevance,
    GlobalAttention,
    PatchEntropy,
    ReceivedAttention,
    Statistic,
    TowerScore,
    VisionFeatures,
    VisionKeys,
    VisionValues,
)

__all__ = [
    "AttentionSinks",
    "ClassAttention",
    "ContextRelevance",
    "GlobalAttention",
    "LanguageAttention",
    "LanguageRequest",
    "LanguageVectors",
    "LayerAttention",
    "PatchEntropy",
    "ReceivedAttention",
    "Request",
    "Statistic",
    "TextEmbeddings",
    "TextStates",
    "TowerScore",
    "TowerViews",
    "VisionEvidence",
    "VisionFeatures",
    "VisionKeys",
    "VisionRequest",
    "VisionValues",
    "VisualEmbeddings",
    "joined",
    "stacked",
    "token_evidence",
]
