"""The sub-commands of `cct`. They import torch only when they run, so that help and mistakes in flags answer at once."""
