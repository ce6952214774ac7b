"""The kernels of a model for five ways to run it: bytes, operations, launches. The base of `cct info --roofline`.

    eager      the published code with PyTorch's fused attention: every operation a kernel of its own
    compiled   the same through torch.compile: what stands between two matrix products is one kernel
    ops        our four ops: one kernel for what is local to a row, where the width of the model lets it fit
    encoder    our whole encoder: two kernels a layer and direction, weight gradients from passes of their own
    least      the same, weight gradients taken on the way: nothing is read twice

An activation is N C numbers; each tensor that a kernel reads or writes counts once, weights once a batch, statistics and masks
not at all.
"""

from typing import NamedTuple

from cct.models.complexity import count_parameters

WAYS = ("eager", "compiled", "ops", "encoder", "least")
FUSED = WAYS[2:]
LAUNCH = 2.5e-6  # seconds a launch takes of the CPU's time, about; replayed from a CUDA graph it is nearer 1e-6


class Kernel(NamedTuple):
    """Bytes and operations of one image, bytes of weights of one batch, launches."""

    part: str
    name: str
    bytes: float
    flops: float = 0.0
    weights: float = 0.0
    launches: int = 1


class Shape(NamedTuple):
    """What the kernels of a model depend on; e: bytes of a number."""

    N: int
    C: int
    F: int
    L: int
    classes: int
    seq_pool: bool
    positional: bool
    drop_path: bool
    stages: tuple
    e: int


class Stage(NamedTuple):
    """A tokenizer's stage: numbers of its input, convolved image and output for one image; operations; weights."""

    input: int
    convolved: int
    output: int
    flops: int
    weights: int
    pool: bool
    relu: bool


def shape_of(model, itemsize=2):
    """The Shape of a vision model of cct.models. Raises ValueError for a text model."""
    if not hasattr(model, "img_size"):
        raise ValueError(f"roofline: {model.config['name']} reads text; expected an image model")
    size, stages, tokenizer, classifier = model.img_size, [], model.tokenizer, model.classifier
    for conv, (convolved, pooled) in zip(tokenizer.convs, tokenizer.sizes(size), strict=True):
        pixels, out = convolved[0] * convolved[1], pooled[0] * pooled[1]
        numbers = conv.in_channels * size[0] * size[1], conv.out_channels * pixels, conv.out_channels * out
        flops = 2 * pixels * conv.weight.numel()
        stages.append(Stage(*numbers, flops, conv.weight.numel(), tokenizer.pool is not None, tokenizer.relu))
        size = pooled
    block = classifier.blocks[-1]
    return Shape(
        N=size[0] * size[1] + (not classifier.seq_pool), C=model.num_features, F=block.linear1.out_features,
        L=len(classifier.blocks), classes=model.num_classes, seq_pool=classifier.seq_pool,
        positional=classifier.positional_emb is not None, drop_path=block.drop_path > 0, stages=tuple(stages), e=itemsize,
    )  # fmt: skip


def kernels(model, way, training, itemsize=2):
    """The kernels of a forward pass, or of a training step with AdamW (float32 moments), in groups by their `part`."""
    shape = shape_of(model, itemsize)
    result = [k for i, stage in enumerate(shape.stages) for k in _tokenizer(shape, stage, i, way, training)]
    for layer in range(shape.L):
        result += _layer(shape, layer, way, training)
    result += _head(shape, way, training)
    if training:
        result.append(Kernel("optimizer", "AdamW", 0.0, weights=28.0 * count_parameters(model).trainable))
    return result


def _tokenizer(shape, stage, index, way, training):
    part, e = f"tokenizer {index + 1}", shape.e
    x, conv, out, weights, flops = stage.input * e, stage.convolved * e, stage.output * e, stage.weights * e, stage.flops
    fused = way in FUSED
    chosen = stage.output * (8 if way == "eager" else 1) * stage.pool  # places of the maxima: int64, or a byte
    if fused:
        yield Kernel(part, "conv, relu, pool", x + out + chosen * training, flops, weights)
    else:
        yield Kernel(part, "conv", x + conv, flops, weights)
        if way == "eager":
            if stage.relu:
                yield Kernel(part, "relu", 2 * conv)
            if stage.pool:
                yield Kernel(part, "pool", conv + out + chosen)
        elif stage.relu or stage.pool:
            yield Kernel(part, "relu, pool", conv + out + chosen)
    if index == len(shape.stages) - 1 and shape.positional:
        yield Kernel(part, "positional embedding", 2 * out)
    if not training:
        return
    if fused:
        yield Kernel(part, "weight gradient", out + chosen + x, flops, weights)
    else:
        if way == "eager":
            if stage.pool:
                yield Kernel(part, "pool backward", out + chosen + conv)
            if stage.relu:
                yield Kernel(part, "relu backward", 3 * conv)
        elif stage.relu or stage.pool:
            yield Kernel(part, "relu, pool backward", out + chosen + 2 * conv)
        yield Kernel(part, "weight gradient", conv + x, flops, weights)
    if index > 0:
        yield Kernel(part, "image gradient", (out + chosen if fused else conv) + x, flops, weights)


