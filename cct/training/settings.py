"""The settings of a recipe as its runs are recorded with: what they hold, how two of them differ, and their words as flags."""

from .config import FIELDS, KINDS

# What may change from part to part of a run: results stay the same up to rounding, but that dropout draws other masks where
# `accumulate_steps` (times processes) cuts a batch into another number of pieces.
MACHINE = ("data_dir", "device", "threads", "save_seconds", "accumulate_steps")
PLACE = (*MACHINE, "output", "seed")  # where a run is and how it is cut, not what it is
# What `setup.prepare` fills in where it is None.
FILLED_IN = ("threads", "warmup_epochs", "num_classes", "img_size", "mean", "std", "stream", "crop_padding", "flip")


def of(config):
    """{key: value} of a Config, as JSON gives it back; without PLACE."""
    values = {name: getattr(config, name) for name in FIELDS if name not in PLACE}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def different(then, now, open_keys=()):
    """{key: value of `then`} where it is not that of `now`. What only one of them has does not count, nor do `open_keys` that
    `now` leaves open, such as FILLED_IN."""
    names = [name for name in now if name in then and not (now[name] is None and name in open_keys)]
    return {name: then[name] for name in names if then[name] != now[name]}


def text(value):
    """A value as short text: of a folder's name, of --set."""
    return ",".join(f"{v:g}" for v in value) if isinstance(value, tuple | list) else "" if value is None else str(value)


def flag(name, value):
    """The words of a flag of `cct train`; none for what no flag says, such as that there is no `scale`."""
    word = "--" + name.replace("_", "-")
    if value == {} or (value is None and KINDS[name] not in (int | None, float | None, str | None)):
        return []
    if isinstance(value, bool):
        return [word if value else "--no-" + word[2:]]
    if isinstance(value, dict):
        return [word, *(f"{key}={one}" for key, one in value.items())]
    return [word, *map(_exact, value)] if isinstance(value, tuple | list) else [word, "" if value is None else str(value)]


def _exact(number):
    """A number as short text that gives it again."""
    return short if float(short := f"{number:g}") == number else repr(number)
