"""Triton kernels. Importing this package does not import triton; each op module does."""

import importlib.util
import os

import torch


def interpreted():
    """Whether triton runs as its Python interpreter (TRITON_INTERPRET=1), as the tests do on machines without a GPU.

    Only then do the operators of this package take CPU tensors, and only a program that also adds "triton" to the CPU rows of
    dispatch.TABLE reaches them from a public op: tests/triton_interpreter.py does.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not():
    """Why Triton kernels cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with the CUDA builds of PyTorch; else `pip install triton`)"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA GPU (torch.cuda.is_available() is False)"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    return None
