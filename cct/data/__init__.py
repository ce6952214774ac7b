"""Data sets as tensors: readers, batches, augmentation.

    data = cct.data.load("cifar10", "~/data")
    for images, labels in cct.data.batches.epoch(
        data.train, batch_size=128, seed=0, epoch=0, augment=data.augment, mean=data.mean, std=data.std
    ):
        ...

A split is one uint8 tensor in memory, or image files that are decoded while training. Files are looked for in `data_dir`, then
in $CCT_DATA, then in ~/.cache/cct/data.
"""

from . import batches, images
from .augment import Augment
from .dataset import DataError, DataSet, Split
from .readers import NAMES, load
from .report import Report, check
from .streamed import StreamedSplit

__all__ = ["NAMES", "Augment", "DataError", "DataSet", "Report", "Split", "StreamedSplit", "batches", "check", "images", "load"]
