"""--download: against a server on this machine, what arrives and what is refused and how."""

import gzip
import hashlib
import io
import os
import resource
import socket
import stat
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from cpfast import cli
from cpfast.train import data
from cpfast.train.data import download
from cpfast.train.data.download import Remote, Source
from cpfast.train.errors import UserError
from cpfast.train.runfolder import RunFolder


class Server:
    """Serves `files`; `cut` names those of which it sends half, `seen` what was asked for."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.seen: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.strip("/")
                server.seen.append(name)
                if name not in server.files:
                    self.send_error(404)
                    return
                content = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if name in server.cut else content)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def offer(self, name: str, content: bytes) -> Remote:
        self.files[name] = content
        digest = hashlib.sha256(content).hexdigest()
        return Remote(f"{self.address}/{name}", len(content), digest)

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CPFAST_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


FOLDER = "cifar-10-batches-bin"


def cifar10() -> dict[str, bytes]:
    """Small files of CIFAR-10's binary version, by their names in the archive."""
    rows = np.zeros((10, 3073), np.uint8)
    rows[:, 0] = np.arange(10)
    rows[:, 1:] = np.random.default_rng(0).integers(0, 256, (10, 3072))
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    files = {f"{FOLDER}/{name}": rows.tobytes() for name in names}
    files[f"{FOLDER}/batches.meta.txt"] = "\n".join("abcdefghij").encode()
    return files


def tar(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = tarfile.TarInfo(FOLDER)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "../../outside"
    return info


@pytest.fixture
def offer(server, monkeypatch):
    """Makes an archive the published one of a data set."""

    def make(content: bytes, name="cifar10", file="cifar.tar.gz", folder=FOLDER) -> Remote:
        remote = server.offer(file, content)
        monkeypatch.setitem(download.SOURCES, name, Source(folder, (remote,)))
        return remote

    return make


def left(home: Path) -> list[str]:
    """All that lies in the data set's folder."""
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.name != ".lock")


def test_each_published_data_set_has_an_address_and_checksums():
    published = [n for n, e in data.datasets.items() if e.make().is_published]
    assert sorted(download.SOURCES) == published
    files = [file for source in download.SOURCES.values() for file in source.files]
    assert len({file.sha256 for file in files}) == len(files) == 12
    for file in files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.size > 4000 and file.url.startswith("http")
    assert download.SOURCES["mnist"].files[0].name == "train-images-idx3-ubyte.gz"


def test_an_archive_arrives_and_is_fetched_once(home, server, offer):
    offer(tar(cifar10()))
    images = data.load("cifar10", download=True)
    assert images.train_size == 50 and images.test_size == 10
    assert images.name == "cifar10" and images.classes == tuple("abcdefghij")
    assert left(home / "cifar10") == sorted([FOLDER, *cifar10()])
    assert data.load("cifar10", download=True).fingerprint() == images.fingerprint()
    assert data.load("cifar10").fingerprint() == images.fingerprint()
    assert server.seen == ["cifar.tar.gz"]


def test_a_zip_of_class_folders_arrives(home, offer):
    Image = pytest.importorskip("PIL.Image")
    files = {}
    for label, name in enumerate(("Forest", "River")):
        for number in range(5):
            buffer = io.BytesIO()
            Image.new("RGB", (9, 8), (100 * label, number, 0)).save(buffer, "PNG")
            files[f"EuroSAT_RGB/{name}/{name}_{number}.png"] = buffer.getvalue()
    offer(zipped(files), "eurosat", "EuroSAT_RGB.zip", "EuroSAT_RGB")
    images = data.load("eurosat", download=True)
    assert torch.bincount(images.train_labels).tolist() == [4, 4]
    assert images.name == "eurosat" and "a fifth" in images.describe()


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def test_single_files_arrive_together_or_not_at_all(home, server, monkeypatch):
    labels = np.arange(20) % 10
    remotes = [
        server.offer(f"{split}-{what}-ubyte.gz", idx(array))
        for split in ("train", "t10k")
        for what, array in (("images-idx3", np.zeros((20, 8, 8))), ("labels-idx1", labels))
    ]
    monkeypatch.setitem(download.SOURCES, "mnist", Source("idx", tuple(remotes)))
    last = server.files.pop("t10k-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte.gz: HTTP status 404"):
        data.load("mnist", download=True)
    assert left(home) == ["mnist"]
    server.files["t10k-labels-idx1-ubyte.gz"] = last
    assert data.load("mnist", download=True).test_labels.tolist() == labels.tolist()


def test_without_download_it_says_to_add_it(home, capsys):
    with pytest.raises(
        UserError, match=rf"not in {home}/cifar10/{FOLDER}; add --download .*170 MB"
    ):
        data.load("cifar10")
    assert not home.exists()
    assert cli.main(["train", "--data", "mnist", "--no-energy", "--no-plot"]) == 2
    assert "--data mnist: not in" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "compare"])
def test_the_option_of_the_command_line(command, monkeypatch, capsys):
    asked = []

    def locate(name, download, progress):
        asked.append((name, download))
        raise UserError("asked")

    monkeypatch.setattr(download, "locate", locate)
    arguments = [command, "--data", "cifar10", "--no-energy", "--no-plot"]
    assert cli.main(arguments) == cli.main([*arguments, "--download"]) == 2
    assert asked == [("cifar10", False), ("cifar10", True)]
    assert capsys.readouterr().err == "cpfast: error: asked\n" * 2


