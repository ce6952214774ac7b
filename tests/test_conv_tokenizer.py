"""Convolution, ReLU and pooling as tokens on every backend that runs here, by the numerics rule, and its contract."""

import pytest
import torch

from cct_kernels import conv_tokenizer
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import cases, compare, poisoned_memory

CASES = cases("conv_tokenizer")


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity_at_each_instruction_set(isa, threads, case, dtype):
    with poisoned_memory():
        compare(case, dtype, lambda **kw: conv_tokenizer(**kw, backend="cpu"))
