"""A folder packed into one .tar.gz, replaced whole, or into volumes where it is large."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable

VOLUME = 15 << 20  # bytes of a file, for machines that give back small ones only
TEMPORARY = ".writing"
# A checkpoint must not be newer than the lines beside it, nor a run's folder older than the
# results that name it: a snapshot may be taken while they are written.
FIRST = ("results.json", "last.pt")


def volumes(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the archive `path`, in order; none where there is no archive."""
    if path.exists():
        return [path]
    parts = (p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit())
    return sorted(parts, key=lambda p: int(p.suffix[1:]))


def pack(
    folder: pathlib.Path,
    path: pathlib.Path,
    wanted: Callable[[str], bool] = lambda name: True,
    volume: int = VOLUME,
) -> list[pathlib.Path]:
    """Replaces the archive `path` by the files in `folder` whose relative names are wanted."""
    names = [
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink() and not p.name.endswith(TEMPORARY)
    ]
    names = sorted(filter(wanted, names), key=_order)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=3) as archive:
            for name in names:
                try:
                    changed = (folder / name).stat().st_mtime
                    content = (folder / name).read_bytes()
                except FileNotFoundError:
                    continue  # renamed or removed meanwhile
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(content), changed
                archive.addfile(entry, io.BytesIO(content))
        size = packed.tell()
        packed.seek(0)
        count = -(-size // volume)
        targets = (
            [path] if count == 1 else [path.with_name(f"{path.name}.{i}") for i in range(count)]
        )
        old = volumes(path)
        fresh = [(_beside(target, packed.read(volume)), target) for target in targets]
    for written, target in fresh:
        os.replace(written, target)
    for stale in set(old) - set(targets):
        stale.unlink()
    return targets


def unpack(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises ValueError where there is no such archive, or a damaged one."""
    parts = volumes(path)
    if not parts:
        raise ValueError(f"{path}: no such archive")
    try:
        # All of it, with its checksum, before anything is written.
        content = gzip.decompress(b"".join(part.read_bytes() for part in parts))
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            extract(archive, folder)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged ({first_line(error)})") from error


def extract(archive: tarfile.TarFile, folder: pathlib.Path) -> None:
    """Nothing of it lands outside of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(tarfile, "data_filter"):
        raise ValueError("this Python's tarfile cannot refuse paths that lead elsewhere: update it")
    archive.extractall(folder, filter="data")


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def replace(target: pathlib.Path, content: bytes) -> None:
    """Whole, or not at all."""
    os.replace(_beside(target, content), target)


def _order(name: str) -> tuple[int, str]:
    base = os.path.basename(name)
    return (FIRST.index(base) if base in FIRST else len(FIRST), name)


def _beside(target: pathlib.Path, content: bytes) -> pathlib.Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(f".{target.name}{TEMPORARY}")
    written.write_bytes(content)
    return written
