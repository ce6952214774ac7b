"""Random arguments of every public op: a result of the right shape and dtype, or a clear error, never a crash.

CCT_FUZZ_EXAMPLES=5000 pytest tests/test_fuzz.py goes on for longer, from another starting point each time.
"""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cct_kernels
from cct_kernels import BackendError, reference
from cct_kernels.dispatch import machine_why_not
from cct_kernels.testing import CONSTANTS, Case, make_inputs

EXAMPLES = int(os.environ.get("CCT_FUZZ_EXAMPLES", 0))
fuzz = settings(
    max_examples=EXAMPLES or 40, derandomize=not EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
OPS = ("compact_transformer", "conv_tokenizer", "encoder", "layernorm_attention", "layernorm_mlp", "seqpool")
EXPECTED_ERRORS = (ValueError, BackendError)
SIZES = st.sampled_from([0, 1, 1, 2, 2, 3, 5, 7, 16, 17, 33, 64, 65, 70])
SMALL = st.sampled_from([0, 1, 1, 2, 3])
FLAG = st.booleans()
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float32, torch.bfloat16, torch.float16, torch.float64])
RATES = st.sampled_from([0.0, 0.0, 0.25, 0.9])


def conv_tokenizer_case(draw):
    kernel, window = (draw(st.integers(1, 5)), draw(st.integers(1, 5))), st.tuples(st.integers(1, 4), st.integers(1, 4))
    C, channels, stride = draw(SIZES), draw(SIZES), draw(window)
    kind = draw(st.sampled_from(["any", "any", "winograd", "rows"]))  # of the ways that the CPU kernels take
    if kind == "winograd":
        kernel, channels, stride = (3, 3), draw(st.sampled_from([32, 48, 64, 80])), 1
    elif kind == "rows":
        kernel, channels, C = (5, 5), 64, draw(st.sampled_from([65, 130]))
    shapes = {"x": (draw(SMALL), channels, draw(SIZES), draw(SIZES)), "weight": (C, channels, *kernel)}
    if draw(FLAG):
        shapes["bias"] = (C,)
    options = {"stride": stride, "padding": draw(st.integers(0, 3)), "relu": draw(FLAG), "tokens": draw(FLAG)}
    pool = draw(window), draw(window), draw(st.integers(0, 2))
    return shapes, options | {"pool": pool if draw(FLAG) else None}


def layernorm_attention_case(draw):
    heads = draw(st.integers(1, 4))
    B, N, C = draw(SMALL), draw(SIZES), draw(st.sampled_from([0, 1, 3, 8, 17, 65])) * heads
    shapes = {"x": (B, N, C), "norm_weight": (C,), "norm_bias": (C,), "qkv_weight": (3 * C, C), "proj_weight": (C, C)}
    more = {"proj_bias": (C,), "qkv_bias": (3 * C,), "mask": (B, N), "drop_path_scale": (B,), "seed": (2,)}
    shapes |= {name: shape for name, shape in more.items() if draw(FLAG)}
    return shapes, {"num_heads": heads, "attn_dropout": draw(RATES), "dropout": draw(RATES)}


def layernorm_mlp_case(draw):
    B, N, C, F = draw(SMALL), draw(SIZES), draw(SIZES), draw(SIZES)
    shapes = {"x": (B, N, C), "norm_weight": (C,), "fc1_weight": (F, C), "fc2_weight": (C, F)}
    shapes |= {name: (2,) if name == "seed" else (B,) for name in ("drop_path_scale", "seed") if draw(FLAG)}
    biases = {"norm_bias": (C,), "fc1_bias": (F,), "fc2_bias": (C,)}
    given = {name: shape for name, shape in biases.items() if draw(FLAG)}
    return shapes | given, {"dropout": draw(RATES)} | dict.fromkeys(biases.keys() - given.keys())


def encoder_case(draw):
    heads, few = draw(st.integers(1, 3)), draw(FLAG)  # few rows for their weights: the kernels take tokens as columns
    B, N, C = draw(SMALL), draw(SIZES), draw(st.sampled_from([21, 32] if few else [0, 1, 8, 33])) * heads
    shapes = {"x": (B, N, C)} | ({"mask": (B, N)} if draw(FLAG) else {}) | ({"seed": (2,)} if draw(FLAG) else {})
    return shapes | block_shapes(draw, C, 3000 if few else draw(SIZES)), {
        "num_heads": heads,
        "attn_dropout": draw(RATES),
        "dropout": draw(RATES),
    }


