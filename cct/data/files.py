"""Where data files lie, and how they get there: search, checksums, downloads that resume."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from .dataset import DataError

CHUNK = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A published file: `url` ends in its name, `sha256` is of its bytes (or their md5, where only that is published)."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]


def roots(data_dir=None) -> list[Path]:
    """The folders searched, in this order: data_dir, $CCT_DATA, ~/.cache/cct/data. The first also takes downloads."""
    places = [data_dir, os.environ.get("CCT_DATA"), Path("~/.cache/cct/data")]
    folders = [Path(p).expanduser() for p in places if p]
    for folder in folders:
        if folder.is_file():
            raise DataError(f"{folder}: is a file; give the folder that holds it")
    return list(dict.fromkeys(folders))


def checksum(data: bytes, algorithm="sha256") -> str:
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def _algorithm(digest: str) -> str:
    return "md5" if len(digest) == 32 else "sha256"


def expect_checksum(data: bytes, expected: str | None, where):
    """`expected` is a sha256, or the md5 (32 digits) where only that is published; None: nothing is known."""
    if expected is None:
        return
    algorithm = _algorithm(expected)
    got = checksum(data, algorithm)
    if got != expected:
        raise DataError(
            f"{where}: damaged or changed, its {algorithm} is {got}, published is {expected}; "
            "delete it and run again to download it"
        )


def obtain(remote: Remote, folder: Path, wanted: str, searched, download: bool) -> Path:
    """Download into `folder`, or say which file to put where. `wanted` names the data set in messages."""
    if not download:
        raise DataError(f"{wanted}: {remote.file} is not here. {_advice(remote, folder, searched)}")
    try:
        return _download(remote, folder)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{wanted}: {remote.file} is not here and could not be downloaded ({reason}). {_advice(remote, folder, searched)}"
        ) from error


def _advice(remote, folder, searched):
    looked = ", ".join(str(p) for p in searched)
    return f"Put {remote.file} (published at {remote.url}) into {folder}, or name its folder as data_dir; searched: {looked}"


def read_tar(archive: Path, wanted: dict[str, str], largest: int) -> dict[str, bytes]:
    """Members of a tar.gz by name, in one pass: {key: content} for `wanted`, member name -> key.

    Nothing is written; links, other members and members of more than `largest` bytes are never followed or read. Raises
    DataError for an archive that is damaged or lacks one.
    """
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                key = wanted.get(member.name.removeprefix("./"))
                if key is not None and member.isreg() and member.size <= largest:
                    contents[key] = tar.extractfile(member).read()
                if len(contents) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: cannot be read ({error}); delete it and run again to download it") from error
    missing = [name for name, key in wanted.items() if key not in contents]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise DataError(f"{archive}: lacks {', '.join(missing[:6])}{more}; delete it and run again to download it")
    return contents


def _download(remote: Remote, folder: Path) -> Path:
    """To FILE.part, continued if one is there, and renamed only when the checksum is right."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / remote.file
    part = folder / f"{remote.file}.part"
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cct-kernels"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=30) as response:
            _receive(response, part, have if response.status == 206 else 0, target)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the partial file is already complete, so the checksum decides
            raise
    algorithm = _algorithm(remote.sha256)
    got = checksum(part.read_bytes(), algorithm)
    if got != remote.sha256:
        part.unlink()
        raise DataError(
            f"{remote.url}: the download has {algorithm} {got}, published is {remote.sha256}; it was deleted, run again"
        )
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    return target


def _receive(response, part: Path, have: int, target: Path):
    # rich is wanted only here.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    console.print(f"downloading {response.url} to {target}", highlight=False, soft_wrap=True)
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(target.name, total=total, completed=have)
        with open(part, "ab" if have else "wb") as file:
            while block := response.read(CHUNK):
                file.write(block)
                progress.update(task, advance=len(block))
            done = file.tell()
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes; run again to continue")
