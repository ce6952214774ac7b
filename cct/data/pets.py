"""Oxford-IIIT Pet (O. Parkhi et al., 2012): 37 breeds of cats and dogs, 3680 images to train and 3669 to test.

From images/ and annotations/, unpacked or as the two published archives, which are read without extracting.
"""

from __future__ import annotations

from pathlib import Path

from .dataset import DataError, DataSet
from .files import obtain, read_tar
from .folder import IMAGENET
from .pictures import Reading, splits
from .published import PETS
from .streamed import Picture

SIZE = (224, 224)
LISTS = {"train": "trainval.txt", "test": "test.txt"}
LARGEST = 1 << 25  # bytes of one file


def present(name: str, root: Path) -> Path | None:
    """The folder or archive of the lists, if it is there."""
    return next((p for place in _places([root]) for p in _forms(place, "annotations") if p.exists()), None)


def load(name: str, roots, reading: Reading, download: bool = True) -> DataSet:
    """Read both splits. Raises DataError that names the file and line, or image."""
    lists_at, images_at = (_find(kind, remote, roots, download) for kind, remote in zip(_KINDS, PETS.remotes, strict=True))
    lists = _read(lists_at, [f"annotations/{file}" for file in LISTS.values()])
    entries = {part: _parse(lists_at, file, lists[f"annotations/{file}"]) for part, file in LISTS.items()}
    breeds = {label: breed for lines in entries.values() for breed, _, label in lines}
    if len(breeds) != PETS.classes:
        raise DataError(f"{lists_at}: the lists name {len(breeds)} classes; expected {PETS.classes}; replace it")
    files = [f"images/{file}" for lines in entries.values() for _, file, _ in lines]
    contents = _read(images_at, files) if images_at.is_file() else dict.fromkeys(files)
    if missing := [file for file in files if contents[file] is None and not (images_at.parent / file).is_file()]:
        raise DataError(f"{images_at}: {len(missing)} images are missing, {missing[0]} first; unpack images.tar.gz again")
    where = images_at if images_at.is_file() else images_at.parent
    pictures = {
        part: [Picture(where / f"images/{file}", label, contents[f"images/{file}"]) for _, file, label in lines]
        for part, lines in entries.items()
    }
    frame = reading.frame(SIZE, 3)
    mean, std = IMAGENET[3]
    return DataSet(
        name, [breeds[label] for label in range(PETS.classes)], mean, std, img_size=frame.size, channels=3,
        source=str(lists_at.parent), split=f"published split: {len(pictures['train'])} trainval, {len(pictures['test'])} test",
        interpolation=frame.interpolation, crop_pct=frame.crop_pct, **splits(where, pictures, frame, reading.stream),
    )  # fmt: skip


_KINDS = ("annotations", "images")


def _places(roots):
    return (root / folder for root in roots for folder in (*PETS.folders, ""))  # others have annotations/ too


def _forms(place, kind):
    return place / kind, place / f"{kind}.tar.gz"


def _find(kind, remote, roots, download):
    found = next((p for place in _places(roots) for p in _forms(place, kind) if p.exists()), None)
    return found or obtain(remote, roots[0] / PETS.folders[0], PETS.title, roots, download)


def _read(at, files):
    """{file: its bytes} from an archive, or from the folder beside `at`."""
    if at.is_file():
        return read_tar(at, {file: file for file in files}, LARGEST)
    try:
        return {file: (at.parent / file).read_bytes() for file in files}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); unpack annotations.tar.gz again") from error


def _parse(at, file, content):
    """Lines 'Abyssinian_100 1 1 1' -> (breed, image file, label from 0)."""
    entries = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        words = rest.split()
        if not words or not words[0].isdigit() or not 1 <= int(words[0]) <= PETS.classes:
            raise DataError(
                f"{at}, {file}, line {number}: got {line[:60]!r}; expected an image and its class from 1 to {PETS.classes}, as "
                "in 'Abyssinian_100 1 1 1'; replace it"
            )
        entries.append((name.rpartition("_")[0], f"{name}.jpg", int(words[0]) - 1))
    return entries
