"""The 1797 real handwritten digits that scikit-learn carries (the test part of "Optical Recognition of Handwritten
Digits", E. Alpaydin and C. Kaynak, UCI 1998; 8 x 8 pixels with values 0..16). Needs no download.

The split is ours, because the package has none: a fixed fifth of every class is for testing (359 images, 1438 to train).
"""

import torch

from .dataset import DataError, DataSet, Split
from .draws import stratified
from .images import fit_all
from .pictures import Reading

DEFAULT_SIZE = (16, 16)
# Of the 8 x 8 training images, pixels in [0, 1].
MEAN, STD = (0.3057,), (0.3764,)


def load(reading: Reading) -> DataSet:
    # scikit-learn takes a second to import; only this set needs it.
    from sklearn.datasets import load_digits

    size = reading.img_size or DEFAULT_SIZE
    bunch = load_digits()
    if bunch.images.shape != (1797, 8, 8):
        raise DataError(f"digits: scikit-learn gave images {bunch.images.shape}; expected (1797, 8, 8): install it again")
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    whole = Split(fit_all(pixels, size, interpolation=reading.interpolation), torch.from_numpy(bunch.target).to(torch.int64))
    train, test = stratified(whole.labels, 0.2)
    return DataSet(
        name="digits",
        classes=[str(d) for d in range(10)],
        mean=MEAN,
        std=STD,
        train=whole.subset(train),
        test=whole.subset(test),
        img_size=size,
        channels=1,
        interpolation=reading.interpolation,
        source="embedded in scikit-learn",
        split=f"fixed stratified split: {len(train)} train, {len(test)} test",
        flip=False,
    )
