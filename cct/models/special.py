"""Modules that must be called for themselves: the ops read parameters, and would pass by what somebody put in their way."""

from cct_kernels.dispatch import BackendError
from cct_kernels.published import bare, hooked


def is_special(module, *kinds):
    """Whether somebody looks at what goes in and out of this module, or put one in its place that is none of `kinds`.

    Adapters, pruning, parametrisations and quantised layers are such modules, and those with hooks.
    """
    return not bare(module, *kinds)


def any_special(modules, kinds):
    """`is_special` of any of `modules`, a tuple, which are to be of these kinds one by one. Asked in every call: no detours."""
    return tuple(map(type, modules)) != kinds or any(map(hooked, modules))


def expect_plain_allowed(backend, where):
    """BackendError when special modules are to be called, in plain PyTorch, but a fused backend was asked for by name."""
    if backend not in (None, "reference"):
        raise BackendError(
            f"{where}: has modules with hooks or ones that were replaced (adapters, pruning, ...), which run in plain PyTorch; "
            f"expected backend None or 'reference', got {backend!r} (a model: fused=True instead of 'strict')"
        )
