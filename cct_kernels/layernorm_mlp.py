"""LayerNorm, the two-layer GELU MLP and the residual, in one op."""

from . import reference
from .checks import expect_like, expect_optional, expect_positive, expect_probability, expect_seed, expect_tensor
from .dispatch import choose

OP = "layernorm_mlp"


def layernorm_mlp(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, *,
    dropout=0.0, drop_path_scale=None, seed=None, eps=1e-5, backend=None,
):  # fmt: skip
    """y = LN(x);  out = y + s * drop(fc2(drop(gelu(fc1(y))))).

    The residual is the NORMALISED tensor y: the published checkpoints need it (paper-form blocks put norm1 on the stream).
    GELU is the exact (erf) form.

    Args:
        x: (B, N, C), float32, float16, bfloat16 or float64.
        norm_weight, norm_bias: (C,), LayerNorm over C with `eps`.
        fc1_weight, fc1_bias: (F, C), (F,).
        fc2_weight, fc2_bias: (C, F), (C,).
        dropout: probability p, 0 <= p < 1, used after GELU and after fc2; kept values are scaled by 1 / (1 - p).
        drop_path_scale: (B,), the per-sample stochastic-depth factor s (0, or 1 / keep), or None for 1.
        seed: int64 (2,) = (seed, offset) of the counter-based masks (philox.py); None draws from PyTorch's generator.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Returns: (B, N, C) in the dtype of x. Sums and statistics are float32 (float64 for float64 input).
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.1, and its official code.
    """
    _check(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps)
    choose(OP, x, backend)
    return reference.layernorm_mlp(
        x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
        dropout=dropout, drop_path_scale=drop_path_scale, seed=seed, eps=eps,
    )  # fmt: skip


def _check(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps):
    expect_tensor(OP, "x", x, ndim=3)
    B, _, C = x.shape
    expect_like(OP, "norm_weight", norm_weight, (C,), x)
    expect_optional(OP, "norm_bias", norm_bias, (C,), x)
    expect_tensor(OP, "fc1_weight", fc1_weight, ndim=2)
    F = fc1_weight.shape[0]
    expect_like(OP, "fc1_weight", fc1_weight, (F, C), x)
    expect_optional(OP, "fc1_bias", fc1_bias, (F,), x)
    expect_like(OP, "fc2_weight", fc2_weight, (C, F), x)
    expect_optional(OP, "fc2_bias", fc2_bias, (C,), x)
    expect_probability(OP, "dropout", dropout)
    expect_optional(OP, "drop_path_scale", drop_path_scale, (B,), x)
    expect_seed(OP, seed, x)
    expect_positive(OP, "eps", eps)
