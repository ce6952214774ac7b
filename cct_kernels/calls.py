"""What the autograd functions of all ops share."""

import torch
from torch.autograd import forward_ad


def kernels(op, backend):
    """forward and backward of an op's backend; every backend takes the arguments of the schemas in native.OPS."""
    library = torch.ops.cct_triton if backend == "triton" else torch.ops.cct_kernels
    return getattr(library, f"{op}_forward"), getattr(library, f"{op}_backward")


def compute_dtype(x):
    """The dtype of the products: autocast's where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def expect_first_derivative(op):
    """Raises where a backward pass shall be differentiated in turn (create_graph=True): the kernels would give zeros."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: the kernels have no second derivative; use backend='reference', or a model with fused=False")


def in_forward_mode():
    """Whether derivatives are carried forward here (torch.func.jvp), which the kernels have none of."""
    return forward_ad._current_level >= 0


def only_values():
    """Whether nothing is differentiated here, neither backward nor forward: a kernel may run bare."""
    return not torch.is_grad_enabled() and not in_forward_mode()


def one_dtype(x, tensors):
    """The parameters; all in float32 where they are of several dtypes: autocast takes them, the kernels do not. None passes."""
    if not torch.is_autocast_enabled(x.device.type) or len({t.dtype for t in tensors if t is not None}) <= 1:
        return tensors
    return [t if t is None else t.float() for t in tensors]


def alike(x, tensors, none=True):
    """Whether all of `tensors` are dense tensors on the device of x and of its dtype. none: whether None passes."""
    dtype, device, strided = x.dtype, x.device, torch.strided
    for t in tensors:  # all weights of a model, in every call: a generator would take twice as long
        if t is None and none:
            continue
        if not isinstance(t, torch.Tensor) or t.dtype is not dtype or t.layout is not strided or t.device != device:
            return False
    return True


def draw_seed(device):
    """A fresh (seed, offset) from PyTorch's generator of the device, so that torch.manual_seed governs our masks too.

    Inside a CUDA graph every replay draws anew: the generator of the device that is current at the capture belongs to the graph
    (one made by the user does not, which is why none can be given).
    """
    return torch.randint(0, 2**62, (2,), dtype=torch.int64, device=device)


def draw_drop_path(x, rates):
    """(L, 2, B) stochastic-depth factors for the samples of x (B, ...): 0 with probability rates[l], else 1 / (1 - rates[l]).

    For the attention and the MLP of each of L blocks, in the dtype of x, from PyTorch's generator of its device.
    """
    factors = x.new_ones(len(rates), 2, x.shape[0])
    for factor, rate in zip(factors, rates, strict=True):
        if rate > 0.0:
            factor.bernoulli_(1.0 - rate).div_(1.0 - rate)
    return factors
