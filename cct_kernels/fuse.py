"""Runs a live model of the published layout through the fused ops, in place, and back.

The parts of the model (tokenizer, blocks, classifier) become instances of a subclass of their own class with another `forward`:
parameters, state dict, hooks, `isinstance` and everything else stay as they are.
"""

import copy
import functools

import torch
from torch import nn

from .calls import draw_drop_path
from .conv_tokenizer import conv_tokenizer
from .encoder import encoder
from .layernorm_attention import layernorm_attention
from .layernorm_mlp import layernorm_mlp
from .published import LOOKED_FOR, bare, missing, read_block, read_stages
from .seqpool import seqpool

PROBE_TOKENS = 5


def fuse(model):
    """Patch every CCT, CVT or ViT-Lite inside `model` so that its forward and backward pass run through the fused ops.

    Known are the models of the official Compact-Transformers repository and of vit-pytorch, by their attributes and not by
    their class, and those of cct.models, where this is `model.fused = True`. That a model also computes what the published
    ones do is checked first, in float64 on a copy of each part with a few tokens.

    Dropout and stochastic depth keep the rates of their modules, training and evaluation mode; their masks are drawn in another
    order than before. Hooks on the model, its tokenizer, classifier, blocks and head run as before. A block whose inner modules
    have hooks, parametrizations or replacements (LoRA, quantisation) runs unfused for as long as that is so.

    Returns: the model. Calling it again changes nothing; `unfuse` takes it back.
    Raises: ValueError for a model without such a part, or one that computes something else; it is then unchanged.
    """
    own, published = _find(model)
    for part in published:
        _verify(part)
    for part in own:
        if part.fused is False:
            part.fused_before, part.fused = False, True
    for part in published:
        _patch(part)
    return model


def unfuse(model):
    """Undo `fuse`. Returns the model, which may be one that was never fused."""
    for module in model.modules():
        if isinstance(module, _Fused):
            module.__class__ = type(module).original
        elif "fused_before" in vars(module):
            module.fused = module.fused_before
            del module.fused_before
    return model


class _Fused:
    """Base of the patched classes; `original` is the class of the module before."""

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        kind = next(k for k in (_Tokenizer, _Block, _Classifier) if isinstance(self, k))
        return (_rebuild, (kind, type(self).original), *state)  # the class is made on the spot: pickle cannot find it by name


class _Tokenizer(_Fused):
    def forward(self, x):
        stages = read_stages(self)
        if stages is None or x.dim() != 4:
            return super().forward(x)
        for conv, relu, pool in stages:
            x = conv_tokenizer(
                x, conv.weight, conv.bias, stride=conv.stride, padding=conv.padding, relu=relu, pool=pool,
                tokens=conv is stages[-1].conv,
            )  # fmt: skip
        return x


class _Block(_Fused):
    def forward(self, src, *args, **kwargs):
        facts = read_block(self)
        if facts is None or args or kwargs:
            return super().forward(src, *args, **kwargs)
        attention_scale, mlp_scale = _scales(src, [facts])[0] if facts.drop_path else (None, None)
        parameters, dropout, eps = facts.parameters, facts.dropout, facts.eps
        x = layernorm_attention(
            src, *parameters[:5], num_heads=facts.num_heads, attn_dropout=facts.attn_dropout, dropout=dropout,
            drop_path_scale=attention_scale, eps=eps,
        )  # fmt: skip
        return layernorm_mlp(x, *parameters[5:], dropout=dropout, drop_path_scale=mlp_scale, eps=eps)


class _Classifier(_Fused):
    def forward(self, x, *args, **kwargs):
        pooling = (self.norm, self.attention_pool) if self.seq_pool else (self.norm,)
        if args or kwargs or not all(bare(module) for module in pooling):
            return super().forward(x, *args, **kwargs)
        if not self.seq_pool:
            x = torch.cat([self.class_emb.expand(x.shape[0], -1, -1).to(x.dtype), x], 1)
        if self.positional_emb is not None:
            x = x + self.positional_emb.to(x.dtype)
        x = _encode(self.blocks, self.dropout(x))
        if not self.seq_pool:
            return self.fc(self.norm(x[:, 0]))
        norm, score = self.norm, self.attention_pool
        return self.fc(seqpool(x, score.weight, score.bias, norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps))