@pytest.mark.parametrize("source", ["digits", "python-docs", "/some/folder"])
def test_what_cannot_be_fetched(source):
    with pytest.raises(UserError, match=rf"--download goes with --data cifar10, .*; got {source}"):
        data.load(source, download=True)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CPFAST_DATA": "/d"}, "/d"),
        ({"CPFAST_DATA": "~/d", "XDG_CACHE_HOME": "/c"}, "/u/d"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/cpfast"),
        ({"CPFAST_DATA": "", "XDG_CACHE_HOME": ""}, "/u/.cache/cpfast"),
        ({}, "/u/.cache/cpfast"),
    ],
)
def test_where_it_is_kept(monkeypatch, variables, expected):
    monkeypatch.setenv("HOME", "/u")
    for name in ("CPFAST_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert download.home() == Path(expected)


def refused(home: Path, message: str) -> None:
    """It fails with one line of the message, and nothing is left."""
    with pytest.raises(UserError, match=message) as raised:
        data.load("cifar10", download=True)
    assert "\n" not in str(raised.value)
    assert left(home) == ["cifar10"]


def test_a_missing_file(home, server, offer):
    offer(tar(cifar10()))
    server.files.clear()
    refused(home, r"/cifar\.tar\.gz: HTTP status 404 \(Not Found\)")


def test_a_connection_that_breaks_off(home, server, offer):
    remote = offer(tar(cifar10()))
    server.cut.add("cifar.tar.gz")
    refused(home, rf"broke off after {remote.size // 2:,} of {remote.size:,} bytes")


@pytest.mark.parametrize("change", ["bit", "shorter"])
def test_a_wrong_checksum(home, server, offer, change):
    content = bytearray(tar(cifar10()))
    remote = offer(bytes(content))
    if change == "bit":
        content[len(content) // 2] ^= 1
    else:  # and complete, as a page that says so is
        del content[1000:]
    server.files["cifar.tar.gz"] = bytes(content)
    refused(home, f"wrong checksum; SHA-256 is [0-9a-f]{{64}}, expected {remote.sha256}")


def test_a_longer_file_is_not_read_to_its_end(home, server, offer, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 100)
    offer(b"published")
    server.files["cifar.tar.gz"] = b"x" * 10_000
    refused(home, "more than the 9 bytes that were published")


def test_a_refused_connection(home, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{free.getsockname()[1]}/cifar.tar.gz"
        source = Source(FOLDER, (Remote(address, 9, "0" * 64),))
        monkeypatch.setitem(download.SOURCES, "cifar10", source)
        refused(home, rf"{address}: cannot be reached \(.*refused")


def test_a_name_that_is_not_resolved(home, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    refused(home, r"cifar-10-binary\.tar\.gz: cannot be reached \(.*Name or service not known")


def test_a_server_that_says_nothing(home, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        source = Source(FOLDER, (Remote(address, 9, "0" * 64),))
        monkeypatch.setitem(download.SOURCES, "cifar10", source)
        refused(home, "(broke off after 0 of 9 bytes: timed out|cannot be reached .*timed out)")


@pytest.mark.parametrize("name", ["../outside", "/tmp/cpfast-outside", f"{FOLDER}/../../outside"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_would_leave_the_folder(home, offer, name, kind):
    files = {**cifar10(), name: b"outside"}
    if kind == "tar":
        offer(tar(files))
    else:
        offer(zipped(files), file="cifar.zip")
    refused(home, f"cifar.{kind}.*: '{name}' would lie outside of its folder")
    assert not list(home.parent.glob("**/*outside")) and not Path("/tmp/cpfast-outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(home, offer, kind):
    offer(tar(cifar10(), link(f"{FOLDER}/shortcut", kind)))
    refused(home, f"'{FOLDER}/shortcut' is a link or a device")


def test_links_in_a_zip(home, offer):
    offer(zipped(cifar10(), f"{FOLDER}/shortcut"), file="cifar.zip")
    refused(home, f"'{FOLDER}/shortcut' is a link")


@pytest.mark.parametrize("content", [b"no archive", tar(cifar10())[:-500]])
def test_an_archive_that_cannot_be_unpacked(home, offer, content):
    offer(content)
    refused(home, r"cifar\.tar\.gz: cannot be unpacked")


def test_an_archive_of_something_else(home, offer):
    offer(zipped({"other/a.bin": b"x"}), file="cifar.zip")
    refused(home, rf"cifar\.zip: holds no {FOLDER}/")


@pytest.mark.parametrize("room", [2_000, 120_000])
def test_a_full_disk(home, offer, room):
    """No file may grow beyond `room` bytes: less than the archive, or than a file in it."""
    files = {**cifar10(), f"{FOLDER}/large": bytes(200_000)}
    remote = offer(tar(files))
    assert 2_000 < remote.size < 200_000
    if room > 2_000:
        assert remote.size < room
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        refused(home, f"--data cifar10: cannot be kept in {home / 'cifar10'}: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert data.load("cifar10", download=True).train_size == 50


def test_a_home_that_is_a_file(home):
    home.write_text("not a folder")
    with pytest.raises(UserError, match="--data cifar10: cannot be kept in .*: Not a directory"):
        data.load("cifar10", download=True)


def test_another_process_fetches_it(home, server, offer):
    offer(tar(cifar10()))
    with (
        RunFolder(home / "cifar10").locked(),
        pytest.raises(UserError, match=f"cifar10: in use by process {os.getpid()}"),
    ):
        data.load("cifar10", download=True)
    assert server.seen == []


def test_what_a_killed_process_left_is_removed(home, offer):
    offer(tar(cifar10()))
    stale = home / "cifar10" / f"{download.TEMPORARY}abc"
    stale.mkdir(parents=True)
    (stale / "cifar.tar.gz").write_bytes(b"half")
    data.load("cifar10", download=True)
    assert left(home / "cifar10") == sorted([FOLDER, *cifar10()])
