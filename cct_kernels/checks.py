"""Argument checks of the public ops: every message names op, argument, expected and got."""

import torch


def shape_text(shape):
    return "(" + ", ".join(str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"


def expect_tensor(op, name, value, ndim=None):
    """A dense tensor of floats, of `ndim` dimensions if given."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{op}: {name} is {type(value).__name__}; expected a tensor")
    expect_dense(op, name, value)
    if not value.dtype.is_floating_point or value.dtype.itemsize < 2:
        raise ValueError(f"{op}: {name} has dtype {value.dtype}; expected a floating-point dtype of 16, 32 or 64 bits")
    if ndim is not None and value.dim() != ndim:
        raise ValueError(f"{op}: {name} has shape {shape_text(value.shape)}; expected {ndim} dimensions")


def expect_dense(op, name, value):
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} has layout {value.layout}; expected a dense (strided) tensor")


def expect_like(op, name, value, shape, x):
    """A tensor of this shape with the device of `x`, and its dtype unless autocast will see to that."""
    expect_tensor(op, name, value)
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} has shape {shape_text(value.shape)}; expected {shape_text(shape)}")
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}; expected {x.device}, the device of x")
    if value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{op}: {name} has dtype {value.dtype}; expected {x.dtype}, the dtype of x")


def expect_optional(op, name, value, shape, x):
    if value is not None:
        expect_like(op, name, value, shape, x)


def expect_probability(op, name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{op}: {name} is {value!r}; expected a number p with 0 <= p < 1")


def expect_positive(op, name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < float("inf"):
        raise ValueError(f"{op}: {name} is {value!r}; expected a positive number")


def expect_int(op, name, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{op}: {name} is {value!r}; expected an int of at least {least}")
    if value >= 2**31:
        raise ValueError(f"{op}: {name} is {value}; expected an int below 2^31")


def expect_seed(op, seed, x):
    if seed is None:
        return
    if not isinstance(seed, torch.Tensor) or seed.dtype != torch.int64 or tuple(seed.shape) != (2,):
        got = f"{seed.dtype} {shape_text(seed.shape)}" if isinstance(seed, torch.Tensor) else type(seed).__name__
        raise ValueError(f"{op}: seed is {got}; expected an int64 tensor (2,) = (seed, offset)")
    if seed.device != x.device:
        raise ValueError(f"{op}: seed is on {seed.device}; expected {x.device}, the device of x")
    expect_dense(op, "seed", seed)


def expect_bool(op, name, value):
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {name} is {value!r}; expected True or False")


def pair(op, name, value, least):
    """An int or a pair of ints -> a pair, each at least `least`."""
    plain = type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int
    if plain and least <= value[0] < 2**31 and least <= value[1] < 2**31:
        return value  # almost always, several times in every call of a small network
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise ValueError(f"{op}: {name} is {value!r}; expected an int or a pair of ints")
    for v in values:
        expect_int(op, name, v, least)
    return tuple(values)
