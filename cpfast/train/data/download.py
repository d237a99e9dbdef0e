"""Published data sets, fetched from their official addresses."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import stat
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from cpfast.train.data import Data, DataSet, datasets, read_folder
from cpfast.train.errors import UserError, first_line
from cpfast.train.progress import bar
from cpfast.train.runfolder import RunFolder

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20
TEMPORARY = ".downloading-"


@dataclass(frozen=True)
class Remote:
    """One published file.

    Attributes:
        size: bytes.
        sha256: of CIFAR and Fashion-MNIST from TensorFlow Datasets, of MNIST from torchvision for
            Ruby; of EuroSAT and Tiny-ImageNet as several users recorded it of the archive whose
            MD5 Zenodo and torchvision-like loaders state.
    """

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def is_archive(self) -> bool:
        return self.name.endswith((".zip", ".tar.gz"))


@dataclass(frozen=True)
class Source:
    """Files that make up a data set, and the folder that they become: an archive holds it, single
    files are put into it.

    Attributes:
        paper, line: whose it is, and what.
        defaults: as of `DataSet`.
    """

    folder: str
    files: tuple[Remote, ...]
    paper: str = ""
    line: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)


IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _archive(folder: str, url: str, size: int, sha256: str, **about: Any) -> Source:
    return Source(folder, (Remote(url, size, sha256),), **about)


def _idx(address: str, *files: tuple[int, str], **about: Any) -> Source:
    """Size and SHA-256 of the files `IDX` at an address."""
    return Source(
        "idx",
        tuple(
            Remote(f"{address}/{name}-ubyte.gz", size, sha256)
            for name, (size, sha256) in zip(IDX, files, strict=True)
        ),
        **about,
    )


SOURCES = {
    "cifar10": _archive(
        "cifar-10-batches-bin",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        paper="Krizhevsky 2009",
        line="50,000 + 10,000 photographs of 32x32 in 10 classes",
    ),
    "cifar100": _archive(
        "cifar-100-binary",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        paper="Krizhevsky 2009",
        line="50,000 + 10,000 photographs of 32x32 in 100 classes",
    ),
    # the mirror that torchvision uses of yann.lecun.com
    "mnist": _idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        paper="LeCun et al. 1998",
        line="60,000 + 10,000 handwritten digits of 28x28",
        # A mirrored digit is not that digit.
        defaults={"model": "cnn", "epochs": 20, "flip": False},
    ),
    "fashion-mnist": _idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        paper="arXiv 1708.07747",
        line="60,000 + 10,000 pieces of clothing of 28x28 in 10 classes",
    ),
    "eurosat": _archive(
        "EuroSAT_RGB",
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
        94_658_721,
        "b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
        paper="arXiv 1709.00029",
        line="27,000 satellite images of 64x64 in 10 classes",
    ),
    "tiny-imagenet": _archive(
        "tiny-imagenet-200",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        248_100_043,
        "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        paper="Le and Yang 2015",
        line="100,000 + 10,000 photographs of 64x64 in 200 classes",
    ),
}


def home() -> Path:
    """Where it is kept: $CPFAST_DATA, else $XDG_CACHE_HOME/cpfast, else ~/.cache/cpfast."""
    chosen = os.environ.get("CPFAST_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cpfast"


def locate(name: str, download: bool, progress: bool) -> Path:
    """The folder of a data set of `SOURCES`; it is fetched if it is missing and `download` is set.

    It appears there whole or not at all: what is fetched is verified and unpacked beside it, and
    then renamed.

    Raises:
        UserError: it is missing and `download` is not set; the address, a checksum, the archive or
            the disk fails; another process is fetching it.
    """
    source = SOURCES[name]
    path = home() / name / source.folder
    if path.is_dir():
        return path
    if not download:
        host = urlsplit(source.files[0].url).netloc
        size = sum(file.size for file in source.files)
        raise UserError(
            f"--data {name}: not in {path}; add --download to fetch it from {host} "
            f"({size / 1e6:.0f} MB), or put it there"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with RunFolder(path.parent).locked():
            if not path.is_dir():
                _fetch(source, path, progress)
    except OSError as error:
        raise UserError(
            f"--data {name}: cannot be kept in {path.parent}: {error.strerror or error}"
        ) from error
    return path


def _fetch(source: Source, path: Path, progress: bool) -> None:
    for left in path.parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left)  # of a process that was killed
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as temporary:
        unpacked = Path(temporary, "unpacked")
        (unpacked / source.folder).mkdir(parents=True)
        for remote in source.files:
            file = Path(temporary, remote.name)
            _download(remote, file, progress)
            if remote.is_archive:
                _unpack(file, unpacked, progress)
                file.unlink()
            else:
                file.rename(unpacked / source.folder / remote.name)
        if not any((unpacked / source.folder).iterdir()):
            raise UserError(f"{source.files[0].url}: holds no {source.folder}/")
        (unpacked / source.folder).rename(path)


def _download(remote: Remote, file: Path, progress: bool) -> None:
    """Fetch into `file` and verify."""
    url, got, digest = remote.url, 0, hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "cpfast"})
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as response,
            open(file, "wb") as out,
            bar(remote.name, progress, total=remote.size, unit="B", unit_scale=True) as shown,
        ):
            announced = int(response.headers.get("Content-Length") or 0)
            while got <= remote.size and (chunk := response.read(CHUNK)):
                got += len(chunk)
                digest.update(chunk)
                out.write(chunk)
                shown.update(len(chunk))
        broken = f"{announced:,} bytes" if got < announced else ""
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: HTTP status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        raise UserError(f"{url}: cannot be reached ({first_line(error.reason)})") from error
    except (HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        broken = f"{remote.size:,} bytes: {first_line(error)}"
    if got > remote.size:
        raise UserError(f"{url}: more than the {remote.size:,} bytes that were published")
    if broken:
        raise UserError(f"{url}: broke off after {got:,} of {broken}")
    if digest.hexdigest() != remote.sha256:
        raise UserError(
            f"{url}: wrong checksum; SHA-256 is {digest.hexdigest()}, expected {remote.sha256}"
        )


def _unpack(archive: Path, into: Path, progress: bool) -> None:
    """Unpack the regular files of an archive; links, devices and paths out of it are refused."""
    try:
        with bar("unpacking", progress, unit="file") as shown:
            for name, content in _members(archive):
                relative = PurePosixPath(name)
                if relative.is_absolute() or ".." in relative.parts:
                    raise UserError(f"{archive.name}: {name!r} would lie outside of its folder")
                target = into / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, open(target, "wb") as file:
                    shutil.copyfileobj(content, file)
                shown.update()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive.name}: cannot be unpacked ({first_line(error)})") from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise UserError(f"{archive.name}: {info.filename!r} is a link")
                if not info.is_dir():
                    yield info.filename, bundle.open(info)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name, content
                elif not member.isdir():
                    raise UserError(f"{archive.name}: {member.name!r} is a link or a device")


def _register(name: str) -> None:
    def load(limit: int | None, progress: bool, download: bool) -> Data:
        path = locate(name, download, progress)
        return replace(read_folder(path, limit, progress), name=name)

    @datasets.register(name, source=SOURCES[name].paper, line=SOURCES[name].line)
    def make() -> DataSet:
        return DataSet(load, is_published=True, defaults=SOURCES[name].defaults)


for _name in SOURCES:
    _register(_name)