def block_shapes(draw, C, F):
    """The tensors of up to two blocks by name, "<block>.<place>.<name>"; `call` puts them together."""
    shapes = {}
    sizes = {"norm_weight": (C,), "norm_bias": (C,), "qkv_weight": (3 * C, C), "proj_weight": (C, C), "proj_bias": (C,)}
    sizes |= {"norm1_weight": (C,), "norm1_bias": (C,), "fc1_weight": (F, C), "fc1_bias": (F,)}
    sizes |= {"fc2_weight": (C, F), "fc2_bias": (C,)}
    for block in range(draw(st.integers(0, 2))):
        shapes |= {f"{block}.{place:02d}.{name}": shape for place, (name, shape) in enumerate(sizes.items())}
    return shapes


def compact_transformer_case(draw):
    """Weights of the stages by name, "stage.<number>"; strides and paddings are 1."""
    heads = draw(st.integers(1, 3))
    B, channels, size, C = draw(SMALL), draw(SMALL), draw(st.integers(1, 9)), draw(st.sampled_from([1, 8, 33])) * heads
    shapes, tokens = {"x": (B, channels, size, size + 1)}, (size, size + 1)
    pool = draw(st.sampled_from([None, (3, 2, 1), ((2, 1), 1, 0)]))
    for stage in range(last := draw(st.integers(1, 2))):
        k = draw(st.sampled_from([1, 3, 4]))
        width = C if stage + 1 == last else draw(st.sampled_from([5, 32]))
        shapes[f"stage.{stage}"] = (width, channels, k, k)
        channels, tokens = width, [side + 3 - k for side in tokens]
        if pool is not None:
            window = [(3, 3), (2, 2), (1, 1)] if pool[1] == 2 else [(2, 1), (1, 1), (0, 0)]
            tokens = [(t + 2 * p - w) // s + 1 for t, w, s, p in zip(tokens, *window, strict=True)]
    classes, N = draw(SIZES), max(0, tokens[0]) * max(0, tokens[1])
    shapes |= {"norm_weight": (C,), "norm_bias": (C,), **block_shapes(draw, C, draw(SIZES))}
    if kept := draw(FLAG):
        shapes["class_token"] = (1, 1, C)
    if not kept or draw(FLAG):
        shapes["pool_weight"] = (1, C)
    if draw(FLAG):
        shapes["positional"] = (1, N + kept, C)
    if draw(FLAG):
        shapes |= {"head_weight": (classes, C), "head_bias": (classes,)}
    return shapes, {"num_heads": heads, "relu": draw(FLAG), "pool": pool}


def call(op, arguments, module=cct_kernels):
    if op not in ("compact_transformer", "encoder"):
        return getattr(module, op)(**arguments)
    parts = sorted(name for name in arguments if name[0].isdigit())
    blocks = [[arguments[name] for name in parts if name.startswith(f"{i}.")] for i in range(len(parts) // 11)]
    rest = {name: value for name, value in arguments.items() if "." not in name}
    if op == "encoder":
        return getattr(module, op)(rest.pop("x"), blocks, **rest)
    stages = [(arguments[name], None, 1, 1) for name in sorted(arguments) if name.startswith("stage.")]
    if module is reference:
        rest["backend"] = "reference"
    needs = any(isinstance(t, torch.Tensor) and t.requires_grad for t in arguments.values())
    with torch.set_grad_enabled(needs):  # without: the one native call
        return cct_kernels.compact_transformer(rest.pop("x"), stages, blocks, **rest)


def seqpool_case(draw):
    B, N, C = draw(SMALL), draw(SIZES), draw(SIZES)
    shapes = {"x": (B, N, C), "weight": (1, C)}
    if draw(FLAG):
        shapes["bias"] = (1,)
    if draw(FLAG):
        shapes["norm_weight"] = (C,)
    if "norm_weight" in shapes and draw(FLAG):
        shapes["norm_bias"] = (C,)
    return shapes, {}


def relaid(draw, t):
    """The same values with other strides."""
    kind = draw(st.sampled_from(["plain", "plain", "transposed", "sliced", "expanded"]))
    if kind == "transposed":
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order)
    if kind == "sliced":
        room = torch.zeros([2 * n + 1 for n in t.shape], dtype=t.dtype)
        view = room[tuple(slice(1, 2 * n + 1, 2) for n in t.shape)]
        return view.copy_(t)
    if kind == "expanded" and t.is_floating_point() and t.dim() > 1 and t.shape[0] > 1:
        return t[:1].expand(t.shape)
    return t


@st.composite
def calls(draw, op):
    """(tensors, options) of a call whose shapes belong together; whether the sizes are allowed is the op's to say."""
    shapes, options = globals()[f"{op}_case"](draw)
    tensors = make_inputs(Case(op, "fuzz", "", shapes, options), draw(DTYPES), seed=draw(st.integers(0, 9)))
    tensors = {name: relaid(draw, t) for name, t in tensors.items()}
    if draw(st.integers(0, 3)) == 0:
        tensors["x"] = tensors["x"] * draw(st.sampled_from([0.0, 1e30, -1e-30, float("inf")]))
    return tensors, options


def reference_takes(op, tensors, options):
    """Whether plain PyTorch gives a result with at least one element per sample."""
    try:
        return call(op, tensors | options, reference)
    except (RuntimeError, ValueError, ZeroDivisionError):
        return None


@contextlib.contextmanager
def some_instruction_set(data):
    """One of those that this CPU runs."""
    if machine_why_not("cpu") is not None:
        yield
        return
    native = torch.ops.cct_kernels
    before = native.cpu_isa()
    with contextlib.suppress(ValueError):  # not on this CPU: as it is
        native.set_cpu_isa(data.draw(st.sampled_from(["generic", "avx2", "avx512", "avx512_bf16", "amx"])))
    try:
        yield
    finally:
        native.set_cpu_isa(before)


@pytest.mark.parametrize("op", OPS)
@fuzz
@given(data=st.data())
def test_any_sizes_strides_and_dtypes(op, data):
    with some_instruction_set(data):
        check_a_call(op, data)


def check_a_call(op, data):
    tensors, options = data.draw(calls(op))
    leaves = {n: t.requires_grad_(n not in CONSTANTS and data.draw(FLAG)) for n, t in tensors.items()}
    context = torch.autocast("cpu", torch.bfloat16, enabled=data.draw(FLAG))
    try:
        with context:
            out = call(op, leaves | options)
    except EXPECTED_ERRORS:
        assert any(0 in t.shape for t in tensors.values()) or reference_takes(op, tensors, options) is None
        return
    except RuntimeError:  # PyTorch's own where it has the call, such as float16 parameters under autocast to bfloat16
        with context:
            assert reference_takes(op, tensors, options) is None
        return
    expected = reference_takes(op, {n: t.detach() for n, t in tensors.items()}, options)
    assert out.shape == expected.shape
    assert context._enabled or out.dtype == tensors["x"].dtype
    dropped = options.get("dropout") or options.get("attn_dropout")
    coarse = context._enabled or any(t.dtype.itemsize == 2 for t in tensors.values())  # LayerNorm of two channels: any value
    if not dropped and not coarse and expected.numel() and tensors["x"].detach().abs().max() < 100:
        torch.testing.assert_close(out.detach(), expected, rtol=0, atol=1e-3 * max(1.0, expected.abs().max().item()))
    if out.requires_grad:
        out.float().sum().backward()
        for name, t in leaves.items():
            assert t.grad is None or t.grad.shape == t.shape, name


@pytest.mark.parametrize("op", OPS)
@fuzz
@given(data=st.data())
def test_a_nan_goes_where_plain_pytorch_takes_it(op, data):
    """Neither swallowed nor spread: NaN in one element of one argument."""
    tensors, options = data.draw(calls(op))
    # a dropped NaN is zero here, and not in PyTorch; what NaN weights make of the zeros of a padding depends on its algorithm
    options = {n: 0 if "dropout" in n or n == "padding" else v for n, v in options.items()}
    for n in tensors.keys() - set(CONSTANTS):
        tensors[n] = tensors[n].float().nan_to_num(posinf=1.0, neginf=1.0).clamp(-9, 9).flatten().clone().view(tensors[n].shape)
    unread = {"seqpool": ["bias", "norm_bias"], "compact_transformer": ["norm_bias"]}.get(op, [])  # they move all scores alike
    padded = [n for n in tensors if n.startswith("stage.")]  # with a padding of 1, see above
    name = data.draw(st.sampled_from([n for n in tensors if n not in (*CONSTANTS, *unread, *padded)]))
    if tensors[name].numel():
        tensors[name].view(-1)[data.draw(st.integers(0, tensors[name].numel() - 1))] = float("nan")
    expected = reference_takes(op, tensors, options)
    try:
        with some_instruction_set(data):
            out = call(op, tensors | options)
    except EXPECTED_ERRORS:
        return
    assert torch.equal(out.isnan(), expected.isnan())


JUNK = (None, -1, 0, 3, 2**31, 2**70, 0.5, 2.0, float("nan"), "word", True, (), (1,), (1, 2), (1, 2, 3), [0, 0], object())


def spoilt(draw, value):
    """A tensor, one of a list of them, or an option turned into something else."""
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor) and draw(FLAG):
        i = draw(st.integers(0, len(value) - 1))
        return [*value[:i], spoilt(draw, value[i]), *value[i + 1 :]]
    if not isinstance(value, torch.Tensor) or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(JUNK))
    kinds = {
        "dtype": lambda t: t.to(
            draw(st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.half]))
        ),
        "meta": lambda t: t.to("meta"),
        "sparse": lambda t: t.detach().to_sparse(),
        "unsqueezed": lambda t: t[None],
        "flat": lambda t: t.flatten(),
        "scalar": lambda t: t.new_zeros(()),
        "longer": lambda t: torch.cat([t, t[-1:]], 0) if t.dim() and len(t) else t,
        "shorter": lambda t: t[..., 1:],
        "transposed": lambda t: t.mT if t.dim() > 1 else t,
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))](value)


