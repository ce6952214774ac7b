"""Progressive resizing: the side of the training images of each epoch, from text such as "0=24,6=32"."""

from .values import ConfigError


def parse(text):
    """[(epoch, side), ...] by epoch, each from that epoch on, counted from 0; [] for None. Raises ConfigError."""
    if not isinstance(text, str | None):
        raise ConfigError(f"progressive: got {text!r}, expected EPOCH=SIDE pairs such as 0=24,6=32")
    pairs = []
    for part in (text or "").replace(",", " ").split():
        epoch, _, side = part.partition("=")
        if not (epoch.isdecimal() and side.isdecimal() and int(side)):
            raise ConfigError(f"progressive: got {part!r} in {text!r}, expected EPOCH=SIDE pairs such as 0=24,6=32")
        pairs.append((int(epoch), int(side)))
    if len({epoch for epoch, _ in pairs}) < len(pairs):
        raise ConfigError(f"progressive: got {text!r}, expected each epoch once")
    return sorted(pairs)


def side_of(config, epoch):
    """The side of the training images in an epoch counted from 0; None where it is that of the data."""
    sides = [side for first, side in parse(config.progressive) if first <= epoch]
    return sides[-1] if sides and sides[-1] != config.img_size else None
