"""Running out of memory, told from other errors."""

import torch

FULL = ("DefaultCPUAllocator: can't allocate memory", "cct_kernels: out of memory")
GPU_FULL = "CUDA error: out of memory"  # of the driver; PyTorch's own allocator has a type for it


def who_is_full(error):
    """ "the GPU" or "this machine" where this error says that it has no memory left; None for any other."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or GPU_FULL in text:
        return "the GPU"
    return "this machine" if isinstance(error, MemoryError) or any(words in text for words in FULL) else None
