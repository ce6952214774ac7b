"""Keyword arguments of the models: the official names, timm's names beside them, one clear error for any other."""

import difflib
import functools
import inspect


def nearest(name, names):
    """The text " (did you mean 'x'?)", empty when no name is close."""
    close = difflib.get_close_matches(str(name), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def keyword_arguments(init):
    """Decorate the __init__ of a model class: timm's names are translated (`cls.aliases`), unknown names are refused.

    Records `self.config = {"name": class, "kwargs": {...}}`, JSON-able, from which `create_model` builds the same network;
    `fused` is left out because it chooses how to run, not what to compute.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self, *args, **kwargs):
        # A subclass written elsewhere is described by the class of this package it extends.
        cls = next(c for c in type(self).__mro__ if c.__module__.startswith(f"{__package__}."))
        bound = signature.bind(self, *args, **official(cls, kwargs))
        bound.apply_defaults()
        record = {k: list(v) if isinstance(v, tuple) else v for k, v in bound.arguments.items() if k not in ("self", "fused")}
        self.config = {"name": cls.__name__, "kwargs": record}
        init(*bound.args, **bound.kwargs)

    return wrapper


def official(cls, kwargs):
    """The same arguments under the names of `cls.__init__`; TypeError for a name it does not have, or one given twice."""
    valid = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    result = {}
    for name, value in kwargs.items():
        translated = cls.aliases.get(name, name)
        if translated not in valid:
            hint = nearest(name, [*valid, *cls.aliases])
            raise TypeError(f"{cls.__name__}: unknown argument {name!r}{hint}; expected one of {', '.join(valid)}")
        if translated in result:
            raise TypeError(f"{cls.__name__}: {translated!r} is given twice, once as an alias; give it once")
        result[translated] = value
    return result
