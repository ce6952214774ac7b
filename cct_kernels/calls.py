"""What the autograd functions of all ops share."""

import torch


def kernels(op, backend):
    """forward and backward of an op's backend; every backend takes the arguments of the schemas in native.OPS."""
    library = torch.ops.cct_triton if backend == "triton" else torch.ops.cct_kernels
    return getattr(library, f"{op}_forward"), getattr(library, f"{op}_backward")


def compute_dtype(x):
    """The dtype of the products: autocast's where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def draw_seed(device):
    """A fresh (seed, offset) from PyTorch's generator of the device, so that torch.manual_seed governs our masks too."""
    return torch.randint(0, 2**62, (2,), dtype=torch.int64, device=device)
