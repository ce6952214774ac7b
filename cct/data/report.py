"""What `cct data check` prints: what was found in a folder, or for a named set, and everything that is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import folder
from .dataset import DataError, DataSet
from .mnist import WrongSet
from .pictures import Reading, parallel
from .readers import FILE_READERS, NAMES, load

CLASSES_SHOWN = 120
PROBLEMS_SHOWN = 20


@dataclass
class Report:
    """What was found: `counts` maps a split to the number of images per class, `parts` are the sets of a folder with several.

    Prints with rich, and with str() as plain text.
    """

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    counts: dict[str, list[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    parts: list[Report] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems and all(part.ok for part in self.parts)

    def __rich__(self):
        from rich.console import Group  # here, as the data sets need nothing of it
        from rich.markup import escape
        from rich.table import Table

        if self.parts:
            return Group(*self.parts)
        parts = [f"[bold]{escape(self.title)}[/bold]", *(f"  {key}: {escape(value)}" for key, value in self.facts.items())]
        if self.classes:
            table = Table("class", *(f"{split} images" for split in self.counts), show_footer=True)
            columns = list(self.counts.values())
            for name, *numbers in list(zip(self.classes, *columns, strict=True))[:CLASSES_SHOWN]:
                table.add_row(escape(name), *map(str, numbers))
            if len(self.classes) > CLASSES_SHOWN:
                table.add_row(f"and {len(self.classes) - CLASSES_SHOWN} more", *(f"{min(c)} to {max(c)} each" for c in columns))
            for column, footer in zip(table.columns, [f"{len(self.classes)} classes", *map(sum, columns)], strict=True):
                column.footer = str(footer)
            parts.append(table)
        parts += [f"[red]problem:[/red] {escape(problem)}" for problem in self.problems[:PROBLEMS_SHOWN]]
        if len(self.problems) > PROBLEMS_SHOWN:
            parts.append(f"and {len(self.problems) - PROBLEMS_SHOWN} more problems")
        parts.append("[green]no problem found[/green]" if self.ok else f"[red]{len(self.problems)} problem(s)[/red]")
        return Group(*parts)

    def __str__(self):
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self, soft_wrap=True, highlight=False)
        return capture.get().rstrip()


def check(path_or_name, data_dir=None) -> Report:
    """Look at a named data set, or at a folder: does it hold MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, or images by class?

    Every file is read whole and compared with its checksum, or decoded; nothing is downloaded. What is wrong comes back in
    `problems`, it is not raised.
    """
    root = Path(path_or_name).expanduser()
    try:
        if path_or_name == "folder" and data_dir:
            return _check_folder(Path(data_dir).expanduser())
        if path_or_name in NAMES and path_or_name != "folder":
            return _describe(load(path_or_name, data_dir, download=False))
        return _check_published(root) or _check_folder(root)
    except DataError as error:
        return Report(str(path_or_name), problems=[str(error)])


def _check_published(root: Path) -> Report | None:
    """The published sets that lie in the folder. MNIST and Fashion-MNIST share file names: the content decides."""
    parts, claimed = [], set()
    for name, reader in FILE_READERS.items():
        path = reader.present(name, root)
        if path is None or path in claimed:
            continue
        try:
            parts.append(_describe(reader.load(name, [root], Reading(), download=False)))
        except WrongSet:
            continue
        except DataError as error:
            parts.append(Report(f"{name} in {root}", problems=[str(error)]))
        claimed.add(path)
    return Report(str(root), parts=parts) if parts else None


def _describe(data: DataSet) -> Report:
    splits = {name: split for name in ("train", "val", "test") if (split := getattr(data, name)) is not None}
    H, W = data.img_size
    facts = {
        "data set": data.name,
        "source": data.source,
        "split": data.split,
        "images": f"{H} x {W}, {data.channels} channel(s)" + (f", with a zero border of {data.pad}" if data.pad else ""),
        "mean, std": f"{data.mean}, {data.std}",
    }
    counts = {name: torch.bincount(split.labels, minlength=data.num_classes).tolist() for name, split in splits.items()}
    return Report(data.source if data.name != "digits" else "digits", facts, data.classes, counts)


def _check_folder(root: Path) -> Report:
    listing = folder.scan(root)
    paths = [path for files in listing.files.values() for path, _ in files]
    probes = parallel(lambda path: folder.probe(path, whole=True), paths)
    good = [p for p in probes if not p.error]
    places = ", ".join(
        f"{split} in {name}/" if name else "no train/ folder: DIR/CLASS/*" for split, name in listing.folders.items()
    )
    facts = {"data set": "folder of images", "layout": places}
    if good:
        widths, heights = zip(*(p.size for p in good), strict=True)
        (common, times), *_ = Counter(p.size for p in good).most_common(1)
        facts["sizes"] = (
            f"{min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high; "
            f"{times} of {len(good)} are {common[0]} x {common[1]}"
        )
        facts["modes"] = ", ".join(f"{mode} {number}" for mode, number in Counter(p.mode for p in good).most_common())
        H, W = folder.usual_size(p.size for p in good)
        facts["default img_size"] = f"{H} x {W}, {1 if all(p.grey for p in good) else 3} channel(s)"
    if listing.ignored:
        facts["ignored"] = f"{listing.ignored} files that are no images by their name"
    tallies = {split: Counter(label for _, label in files) for split, files in listing.files.items()}
    counts = {split: [tally[label] for label in range(len(listing.classes))] for split, tally in tallies.items()}
    problems = [f"{path}: cannot be read ({p.error})" for path, p in zip(paths, probes, strict=True) if p.error]
    return Report(str(root), facts, listing.classes, counts, problems)