def _layer(shape, layer, way, training):
    """a, f: bytes of an activation and of the hidden layer; drops: drop-path acts, which it never does in the first layer."""
    N, C, F, e = shape.N, shape.C, shape.F, shape.e
    a, f = N * C * e, N * F * e
    part, first, last = f"layer {layer + 1}", layer == 0, layer == shape.L - 1
    drops = shape.drop_path and training and not first

    def matmul(name, columns, bytes):
        """A product of N rows with a weight of C x columns."""
        return Kernel(part, name, bytes, 2 * N * C * columns, C * columns * e)

    attention = Kernel(part, "attention", 4 * a, 4 * N * N * C)
    if way == "eager":
        drop = [Kernel(part, "drop path", 4 * a, launches=5)] * drops
        yield from (Kernel(part, "pre_norm", 2 * a), matmul("qkv", 3 * C, 4 * a), attention, matmul("proj", C, 2 * a))
        yield from (*drop, Kernel(part, "add", 3 * a), Kernel(part, "norm1", 2 * a), matmul("fc1", F, a + f))
        yield from (Kernel(part, "gelu", 2 * f), matmul("fc2", F, f + a), *drop, Kernel(part, "add", 3 * a))
    elif way == "compiled":
        yield from (matmul("qkv", 3 * C, 4 * a), attention, matmul("proj", C, 2 * a), Kernel(part, "add, norm1", 4 * a))
        yield from (matmul("fc1", F, a + f), Kernel(part, "gelu", 2 * f), matmul("fc2", F, f + a))
        yield Kernel(part, "add, next pre_norm", 4 * a)
    elif way == "ops":
        yield from (matmul("norm, qkv", 3 * C, 4 * a), attention, matmul("proj, add", C, 3 * a))
        yield Kernel(part, "norm1, mlp, add", 2 * a, 4 * N * C * F, 2 * C * F * e)
    else:
        if first:
            yield matmul("norm, qkv", 3 * C, 4 * a)  # of the other layers it belongs to the row segment before
        kept = a * (training and way == "encoder")  # the stream in the middle of the layer
        columns = C + 2 * F + 3 * C * (not last)
        yield from (attention, matmul("row segment", columns, (3 if last else 6) * a + kept))
    if training:
        yield from _layer_backward(shape, part, way, (drops, first, last), a, f, matmul)


def _layer_backward(shape, part, way, place, a, f, matmul):
    N, C, F, e = shape.N, shape.C, shape.F, shape.e
    drops, first, last = place
    attention = Kernel(part, "attention backward", (10 if way in ("eager", "compiled") else 8) * a, 10 * N * N * C)
    gradients = [
        matmul("fc2 weight gradient", F, a + f), matmul("fc1 weight gradient", F, f + a),
        matmul("proj weight gradient", C, 2 * a), matmul("qkv weight gradient", 3 * C, 4 * a),
    ]  # fmt: skip
    if way in ("eager", "compiled"):
        yield from gradients
        yield matmul("fc2 gradient", F, a + f)
        yield Kernel(part, "gelu backward", 3 * f)
        yield from (matmul("fc1 gradient", F, f + a), matmul("proj gradient", C, 2 * a), attention)
        yield matmul("qkv gradient", 3 * C, 4 * a)
    if way == "eager":
        drop = Kernel(part, "drop path backward", 4 * a, launches=2)
        norm = [Kernel(part, "norm backward", 3 * a), Kernel(part, "norm parameters", 2 * a), Kernel(part, "add", 3 * a)]
        yield from (*[drop] * (2 * drops), *norm, *norm)
        yield from (Kernel(part, "bias gradient", size) for size in (a, f, a))
    elif way == "compiled":
        yield Kernel(part, "scale, bias gradient", 2 * a)
        yield from (Kernel(part, "norm1 backward, scale", 5 * a), Kernel(part, "norm1 parameters", 2 * a))
        yield from (Kernel(part, "pre_norm backward", 4 * a), Kernel(part, "pre_norm parameters", 2 * a))
    elif way == "ops":
        yield Kernel(part, "mlp backward", 3 * a + 2 * f, 6 * N * C * F, 2 * C * F * e)
        yield from gradients[:2]
        yield from (matmul("proj gradient", C, 2 * a), attention, matmul("qkv gradient", 3 * C, 4 * a))
        yield from (Kernel(part, "norm backward, add", 4 * a), *gradients[2:])
    else:
        columns, behind = C + 3 * F + 3 * C * (not last), 0 if last else 4  # behind: dqkv and x of the next layer
        if way == "encoder":
            yield from (attention, matmul("row segment backward", columns, (5 + behind) * a + 2 * f), *gradients)
        else:
            yield attention._replace(bytes=7 * a)
            yield matmul("row segment backward", columns + 4 * C + 2 * F, (5 + behind * 3 / 4) * a)
        if first:
            yield matmul("qkv gradient, norm backward", 3 * C, 6 * a)


def _head(shape, way, training):
    part, a, row = "pooling, head", shape.N * shape.C * shape.e, shape.C * shape.e
    logits = Kernel(part, "fc", row, 2 * shape.C * shape.classes, shape.C * shape.classes * shape.e)
    pool = 4 * shape.N * shape.C * shape.seq_pool  # operations: scores and weighted sum
    if way == "eager":
        yield Kernel(part, "norm", 2 * a)
        if shape.seq_pool:
            yield from (Kernel(part, "scores", a, pool / 2), Kernel(part, "softmax", 0), Kernel(part, "sum", a, pool / 2))
    elif way == "compiled":
        yield Kernel(part, "norm", 2 * a if shape.seq_pool else a)
        if shape.seq_pool:
            yield Kernel(part, "scores, softmax, sum", 2 * a, pool)
    else:
        yield Kernel(part, "norm, pooling", a if shape.seq_pool else row, pool)
    yield logits
    if training:
        passes = {"eager": 9, "compiled": 6}.get(way, 3) if shape.seq_pool else {"eager": 6, "compiled": 4}.get(way, 1)
        count = {"eager": 6, "compiled": 3}.get(way, 1)
        yield Kernel(part, "pooling and norm backward", passes * a, 2 * pool, launches=count)
        yield logits._replace(name="fc backward", flops=2 * logits.flops, launches=2)