def _encode(blocks, x):
    """All blocks in one op where they are alike and nobody watches them, else one by one."""
    facts = [read_block(block) if bare(block, type(block)) else None for block in blocks]
    if None in facts or len({f[1:] for f in (f._replace(drop_path=0.0) for f in facts)}) != 1:
        for block in blocks:
            x = block(x)
        return x
    first = facts[0]
    return encoder(
        x, [f.parameters for f in facts], num_heads=first.num_heads, attn_dropout=first.attn_dropout, dropout=first.dropout,
        drop_path_scales=_scales(x, facts) if any(f.drop_path for f in facts) else None, eps=first.eps,
    )  # fmt: skip


def _scales(x, facts):
    return draw_drop_path(x, [f.drop_path for f in facts])


@functools.cache
def _fused_class(kind, original):
    return type(f"Fused{original.__name__}", (kind, original), {"original": original, "__module__": original.__module__})


def _rebuild(kind, original):
    cls = _fused_class(kind, original)
    return cls.__new__(cls)


def _patch(part):
    kinds = [(part.tokenizer, _Tokenizer), (part.classifier, _Classifier), *((b, _Block) for b in part.classifier.blocks)]
    for module, kind in kinds:
        if not isinstance(module, _Fused):
            module.__class__ = _fused_class(kind, type(module))


def _find(model):
    """Models of cct.models and models of the published layout inside `model`."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"fuse: model is {type(model).__name__}; expected a torch.nn.Module")
    own = [m for m in model.modules() if hasattr(m, "fused_report")]
    inside = {id(m) for part in own for m in part.modules()}
    others = [m for m in model.modules() if id(m) not in inside and hasattr(m, "tokenizer") and hasattr(m, "classifier")]
    if not own and not others:
        raise ValueError(f"fuse: {type(model).__name__} has no tokenizer and classifier; looked for {LOOKED_FOR}")
    for part in others:
        if reason := missing(part):
            raise ValueError(f"fuse: {type(part).__name__}: {reason}; looked for {LOOKED_FOR}")
    return own, others


def _verify(part):
    """ValueError unless the parts compute what the ops compute, on random input, in float64."""
    conv = part.tokenizer.conv_layers[0][0]
    size = [max(16, 4 * side) for side in conv.kernel_size]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, conv.in_channels, *size, generator=generator, dtype=torch.float64)
    C = part.classifier.norm.normalized_shape[0]
    tokens = torch.randn(2, _probe_tokens(part.classifier), C, generator=generator, dtype=torch.float64)
    before, after = _copy(part), _copy(part)
    unfuse(before)
    _patch(after)
    pairs = [("tokenizer", before.tokenizer, after.tokenizer, image)]
    blocks = zip(before.classifier.blocks, after.classifier.blocks, strict=True)
    pairs += [(f"classifier.blocks[{i}]", a, b, tokens) for i, (a, b) in enumerate(blocks)]
    pairs += [("classifier", before.classifier, after.classifier, tokens)]
    with torch.no_grad():
        for name, original, fused, x in pairs:
            try:
                expected, found = original(x.clone()), fused(x.clone())
                same = torch.allclose(found, expected, rtol=1e-7, atol=1e-9)
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"fuse: {name} does not run on a small input: {error}") from error
            if not same:
                raise ValueError(
                    f"fuse: {name} ({type(original).__name__}) computes something else than the published code: it differs by "
                    f"{(found - expected).abs().max():.2g} on a random input"
                )


def _copy(part):
    """The part in float64 on the CPU, in evaluation mode, without hooks, for as many tokens as the probe has."""
    part = copy.deepcopy(part).to("cpu", torch.float64).eval()
    for module in part.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            getattr(module, name).clear()
    classifier = part.classifier
    rows = _probe_tokens(classifier) + (not classifier.seq_pool)
    if classifier.positional_emb is not None:
        classifier.positional_emb = nn.Parameter(classifier.positional_emb[:, :rows].detach())
    elif hasattr(classifier, "sequence_length"):
        classifier.sequence_length = rows  # the official code wants to pad shorter input, and fails
    return part


def _probe_tokens(classifier):
    """Few, but no more than the positional embedding has."""
    if classifier.positional_emb is None:
        return PROBE_TOKENS
    return min(PROBE_TOKENS, classifier.positional_emb.shape[1] - (not classifier.seq_pool))
