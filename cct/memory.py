"""Running out of memory, told from other errors."""

import torch


def who_is_full(error):
    """ "the GPU" or "this machine" where this error says that it has no memory left; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU"
    full = isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
    return "this machine" if full else None
