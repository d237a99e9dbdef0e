"""Image folders: what is loaded, and what is refused and how."""

import os

import pytest
from support.image_files import Image, write_images

from cpfast.train import data
from cpfast.train.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / split / name, count, value=100 * label)
    return tmp_path


def test_loading_twice_gives_the_same(folder):
    assert data.load(str(folder)).fingerprint() == data.load(str(folder)).fingerprint()


def test_folder_pixels_labels_and_classes(folder):
    images = data.load(str(folder))
    assert images.classes == ("cat", "dog")
    assert images.train_images.shape == (8, 8, 9, 3)
    assert images.train_labels.tolist() == [0] * 4 + [1] * 4
    assert images.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert images.test_labels.tolist() == [0, 0, 1, 1]


def test_folder_may_lie_one_level_down(folder, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    folder.rename(outer / "inner")
    assert len(data.load(str(outer)).train_labels) == 8


def test_files_passed_over_are_counted_and_said(folder):
    assert "passed over" not in data.load(str(folder)).describe()
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    assert data.load(str(folder)).describe().endswith("classes; 1 file passed over (.txt 1)")
    for path in ("a.XML", "b.xml", "c.xml", "5.avif", "README", "x.\n", "x.\udcff", "x.no suffix"):
        (folder / "train" / "dog" / path).write_text("no image")
    (folder / "train" / "beside.png").write_text("of no class")
    (folder / "test" / "beside.csv").write_text("of no class")
    images = data.load(str(folder))
    assert images.train_size == 8 and images.test_size == 4
    assert images.note == (
        "11 files passed over (others 4, .xml 3, .avif 1, .csv 1, .png 1, .txt 1)"
    )
    for number in range(9):
        (folder / "train" / "dog" / f"x.{number}").write_text("no image")
    assert data.load(str(folder)).note.startswith("20 files passed over (others 4, .xml 3, .0 1,")
    assert data.load(str(folder)).note.endswith(", .3 1, ...)")


def test_what_desktops_and_archives_leave_behind_is_not_there(folder):
    before = data.load(str(folder))
    for place in (folder, folder / "train", folder / "train" / "cat"):
        for name in (".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "._0.png", ".0.png"):
            (place / name).write_bytes(b"no image")
        for name in ("__MACOSX", ".ipynb_checkpoints"):
            write_images(place / name, 1)
            write_images(place / name / "train" / "cat", 1)
    after = data.load(str(folder))
    assert after.fingerprint() == before.fingerprint() and after.describe() == before.describe()


@pytest.mark.parametrize("split", [True, False])
def test_the_shadow_beside_the_data_is_not_data(tmp_path, split):
    for top in ("pets", "__MACOSX"):
        for place in ("train", "test") if split else ("",):
            for name in ("cat", "dog"):
                write_images(tmp_path / top / place / name, 2)
    assert data.load(str(tmp_path)).name == "pets"


# --- folders of a class -----------------------------------------------------------------------


def test_images_in_folders_of_a_class_are_read_at_any_depth(folder):
    write_images(folder / "train" / "cat" / "series", 2, value=10)
    write_images(folder / "train" / "cat" / "series" / "b.png" / "deep", 1, value=20)
    write_images(folder / "train" / "dog" / "a", 1, value=30)
    write_images(folder / "test" / "dog" / "a" / "b", 1, value=40)
    (folder / "train" / "cat" / "empty").mkdir()
    images = data.load(str(folder))
    assert images.classes == ("cat", "dog") and images.note == ""
    assert images.train_images[:, 0, 0, 0].tolist() == [
        *(0, 1, 2, 3, 10, 11, 20), *(100, 101, 102, 103, 30)
    ]  # fmt: skip
    assert images.train_labels.tolist() == [0] * 7 + [1] * 5
    assert images.test_images[:, 0, 0, 0].tolist() == [0, 1, 100, 101, 40]
    (folder / "train" / "cat" / "series" / "notes.txt").write_text("no image")
    assert data.load(str(folder)).note == "1 file passed over (.txt 1)"


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpe", ".Jpg", ".PNG", ".TIF", ".WebP"])
def test_every_suffix_of_an_image_is_known_in_any_case(folder, suffix):
    path = folder / "train" / "cat" / f"9{suffix}"
    Image.new("RGB", (9, 8)).save(path, "JPEG")
    images = data.load(str(folder))
    assert images.train_size == 9 and images.note == ""


def test_linked_folders_are_read_once_and_loops_end(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_images(elsewhere / "inner", 1, value=10)
    (elsewhere / "loop").symlink_to(elsewhere)
    cat = folder / "train" / "cat"
    (cat / "linked").symlink_to(elsewhere)
    (cat / "linked again").symlink_to(elsewhere / "inner")
    (cat / "here").symlink_to(cat)
    (folder / "train" / "emu").symlink_to(folder / "test" / "dog")  # another split's is allowed
    images = data.load(str(folder))
    assert images.train_images[:, 0, 0, 0].tolist() == [
        *(0, 1, 2, 3, 10), *(100, 101, 102, 103), *(100, 101)
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["../dog", "..", "../.."])
def test_a_link_to_a_folder_of_another_class_is_refused(folder, target):
    link = folder / "train" / "cat" / "link"
    link.symlink_to(target)
    with pytest.raises(UserError, match="are one folder, which cannot be of two classes") as raised:
        data.load(str(folder))
    assert str((link.parent / target).resolve()) in str(raised.value)


def test_two_classes_that_are_one_folder_are_refused(folder):
    (folder / "train" / "emu").symlink_to("dog")
    train = folder / "train"
    with pytest.raises(UserError, match=f"{train}/emu and {train}/dog are one folder"):
        data.load(str(folder))


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    inner = folder / "train" / "cat" / "series"
    write_images(inner, 1)
    scan = os.scandir

    def refuse(path):  # root may read everything
        if str(path) == str(inner):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{inner}: Permission denied"):
        data.load(str(folder))


# --- what is tested on ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_tested_on_and_said(folder, name):
    before = data.load(str(folder))
    (folder / "test").rename(folder / name)
    images = data.load(str(folder))
    assert images.fingerprint() == before.fingerprint()
    assert images.describe() == f"{before.describe()}; tested on {name}/"


def test_of_several_folders_to_test_on_it_is_said_which(folder):
    for name in ("validation", "val"):
        write_images(folder / name / "cat", 1)
    assert data.load(str(folder)).note == "tested on test/, not val/, not validation/"
    assert data.load(str(folder)).test_size == 4
    (folder / "test").rename(folder / "other")
    (folder / "train" / "a.txt").write_text("no image")
    assert data.load(str(folder)).note == (
        "tested on val/, not validation/; 1 file passed over (.txt 1)"
    )


def test_limit_is_applied_before_decoding(folder):
    chosen = data.load(str(folder), limit=2)
    assert chosen.train_labels.tolist() == [0, 1]
    for path in (folder / "train").rglob("*.png"):
        if path.stem != "0":
            path.write_bytes(b"damaged")
    try:
        data.load(str(folder), limit=2)
    except UserError as error:
        # of 8 files only the two chosen ones are opened
        assert "cannot read image" in str(error)
    untouched = chosen.train_images[:, 0, 0, 0].tolist()
    for path in (folder / "train").rglob("*.png"):
        value = int(path.stem) + (100 if path.parent.name == "dog" else 0)
        if value in untouched:
            Image.new("RGB", (9, 8), (value, 0, 9)).save(path)
        else:
            path.write_bytes(b"damaged")
    assert data.load(str(folder), limit=2).fingerprint() == chosen.fingerprint()


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 2, mode="L", value=50)
    assert data.load(str(tmp_path)).shape == (8, 9, 1)
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "train" / "b" / "9.png")
    mixed = data.load(str(tmp_path))
    assert mixed.shape == (8, 9, 3)
    assert mixed.train_images[0, 0, 0].tolist() == [50, 50, 50]
    assert mixed.train_images[-1, 0, 0].tolist() == [1, 2, 3]


def test_folder_without_train(tmp_path):
    with pytest.raises(UserError, match="no train/ folder"):
        data.load(str(tmp_path))


def test_folder_without_test(folder):
    (folder / "test").rename(folder / "other")
    with pytest.raises(UserError, match="no test/, val/, valid/ or validation/ beside train/"):
        data.load(str(folder))


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        data.load(str(tmp_path))


def test_folder_with_one_class(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split / "only", 2)
    with pytest.raises(UserError, match="only one class, 'only'"):
        data.load(str(tmp_path))


def test_class_without_images(folder):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="emu: no images"):
        data.load(str(folder))


