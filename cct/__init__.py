"""Compact Transformers: models, data, training and reports on top of `cct_kernels`."""

__version__ = "0.1.0"
