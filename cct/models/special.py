"""Modules that must be called for themselves: the ops read parameters, and would pass by what somebody put in their way."""

from cct_kernels.dispatch import BackendError


def is_special(module, *kinds):
    """Whether somebody looks at what goes in and out of this module, or put one in its place that is none of `kinds`.

    Adapters, pruning, parametrisations and quantised layers are such modules, and those with hooks.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or type(module) not in kinds


def expect_plain_allowed(backend, where):
    """BackendError when special modules are to be called, in plain PyTorch, but a fused backend was asked for by name."""
    if backend not in (None, "reference"):
        raise BackendError(
            f"{where}: has modules with hooks or ones that were replaced (adapters, pruning, ...), which run in plain PyTorch; "
            f"expected backend None or 'reference', got {backend!r} (a model: fused=True instead of 'strict')"
        )