def test_test_class_that_is_not_trained(folder):
    write_images(folder / "test" / "emu", 1)
    with pytest.raises(UserError, match="class 'emu' is not in"):
        data.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(folder, content):
    path = folder / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(UserError, match=f"cannot read image {path}"):
        data.load(str(folder))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_modes_that_do_not_fit_8_bits_are_refused(folder, mode):
    path = folder / "train" / "dog" / "1.tif"
    Image.new(mode, (9, 8), 300).save(path)
    with pytest.raises(UserError, match=rf"{path}: an image of mode '{mode}'; expected 1, L"):
        data.load(str(folder))


def transparent(mode):
    if mode == "P":
        return Image.new("RGB", (9, 8), (5, 6, 7)).quantize(), {"transparency": 0}
    if mode == "L":
        return Image.new("L", (9, 8), 7), {"transparency": 7}
    return Image.new(mode, (9, 8), (5, 254) if mode == "LA" else (5, 6, 7, 254)), {}


@pytest.mark.parametrize(
    ("mode", "over_white"),
    # 254 of 255 of the colour, the rest white
    [("LA", [6, 6, 6]), ("RGBA", [6, 7, 8]), ("P", [255, 255, 255]), ("L", [255, 255, 255])],
)
def test_transparent_images_are_laid_over_white_and_counted(folder, mode, over_white):
    path = folder / "train" / "dog" / "1.png"
    image, options = transparent(mode)
    image.save(path, **options)
    for _ in range(2):  # from the files, then from what is kept of them
        images = data.load(str(folder))
        assert images.train_images[5, 4, 4].tolist() == over_white
        assert "1 transparent image laid over white" in images.describe()


def test_an_opaque_alpha_channel_is_dropped(folder):
    Image.new("RGBA", (9, 8), (5, 6, 7, 255)).save(folder / "train" / "cat" / "0.png")
    Image.new("L", (9, 8), 3).save(folder / "train" / "cat" / "1.png", transparency=4)
    assert data.load(str(folder)).train_images[0, 0, 0].tolist() == [5, 6, 7]


def test_images_too_small(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, 1, size=(7, 9))
    with pytest.raises(UserError, match="9x7 are too small"):
        data.load(str(tmp_path))
