"""ViT-Lite, CVT, CCT and their text twins, with the state-dict keys of the published checkpoints.

    from cct.models import create_model
    model = create_model("cct_7_3x1_32", pretrained=True)   # or cct.models.cct_7_3x1_32(pretrained=True)

Every name of `list_models()` is also a function of this module.
"""

from . import registry
from .checkpoints import CheckpointError
from .complexity import count_macs, count_parameters
from .registry import create_model, list_models
from .text import TextCCT, TextCVT, TextTransformerLite, TextViTLite
from .vision import CCT, CVT, ViTLite

globals().update({name: registry.constructor(name) for name in registry.MODELS})

__all__ = [
    "CCT",
    "CVT",
    "CheckpointError",
    "TextCCT",
    "TextCVT",
    "TextTransformerLite",
    "TextViTLite",
    "ViTLite",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_models",
    *registry.MODELS,
]
