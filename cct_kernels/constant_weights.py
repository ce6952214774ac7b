"""A promise about weights that makes inference of single images faster."""

import contextlib

import torch

from . import native


@contextlib.contextmanager
def constant_weights():
    """Inside the block (of this thread), no weight changes in a way that PyTorch does not count.

    The CPU kernels keep weights in a layout of their own until they change. PyTorch counts changes by in-place operations,
    optimizers and `load_state_dict`; what is written through `.data`, NumPy or shared memory it does not count. Since 2.13 it
    tells who asks for a parameter's memory, which is enough where the parameter takes gradients and nobody else has that memory
    (what is written to an address from before the first call, by ctypes say, is then not seen). Of other weights, and before
    2.13, the kernels read all in every call: for one image in bfloat16 up to a third of the time, which the promise saves
    (float32 ones take the weights as they lie, but for those of the tokenizer):

        with torch.inference_mode(), cct_kernels.constant_weights():
            logits = model(image)

    Changes that PyTorch counts are seen as always. On other devices the promise changes nothing.
    """
    if native.why_not("cpu") is not None:
        yield
        return
    before = torch.ops.cct_kernels.constant_weights(True)
    try:
        yield
    finally:
        torch.ops.cct_kernels.constant_weights(before)