@pytest.mark.parametrize("op", OPS)
@fuzz
@given(data=st.data())
def test_wrong_arguments(op, data):
    tensors, options = data.draw(calls(op))
    arguments = tensors | options | data.draw(st.sampled_from([{}, {}, {"eps": 1e-6}, {"backend": "cpu"}]))
    if op == "conv_tokenizer":
        arguments.pop("eps", None)
    for name in sorted(data.draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=2))):
        arguments[name] = spoilt(data.draw, arguments[name])
    try:
        out = call(op, arguments)
    except EXPECTED_ERRORS:
        return
    assert out.dtype == arguments["x"].dtype and out.device == arguments["x"].device
    if out.device.type == "cpu":
        plain = {n: v for n, v in arguments.items() if n != "backend"}
        assert out.shape == call(op, plain, reference).shape


@pytest.mark.parametrize("op", OPS)
def test_wrong_arity_is_pythons_error(op):
    for arguments in ((), (torch.zeros(1, 2, 3),) * 20):
        with pytest.raises(TypeError):
            getattr(cct_kernels, op)(*arguments)


def native_calls(compute):
    """Good arguments of each native op, forward and backward; compute: the dtype of its products."""
    x, w, v = torch.randn(2, 5, 8), torch.randn(8, 8), torch.randn(8)
    seed, native = torch.tensor([1, 2]), torch.ops.cct_kernels
    image, kernel = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    window = [1, 1], [1, 1], True, [3, 3, 2, 2, 1, 1], compute
    mlp = [x, v, v, w, v, w, v, 0.5, torch.ones(2), seed, 1e-5, compute]
    attention = [x, v, v, torch.randn(24, 8), w, v, 2, torch.randn(24), torch.ones(2, 5).bool(), 0.5, 0.5]
    attention += [torch.ones(2), seed, 1e-5, compute]
    pool = [x, v[None], v, v]
    forward = {
        "conv_tokenizer": [image, kernel, torch.randn(4), *window, True],
        "layernorm_attention": [*attention, True],
        "layernorm_mlp": [*mlp, True],
        "seqpool": [*pool, 1e-5],
    }
    block = [*attention[1:6], *mlp[1:7]]
    only_forward = {
        "encoder": [x, block * 2, 2, torch.ones(2, 5).bool(), 1e-5, compute],
        "compact_transformer": [
            image, [torch.randn(8, 3, 3, 3)], [None], [1, 1, 0, 0], True, [3, 3, 2, 2, 1, 1], None, torch.randn(1, 4, 8), block,
            2, v, v, v[None], torch.randn(3, 8), torch.randn(3), 1e-5, compute,
        ],
    }  # fmt: skip
    saved = {op: getattr(native, f"{op}_forward")(*arguments) for op, arguments in forward.items()}
    rows = {op: saved[op][-1] if saved[op][-1].numel() else x for op in ("layernorm_attention", "layernorm_mlp")}
    weights = [True, True]  # both have their gradient
    backward = {
        "conv_tokenizer": [saved["conv_tokenizer"][0], image, kernel, saved["conv_tokenizer"][1], *window, [True] * 3],
        "layernorm_attention": [x, rows["layernorm_attention"], *attention[1:], *saved["layernorm_attention"][1:-1], weights],
        "layernorm_mlp": [x, rows["layernorm_mlp"], *mlp[1:], *saved["layernorm_mlp"][1:-1], weights],
        "seqpool": [saved["seqpool"][0], *pool, *saved["seqpool"][1:]],
    }
    both = ("forward", forward | only_forward), ("backward", backward)
    return {f"{op}_{way}": arguments for way, calls in both for op, arguments in calls.items()}


@pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
@fuzz
@given(data=st.data())
def test_native_ops_refuse_what_they_cannot_index(data):
    for name, good in native_calls(data.draw(st.sampled_from([torch.float32, torch.bfloat16]))).items():
        op, arguments = getattr(torch.ops.cct_kernels, name), list(good)
        op(*arguments)
        for i in sorted(data.draw(st.sets(st.integers(0, len(arguments) - 1), min_size=1, max_size=2))):
            arguments[i] = spoilt(data.draw, arguments[i])
        with contextlib.suppress(Exception):  # the dispatcher and the fake kernels of meta tensors have their own
            op(*arguments)


HUGE = 2**45


@pytest.mark.parametrize("shape", [(HUGE, 1, 8), (1, HUGE, 8)])
def test_sizes_beyond_memory(shape):
    """Views of one element; their copies would not fit. PyTorch's own out-of-memory error is an answer too."""
    x, one = torch.zeros(1, 1, 1).expand(shape), torch.ones(8)
    many = [
        lambda: cct_kernels.layernorm_mlp(x, one, one, torch.ones(3, 8), None, torch.ones(8, 3), None),
        lambda: cct_kernels.layernorm_attention(x, one, one, torch.ones(24, 8), torch.ones(8, 8), num_heads=2),
        lambda: cct_kernels.seqpool(x, one[None]),
        lambda: cct_kernels.conv_tokenizer(x[..., None].transpose(1, 3), torch.ones(1, 1, 1, 1).expand(4, 1, 1, 1)),
        lambda: cct_kernels.layernorm_mlp(
            one.view(1, 1, 8), one, one, torch.ones(1, 1).expand(HUGE, 8), None, torch.ones(1, 1).expand(8, HUGE), None
        ),
    ]
    for call in many:
        with pytest.raises((ValueError, RuntimeError), match=r"memory|expected|overflow"):
            call()


def test_an_op_that_found_no_memory_leaves_the_next_ones_theirs():
    """Its scratch is refused, here by a limit; the thread's is then asked for anew."""
    code = """
import resource, torch
from cct_kernels import conv_tokenizer, layernorm_mlp
torch.set_num_threads(1)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
try:
    conv_tokenizer(torch.ones(1, 1, 1, 1), torch.ones(64, 1, 1, 1), padding=(0, 1 << 24), pool=((1, 1), (1, 1 << 24), 0))
except RuntimeError as error:
    print(error)
x, w = torch.randn(2, 64, 128), torch.randn(128, 128)
print(layernorm_mlp(x, torch.ones(128), None, w, None, w, None).isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out of memory for" in done.stdout and done.stdout.splitlines()[-1] == "True"
