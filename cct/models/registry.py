"""Names to models: every official name, the short names, the generic builders; `create_model`, `list_models`."""

import fnmatch
import logging
from dataclasses import dataclass, field

from .arguments import nearest, official
from .checkpoints import load_checkpoint
from .fitting import CheckpointError, load_weights, model_kwargs
from .pretrained import RELEASED, resolve
from .text import TextCCT, TextCVT, TextTransformerLite, TextViTLite
from .vision import CCT, CVT, CCTClassToken, ViTLite

_log = logging.getLogger("cct")

# L -> (num_layers, num_heads, mlp_ratio, embedding_dim); paper Table 6 and the first release (8, 10, 16, 24, 32).
BACKBONES = {
    2: (2, 2, 1, 128),
    4: (4, 2, 1, 128),
    6: (6, 4, 2, 256),
    7: (7, 4, 2, 256),
    8: (8, 4, 2, 256),
    10: (10, 8, 3, 512),
    12: (12, 12, 4, 768),
    14: (14, 6, 3, 384),
    16: (16, 6, 3, 384),
    24: (24, 16, 4, 1024),
    32: (32, 16, 4, 1280),
}
# Name L_KxC: C convolutions of side K. 32 x 32 images, 10 classes; each also as `<name>_32` and `<name>_32_sine`.
CCT_32 = ("2_3x2", "4_3x2", "6_3x1", "6_3x2", "7_3x1", "7_3x2", "7_7x1")
# Name L_P: patches of P x P pixels; likewise.
CVT_32 = ("2_4", "4_4", "6_4", "7_4", "8_4", "6_8", "7_8", "7_16", "7_2")
VIT_32 = ("2_4", "4_4", "6_4", "7_4", "8_4", "6_8", "7_8", "6_16", "7_16", "12_16")
# The rest of the official names: (name, L_KxC, image side, classes, embedding).
CCT_LARGE = (
    ("cct_7_3x1_32_c100", "7_3x1", 32, 100, "learnable"),
    ("cct_7_3x1_32_sine_c100", "7_3x1", 32, 100, "sine"),
    ("cct_7_7x2_224", "7_7x2", 224, 102, "learnable"),
    ("cct_7_7x2_224_sine", "7_7x2", 224, 102, "sine"),
    ("cct_14_7x2_224", "14_7x2", 224, 1000, "learnable"),
    ("cct_14_7x2_384", "14_7x2", 384, 1000, "learnable"),
    ("cct_14_7x2_384_fl", "14_7x2", 384, 102, "learnable"),
)


@dataclass(frozen=True)
class Entry:
    """A registered name: the class and its arguments."""

    cls: type
    kwargs: dict = field(default_factory=dict)


def _backbone(layers):
    return dict(zip(("num_layers", "num_heads", "mlp_ratio", "embedding_dim"), BACKBONES[layers], strict=True))


def _architecture(text):
    """The text "7_3x1" -> backbone 7, kernel 3, one convolution; "7_4" -> backbone 7, patch 4."""
    layers, kernel = text.split("_")
    side, _, convs = kernel.partition("x")
    return _backbone(int(layers)) | {"kernel_size": int(side)} | ({"n_conv_layers": int(convs)} if convs else {})


