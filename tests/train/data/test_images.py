"""Single image files: how they lie, what is transparent, what cannot be read to its end."""

import os
import stat
import struct
import zlib

import numpy as np
import pytest
import torch
from support.image_files import Image, write_images

from cpfast.train import data
from cpfast.train.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 1)
    return tmp_path


# --- orientation ------------------------------------------------------------------------------

# EXIF 2.3, tag 274: the sides of the picture at which the stored rows and columns begin
STORED = {
    1: lambda picture: picture,
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.T,
    6: lambda picture: picture.T[::-1],
    7: lambda picture: picture.T[::-1, ::-1],
    8: lambda picture: picture.T[:, ::-1],
}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", {"quality": 95}),
        (".png", {}),
        (".tif", {}),
        (".tiff", {"compression": "tiff_lzw"}),
        (".webp", {"lossless": True}),
    ],
)
def test_every_orientation_is_turned_upright(tmp_path, suffix, options):
    picture = np.kron([[0, 70, 140], [200, 230, 30]], np.ones((8, 8))).astype(np.uint8)
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 1, size=(24, 16))
    for orientation, stored in STORED.items():
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(np.ascontiguousarray(stored(picture))).save(
            tmp_path / "train" / "a" / f"{orientation}{suffix}", exif=exif, **options
        )
    for _ in range(2):  # from the files, then from what is kept of them
        images = data.load(str(tmp_path)).train_images.int()
        assert images.shape == (10, 16, 24, 3)
        upright = torch.from_numpy(picture).int()[..., None]
        for orientation in STORED:
            assert (images[orientation] - upright).abs().max() <= 8, orientation  # JPEG's loss


def test_an_orientation_that_there_is_not_changes_nothing(folder):
    exif = Image.Exif()
    exif[274] = 9
    Image.new("RGB", (9, 8), (7, 8, 9)).save(folder / "train" / "a" / "0.png", exif=exif)
    assert data.load(str(folder)).train_images[0, 0, 0].tolist() == [7, 8, 9]


# --- transparency -----------------------------------------------------------------------------


def png(pixels: np.ndarray, depth: int, key: bytes, palette: bytes = b"") -> bytes:
    """A PNG of [H, W] (grey, or positions in a palette) or [H, W, 3] with a tRNS chunk."""
    colour = 3 if palette else 2 if pixels.ndim == 3 else 0
    height, width = pixels.shape[:2]
    bits = (pixels.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"tRNS", key), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )  # fmt: skip


def found_transparent(folder, content: bytes, white: np.ndarray | None = None) -> bool:
    """Whether the note says so; `white` says which pixels are laid over white then."""
    path = folder / "train" / "a" / "0.png"
    path.write_bytes(content)
    images = data.load(str(folder))
    found = "1 transparent image laid over white" in images.note
    if found and white is not None:
        assert (images.train_images[0].numpy()[white] == 255).all()
    return found


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_is_noticed_at_every_depth(folder, depth):
    levels = 2**depth
    missing = 1
    present = np.delete(np.arange(levels), missing)
    grey = np.resize(present, (32, 9))[:8] if depth < 4 else np.resize(present, (8, 36))[:, :9]
    for key in {missing, *range(0, levels, max(1, levels // 32))}:
        expected = key in grey
        assert (
            found_transparent(folder, png(grey, depth, struct.pack(">H", key)), grey == key)
            == expected
        )


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_entry_of_a_palette_is_noticed_at_every_depth(folder, depth):
    used = 2**depth - 1
    pixels = np.full((8, 9), used)
    palette = bytes(3 * 2**depth)
    for alpha in (b"\xff" * used + b"\x00", b"\xff" * used + b"\xfe"):
        assert found_transparent(folder, png(pixels, depth, alpha, palette))
    assert not found_transparent(folder, png(pixels, depth, b"\x00" * used, palette))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_noticed_at_every_depth(folder, depth):
    step = 2 ** (depth - 8)
    pixels = np.arange(8 * 9 * 3).reshape(8, 9, 3) % 256 * step + step // 3
    for pixel in pixels.reshape(-1, 3)[::7]:
        assert found_transparent(folder, png(pixels, depth, struct.pack(">HHH", *pixel)))
        other = pixel[[1, 0, 2]]
        assert not found_transparent(folder, png(pixels, depth, struct.pack(">HHH", *other)))


# --- what is no file --------------------------------------------------------------------------


def fifo(path):
    os.mkfifo(path)


def socket(path):
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path):
    path.symlink_to("/dev/zero")


def dangling_link(path):
    path.symlink_to("nowhere.png")


def loop_of_links(path):
    path.symlink_to(path)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "not a regular file"),
        (socket, "not a regular file"),
        (device, "not a regular file"),
        (dangling_link, "No such file or directory"),
        (loop_of_links, "Too many levels of symbolic links"),
    ],
)
def test_what_is_called_an_image_and_is_no_file_is_named(folder, make, reason, limit):
    path = folder / "test" / "b" / "1.png"
    make(path)
    with pytest.raises(UserError) as raised:
        data.load(str(folder), limit)
    assert str(raised.value) == f"cannot read image {path}: {reason}"


def test_an_image_that_is_removed_while_they_are_listed_is_named(folder, monkeypatch):
    path = folder / "test" / "b" / "0.png"
    status = os.stat

    def removed(name, **options):
        if name == str(path):
            path.unlink(missing_ok=True)
        return status(name, **options)

    monkeypatch.setattr(os, "stat", removed)
    with pytest.raises(UserError, match=f"cannot read image {path}: No such file"):
        data.load(str(folder))


@pytest.mark.parametrize("suffix", [".pgm", ".tif"])
def test_images_are_read_and_never_mapped(tmp_path, monkeypatch, suffix):
    """A file that is cut while it is mapped kills the process."""
    for split in ("train", "test"):
        for value, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (9, 8), value).save(tmp_path / split / name / f"0{suffix}")
    monkeypatch.setattr("mmap.mmap", None)
    assert data.load(str(tmp_path)).train_size == 2
