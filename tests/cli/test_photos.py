"""A folder of photographs as a camera wrote them, from files to a trained model in one command."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.image_files import Image

from cpfast import cli
from cpfast.train.runfolder import RunFolder

OPTIONS = [
    "--epochs", "2", "--method", "full", "--repeats", "1", "--threads", "1",
    "--no-energy", "--no-plot",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """50 photographs of each of two kinds, of many sizes: some turned, some large, some grey."""
    random = np.random.default_rng(0)
    for channel, kind in ((2, "sea"), (1, "forest")):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(50):
            colours = random.uniform(0, 150, (6, 8, 3))
            colours[..., channel] += 100
            size = (3200, 2400) if number % 20 == 0 else random.integers(60, 500, 2).tolist()
            image = Image.fromarray(colours.astype(np.uint8)).resize(size, Image.BICUBIC)
            if number % 11 == 3:
                image = image.convert("L")
            exif = Image.Exif()
            if number % 5 == 0:
                exif[274] = 6
            image.save(tmp_path / "photos" / kind / f"IMG_{number:04}.JPG", exif=exif)
            (tmp_path / "photos" / kind / f"._IMG_{number:04}.JPG").write_bytes(b"of macOS")
        (tmp_path / "photos" / kind / "Thumbs.db").write_bytes(b"of Windows")
    return tmp_path / "photos"


def test_they_train_with_one_command(photos, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cpfast", "train", "--data", "photos", *OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == (
        "photos: 80 training and 20 test images of 64x64x3, 2 classes; a fifth of each class, "
        "drawn by a fixed seed, is held out for testing; of any sizes, resized and cropped to "
        "64x64 (--image-size chooses); 10 grey images made RGB; mirrored at random (not with "
        "--no-flip)"
    )
    (run,) = (tmp_path / "runs").iterdir()
    assert RunFolder(run).epochs() == 2


def header(capsys, *options):
    assert cli.main(["train", "--data", "photos", *OPTIONS, *options]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_the_size_and_the_mirroring_are_chosen_and_said(photos, capsys, tmp_path):
    small = ("--image-size", "16x24", "--model", "cnn")
    line = header(capsys, *small, "--no-flip", "--out", "run")
    assert "images of 16x24x3" in line and "mirrored" not in line and "chooses" not in line
    assert RunFolder(tmp_path / "run").config().reading["image_size"] == (16, 24)
    assert header(capsys, "--resume", "--out", "run", "--image-size", "16x24", "--no-flip") == line
    (photos / "sea").rename(photos / "0")
    (photos / "forest").rename(photos / "1")
    line = header(capsys, *small)
    assert line.endswith("; not mirrored, as classes are named after characters or sides (--flip "
                         "mirrors)")  # fmt: skip
    assert header(capsys, *small, "--flip").endswith("; mirrored at random (not with --no-flip)")


def test_another_size_is_not_that_run(photos, capsys):
    header(capsys, "--image-size", "16", "--model", "cnn", "--out", "run")
    command = ["train", "--data", "photos", "--resume", "--out", "run", "--image-size", "32"]
    assert cli.main(command) == 2
    assert "cannot change --image-size 32 (the run has 16)" in capsys.readouterr().err