def _registry():
    models = {}
    for family, cls, names in (("cct", CCT, CCT_32), ("cvt", CVT, CVT_32), ("vit", ViTLite, VIT_32)):
        for name in names:
            kwargs = _architecture(name) | {"img_size": 32, "num_classes": 10, "positional_embedding": "learnable"}
            models[f"{family}_{name}"] = models[f"{family}_{name}_32"] = Entry(cls, kwargs)
            models[f"{family}_{name}_32_sine"] = Entry(cls, kwargs | {"positional_embedding": "sine"})
        for layers in BACKBONES:  # generic builders: image 224, 1000 classes, kernel 3 or patch 4, all to be overridden
            models[f"{family}_{layers}"] = Entry(cls, _backbone(layers) | {"kernel_size": 3 if cls is CCT else 4})
    for name in ("7_3x2", "7_7x1"):
        models[f"cct_{name}_noseqpool"] = Entry(CCTClassToken, models[f"cct_{name}"].kwargs)
    for name, architecture, size, classes, embedding in CCT_LARGE:
        kwargs = {"img_size": size, "num_classes": classes, "positional_embedding": embedding}
        models[name] = Entry(CCT, _architecture(architecture) | kwargs)
    # The first release called the vision transformers with at most 8 layers ViT-Lite.
    models |= {f"vit_lite{n[3:]}": e for n, e in models.items() if n.startswith("vit_") and e.kwargs["num_layers"] <= 8}
    for layers in (2, 4, 6):
        for family, cls in (("cct", TextCCT), ("cvt", TextCVT), ("vit", TextViTLite)):
            models[f"text_{family}_{layers}"] = Entry(cls, _backbone(layers) | {"kernel_size": 4})
        kwargs = _backbone(layers)
        kwargs["word_embedding_dim"] = 300
        del kwargs["embedding_dim"]
        models[f"text_transformer_{layers}"] = Entry(TextTransformerLite, kwargs)
    return models


MODELS = _registry()
CLASSES = {c.__name__: Entry(c) for c in (CCT, CCTClassToken, CVT, ViTLite, TextCCT, TextCVT, TextViTLite, TextTransformerLite)}


def list_models(pattern=None):
    """The registered names, sorted; `pattern` may hold * and ? ("cct_7*")."""
    return sorted(name for name in MODELS if pattern is None or fnmatch.fnmatchcase(name, pattern))


def find(name):
    """The `Entry` of a name. Raises ValueError naming the nearest one when there is none."""
    entry = MODELS.get(name) or CLASSES.get(name)
    if entry is None:
        raise ValueError(
            f"create_model: unknown model {name!r}{nearest(name, MODELS)}; cct.models.list_models() names them all"
        )
    return entry


def create_model(
    name, *, pretrained=False, num_classes=None, img_size=None, in_chans=None, fused=True, progress=True, **kwargs
):  # fmt: skip
    """Build a registered model.

    Args:
        name: one of `list_models()`, or a class name ("CCT") as it stands in `model.config`.
        pretrained: False; True for the released weights of this name; a path (.pth, zipped .pth, .safetensors); or the name of
            a model or file with released weights. Downloads go to the folder of CCT_CACHE, by default ~/.cache/cct.
        num_classes, img_size, in_chans: None takes those of the name; with `pretrained`, the number of classes of the weights
            (and the image size, when the file says). A different number of classes leaves a fresh head, a different image
            size resizes the positional embedding; either is reported in one line.
        fused: True, False or "strict", see `CompactTransformer`. progress: show the progress of a download.
        kwargs: any other argument of the model class (`help(cct.models.CCT)`).

    Raises: ValueError for an unknown name, TypeError for an unknown argument, CheckpointError for weights that do not load.
    """
    entry = find(name)
    sizes = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans}
    given = official(entry.cls, {**kwargs, **{k: v for k, v in sizes.items() if v is not None}})
    weights = config = None
    if pretrained:
        path = resolve(pretrained, name, progress)
        weights, config = load_checkpoint(path)
        given = _from_checkpoint(weights, config) | given
    model = entry.cls(**entry.kwargs | given, fused=fused)
    model.config["name"] = name
    if name in RELEASED:
        model.preprocessing = RELEASED[name].preprocessing
    if weights is not None:
        try:
            lines = load_weights(model, weights, config)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        if lines:
            _log.warning("%s: %s", path, "; ".join(lines))
    return model


def _from_checkpoint(weights, config):
    """What a checkpoint decides where the caller says nothing: the number of classes, the image size."""
    head = weights.get("classifier.fc.weight")
    decided = {} if head is None or head.dim() != 2 else {"num_classes": head.shape[0]}
    if (size := model_kwargs(config).get("img_size")) is not None:
        decided["img_size"] = size
    return decided


def constructor(name):
    """The function `name(pretrained=False, progress=True, **kwargs)` of a registered name, with the official signature."""

    def build(pretrained=False, progress=True, **kwargs):
        return create_model(name, pretrained=pretrained, progress=progress, **kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`create_model({name!r}, ...)`: {MODELS[name].cls.__name__} with {MODELS[name].kwargs}."
    return build
