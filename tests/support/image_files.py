"""Small image files for the tests of the data sets."""

from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")


def write_images(folder: Path, count: int, size=(9, 8), mode="RGB", value=0, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new(mode, size, (value + number) if mode == "L" else (value + number, 0, 9)).save(
            folder / f"{number}{suffix}"
        )
