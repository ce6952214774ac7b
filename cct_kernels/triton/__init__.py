"""Triton kernels. Importing this package does not import triton; `load` does, and defines the operators cct_triton::*."""

import importlib.util
import os

import torch


def interpreted():
    """Whether triton runs as its Python interpreter (TRITON_INTERPRET=1), as the tests do on machines without a GPU.

    Only then do the operators of this package take CPU tensors, and only a program that also adds "triton" to the CPU rows of
    dispatch.TABLE reaches them from a public op: tests/triton_interpreter.py does.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def load():
    """Defines the operators of every op that has Triton kernels."""
    from . import conv_tokenizer, encoder, layernorm_attention, layernorm_mlp, seqpool  # noqa: F401


def why_not():
    """Why Triton kernels cannot run on this machine, or None: then they are loaded."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with the CUDA builds of PyTorch; else `pip install triton`)"
    if not interpreted():
        if not torch.cuda.is_available():
            return "no CUDA GPU (torch.cuda.is_available() is False)"
        if torch.cuda.get_device_capability() < (8, 0):
            return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    load()
    return None
