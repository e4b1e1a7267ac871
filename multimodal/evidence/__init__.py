"""Evidence: what a pruning method may look at. It declares a few small requests, and is given what answers them."""

from multimodal.evidence.language import LanguageAttention, TextEmbeddings
from multimodal.evidence.request import LanguageRequest, Request, VisionRequest, joined
from multimodal.evidence.tower import LayerAttention, TowerViews
from multimodal.evidence.views import VisionEvidence, stacked, token_evidence
from multimodal.evidence.vision import (
    ClassAttention,
    ContextRelevance,
    PatchEntropy,
    ReceivedAttention,
    VisionFeatures,
    VisionKeys,
    VisionValues,
)

__all__ = [
    "ClassAttention",
    "ContextRelevance",
    "LanguageAttention",
    "LanguageRequest",
    "LayerAttention",
    "PatchEntropy",
    "ReceivedAttention",
    "Request",
    "TextEmbeddings",
    "TowerViews",
    "VisionEvidence",
    "VisionFeatures",
    "VisionKeys",
    "VisionRequest",
    "VisionValues",
    "joined",
    "stacked",
    "token_evidence",
]
