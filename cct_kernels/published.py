"""How the modules of the published models are laid out: what `fuse` looks for, and reads at each call."""

from typing import NamedTuple

from torch import nn

from .encoder import Block

LOOKED_FOR = (
    "tokenizer.conv_layers[i] = Sequential(Conv2d, ReLU or Identity, MaxPool2d or Identity) and classifier with seq_pool, "
    "positional_emb, attention_pool or class_emb, dropout, norm, fc and blocks, each with pre_norm, self_attn.qkv, "
    "self_attn.proj, self_attn.num_heads (or heads), linear1, norm1, linear2, dropout1, dropout2 and drop_path"
)
PARTS = (
    "pre_norm", "self_attn.qkv", "self_attn.attn_drop", "self_attn.proj", "self_attn.proj_drop", "linear1", "dropout1", "norm1",
    "linear2", "dropout2", "drop_path",
)  # fmt: skip


class Stage(NamedTuple):
    """One step of a tokenizer; pool: (kernel, stride, padding) or None."""

    conv: nn.Conv2d
    relu: bool
    pool: tuple | None


class Facts(NamedTuple):
    """What the ops need of a block, as it is now: rates are 0 in evaluation mode."""

    parameters: Block
    num_heads: int
    attn_dropout: float
    dropout: float
    drop_path: float
    eps: float


def bare(module, *classes):
    """Whether `module` is of one of these classes, LayerNorm or Linear if none is named, itself and without hooks."""
    return not hooked(module) and type(module) in (classes or (nn.LayerNorm, nn.Linear))


def hooked(module):
    """Whether somebody looks at what goes in and out of this module."""
    own = module.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"])


def read_stages(tokenizer):
    """The stages of a tokenizer, or None when one is not what it was published as."""
    stages = []
    for layer in tokenizer.conv_layers:
        if type(layer) is not nn.Sequential or len(layer) != 3:
            return None
        conv, activation, pool = layer
        known = type(activation) in (nn.ReLU, nn.Identity) and type(pool) in (nn.MaxPool2d, nn.Identity)
        if not known or not bare(conv, nn.Conv2d) or not all(bare(m, type(m)) for m in (layer, activation, pool)):
            return None
        if isinstance(conv.padding, str) or conv.groups != 1 or conv.padding_mode != "zeros" or set(conv.dilation) != {1}:
            return None
        window = None
        if type(pool) is nn.MaxPool2d:
            if pool.ceil_mode or pool.return_indices or pool.dilation != 1:
                return None
            window = (pool.kernel_size, pool.stride, pool.padding)
        stages.append(Stage(conv, type(activation) is nn.ReLU, window))
    return stages if stages and bare(tokenizer.conv_layers, nn.Sequential) else None


def read_block(block):
    """The facts of a block, or None when it is not, or no longer, what it was published as."""
    attention = block.self_attn
    linears = attention.qkv, attention.proj, block.linear1, block.linear2
    dropouts = attention.attn_drop, attention.proj_drop, block.dropout1, block.dropout2
    norms = block.pre_norm, block.norm1
    if not bare(attention, type(attention)) or not all(bare(module) for module in (*linears, *norms)):
        return None
    if not all(bare(module, nn.Dropout) for module in dropouts) or not bare(block.drop_path, type(block.drop_path)):
        return None
    if type(block.drop_path) is not nn.Identity and not hasattr(block.drop_path, "drop_prob"):
        return None
    if not getattr(block.drop_path, "scale_by_keep", True):  # an option of timm's
        return None
    attn_dropout, *others = (module.p if module.training else 0.0 for module in dropouts)
    rate = (getattr(block.drop_path, "drop_prob", None) or 0.0) if block.drop_path.training else 0.0
    eps = {norm.eps for norm in norms}
    qkv, proj, fc1, fc2 = linears
    if len(set(others)) != 1 or len(eps) != 1 or qkv.bias is not None or max(attn_dropout, *others, rate) >= 1:
        return None
    norm, norm1 = norms
    parameters = Block(
        norm.weight, norm.bias, qkv.weight, proj.weight, proj.bias, norm1.weight, norm1.bias, fc1.weight, fc1.bias, fc2.weight,
        fc2.bias,
    )  # fmt: skip
    if any(parameter is None for parameter in parameters):
        return None
    return Facts(parameters, _num_heads(attention), attn_dropout, others[0], rate, eps.pop())


def missing(model):
    """What a model lacks of the published layout, or None."""
    layers = getattr(model.tokenizer, "conv_layers", None)
    if not isinstance(layers, nn.Sequential) or not layers or not all(_is_stage(layer) for layer in layers):
        return "tokenizer.conv_layers is not that"
    classifier = model.classifier
    pooling = "attention_pool" if getattr(classifier, "seq_pool", True) else "class_emb"
    for name in ("seq_pool", "positional_emb", pooling, "dropout", "norm", "fc", "blocks"):
        if not hasattr(classifier, name):
            return f"classifier has no {name}"
    for i, block in enumerate(classifier.blocks):
        for path in PARTS:
            if not isinstance(_attribute(block, path), nn.Module):
                return f"classifier.blocks[{i}] has no {path}"
        if _num_heads(block.self_attn) is None:
            return f"classifier.blocks[{i}].self_attn has neither num_heads nor heads"
    return None if len(classifier.blocks) else "classifier.blocks is empty"


def _is_stage(layer):
    kinds = nn.Conv2d, (nn.ReLU, nn.Identity), (nn.MaxPool2d, nn.Identity)
    return isinstance(layer, nn.Sequential) and len(layer) == 3 and all(map(isinstance, layer, kinds))


def _num_heads(attention):
    return getattr(attention, "num_heads", getattr(attention, "heads", None))


def _attribute(module, path):
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
