"""Folders of images, single image files, and the report about a folder."""

import numpy as np
import pytest
import torch
from PIL import Image

import cct.data
from cct.data import DataError, folder, images, pictures, streamed

rng = np.random.default_rng(0)


def picture(path, size=(40, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    # Larger blocks than pixels, so that lossy formats keep them apart.
    coarse = rng.integers(0, 256, (-(-size[1] // 8), -(-size[0] // 8), *bands), dtype=np.uint8)
    image = Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]], mode)
    image.save(path, **options)
    return image


@pytest.fixture
def tree(tmp_path):
    """Two classes with 10 images each in train/, 3 each in val/."""
    for name in ("cat", "dog"):
        for i in range(10):
            picture(tmp_path / "train" / name / f"{i}.png")
        for i in range(3):
            picture(tmp_path / "val" / name / f"{i}.JPG", format="JPEG")
    return tmp_path


def test_train_and_val(tree):
    data = cct.data.load("folder", tree)
    assert data.classes == ["cat", "dog"] and (len(data.train), len(data.test)) == (20, 6) and data.val is None
    assert data.img_size == (32, 32) and data.channels == 3 and data.mean == (0.485, 0.456, 0.406)
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10
    assert "val/ 6 images; tested on val/, there is no test/" in data.split
    for i in range(10):
        expected = images.load_image(tree / "train/dog" / f"{i}.png", data.preprocessing)
        got = cct.data.batches.evaluation(data.train.subset([10 + i]), batch_size=1, mean=data.mean, std=data.std)
        assert torch.equal(next(iter(got))[0][0], expected)


def test_train_val_and_test(tree):
    picture(tree / "test/dog/a.png")
    data = cct.data.load("folder", tree)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 6, 1) and data.test.labels.tolist() == [1]
    with pytest.raises(DataError, match="there is a val split already"):
        cct.data.load("folder", tree, val_split=0.1)


@pytest.mark.parametrize("where", ["", "train"])
def test_without_an_evaluation_split(tree, where):
    root = tree / "train" if not where else tree
    for path in (tree / "val").rglob("*.JPG"):
        path.unlink()
    for path in sorted((tree / "val").rglob("*"), reverse=True):
        path.rmdir()
    (tree / "val").rmdir()
    data, again = cct.data.load("folder", root), cct.data.load("folder", str(root))
    assert (len(data.train), len(data.test)) == (16, 4) and torch.bincount(data.test.labels).tolist() == [2, 2]
    assert torch.equal(data.test.images, again.test.images) and "fixed stratified split: 16 train, 4 test" in data.split


def test_resize_and_centre_crop_are_pillows(tmp_path):
    image = picture(tmp_path / "a/wide.png", (90, 40))
    for name in ("one", "two"):
        picture(tmp_path / "b" / f"{name}.png")
    data = cct.data.load("folder", tmp_path, img_size=(20, 30))
    # 40 high -> 20 high, 45 wide; 30 of them from the centre.
    expected = image.resize((45, 20), Image.Resampling.BICUBIC).crop((8, 0, 38, 20))
    assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "target", "crop_pct", "resized", "box"),
    [
        ((40, 30), (30, 30), 1.0, (40, 30), (5, 0, 35, 30)),
        ((30, 40), (30, 30), 1.0, (30, 40), (0, 5, 30, 35)),
        ((256, 256), (224, 224), 0.9, (248, 248), (12, 12, 236, 236)),
        ((100, 50), (16, 64), 1.0, (64, 32), (0, 8, 64, 24)),
        ((7, 5), (32, 32), 1.0, (44, 32), (6, 0, 38, 32)),
        ((32, 32), (32, 32), 1.0, (32, 32), (0, 0, 32, 32)),
    ],
)
def test_fit(size, target, crop_pct, resized, box):
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop(box)
    assert np.array_equal(np.asarray(images.fit(image, target, crop_pct=crop_pct)), np.asarray(expected))


def test_fit_all_is_fit_of_each():
    pixels = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8)
    out = images.fit_all(pixels, (16, 16), pad=2)
    for source, target in zip(pixels, out, strict=True):
        image = images.fit(Image.fromarray(source.permute(1, 2, 0).numpy()), (16, 16), pad=2)
        assert np.array_equal(np.asarray(image), target.permute(1, 2, 0).numpy())
    assert out[:, :, :2].sum() == 0 == out[:, :, :, -2:].sum()


def spec(channels=3, **changes):
    mean, std = ((0.5,), (0.25,)) if channels == 1 else ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return {"mean": mean, "std": std, "size": [32, 32], "channels": channels} | changes


def test_load_image(tmp_path):
    image = picture(tmp_path / "x.png", (32, 32))
    x = images.load_image(tmp_path / "x.png", spec())
    exact = (torch.from_numpy(np.array(image)).double() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    assert x.dtype == torch.float32 and x.shape == (3, 32, 32)
    torch.testing.assert_close(x.double(), exact.permute(2, 0, 1), rtol=0, atol=1e-5)
    grey = images.load_image(tmp_path / "x.png", spec(1))
    assert torch.equal(grey[0], torch.from_numpy(np.array(image.convert("L"))).mul(4 / 255).sub(2))


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("RGB", "webp")])
def test_modes(tmp_path, mode, suffix):
    path = tmp_path / f"x.{suffix}"
    picture(path, mode=mode)
    assert images.load_image(path, spec(3)).shape == (3, 32, 32)
    assert images.load_image(path, spec(1)).shape == (1, 32, 32)


def test_transparent_pixels_are_black(tmp_path):
    pixels = np.full((32, 32, 4), 200, np.uint8)
    pixels[:16, :, 3] = 0
    pixels[16:, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    out = images.read_pixels(tmp_path / "x.png", 3, (32, 32))
    assert (out[:, :16] == 0).all() and (out[:, 16:] == 200).all()
    palette = Image.fromarray(pixels[:, :, 0]).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert (images.read_pixels(tmp_path / "p.png", 1, (32, 32)) == 0).all()


def test_sixteen_bits_keep_their_upper_half(tmp_path):
    pixels = rng.integers(0, 65536, (32, 32), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(images.read_pixels(tmp_path / "x.png", 1, (32, 32))[0], pixels >> 8)


def test_exif_orientation(tmp_path):
    image = picture(tmp_path / "x.png", (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    upright = images.fit(image.transpose(Image.Transpose.ROTATE_270), (32, 32))
    assert np.array_equal(images.read_pixels(tmp_path / "turned.png", 3, (32, 32)).transpose(1, 2, 0), np.asarray(upright))


def test_a_set_of_grey_images_has_one_channel(tmp_path):
    for name in "ab":
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", mode="L")
    data = cct.data.load("folder", tmp_path)
    assert data.channels == 1 == len(data.mean) and data.train.images.shape[1] == 1
    picture(tmp_path / "a/colour.png")
    assert cct.data.load("folder", tmp_path).channels == 3


@pytest.mark.parametrize(
    ("sizes", "side"),
    [([(28, 28)], 32), ([(8, 8)], 32), ([(64, 70)], 64), ([(500, 375)] * 3, 224), ([(96, 96), (640, 480)], 96)],
)
def test_usual_size(sizes, side):
    assert folder.usual_size(sizes) == (side, side)


def test_unreadable_images_are_all_named(tree):
    truncated, text = tree / "train/cat/3.png", tree / "val/dog/1.JPG"
    truncated.write_bytes(truncated.read_bytes()[:-60])
    text.write_text("<html>not found</html>")
    (tree / "train/dog/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"of 26 images cannot be read; replace or remove them:") as error:
        cct.data.load("folder", tree)
    assert "val/dog/1.JPG: cannot identify" in str(error.value) and "train/dog/0.png" in str(error.value)
    text.unlink()
    (tree / "train/dog/0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 24 images cannot be read.*\n.*train/cat/3.png: "):
        cct.data.load("folder", tree)
    report = cct.data.check(tree)
    assert len(report.problems) == 1 and str(truncated) in report.problems[0] and not report.ok


def test_a_long_list_of_unreadable_images_is_cut(tree):
    for i in range(25):
        (tree / "train/cat" / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"25 of 51 images cannot be read") as error:
        cct.data.load("folder", tree)
    assert str(error.value).count("\n") == 21 and str(error.value).endswith("and 5 more")


def test_load_image_names_the_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x\.png: cannot be read as an image"):
        images.load_image(tmp_path / "x.png", spec())
    with pytest.raises(DataError, match=r"y\.png: there is no such file"):
        images.load_image(tmp_path / "y.png", spec())
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match=r"f\.tiff: .*32-bit float"):
        images.load_image(tmp_path / "f.tiff", spec())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; expected one of nearest, .*bicubic"),
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"pad": 16}, "nothing would be left"),
        ({"channels": 4, "mean": (0.5,) * 4, "std": (0.5,) * 4}, "the model wants 4"),
        ({"mean": (0.5,)}, "mean has 1 values; expected 3"),
    ],
)
def test_bad_preprocessing(tmp_path, change, message):
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match=message):
        images.load_image(tmp_path / "x.png", spec(**change))


def test_preprocessing_without_a_mean(tmp_path):
    with pytest.raises(DataError, match="preprocessing lacks 'mean'; it has size"):
        images.load_image(tmp_path / "x.png", {"size": [32, 32]})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "found 0 folder of a class; expected at least two"),
        (["x.png"], "found 0 folder of a class"),
        (["a/x.png"], r"found 1 folder of a class \(a\)"),
        (["a/x.png", "b/notes.txt"], r"/b: holds no image"),
        (["train/a/x.png", "train/b/x.png", "test/c/x.png"], r"test/c: this class is not in train/"),
        (["train/a/x.png", "train/b/x.png", "test/a/x.txt"], r"/test: holds no image"),
    ],
)
def test_layouts_that_are_refused(tmp_path, files, message):
    for file in files:
        if file.endswith(".png"):
            picture(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).write_text("")
    with pytest.raises(DataError, match=message):
        cct.data.load("folder", tmp_path)
    report = cct.data.check(tmp_path)
    assert not report.ok and str(tmp_path) in report.problems[0]


def test_classes_of_one_image_leave_none_to_test_on(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / name / "x.png")
    with pytest.raises(DataError, match="no class has two images, so there is none to test on; add images, or a folder test/"):
        cct.data.load("folder", tmp_path)
    for name in ("train/a", "train/b", "test/a"):
        picture(tmp_path / "whole" / name / "x.png")
    with pytest.raises(DataError, match=r"val_split is 0\.5, but no class has two training images to hold one out"):
        cct.data.load("folder", tmp_path / "whole", val_split=0.5)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        cct.data.load("folder", tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        cct.data.load("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="data_dir is missing"):
        cct.data.load("folder")


def test_too_large_for_memory(tmp_path, monkeypatch):
    for name in "ab":
        picture(tmp_path / name / "x.png")
        picture(tmp_path / name / "y.png")
    monkeypatch.setattr(pictures.os, "sysconf", lambda key: 1000)
    with pytest.raises(DataError, match=r"4 images of 4096 x 4096 need 0\.2 GiB, .*choose a smaller img_size, or stream"):
        cct.data.load("folder", tmp_path, img_size=4096, stream=False)
    assert isinstance(cct.data.load("folder", tmp_path, img_size=4096).train, streamed.StreamedSplit)


def test_report_of_a_folder(tree):
    picture(tree / "train/dog/large.png", (300, 200), mode="L")
    (tree / "train/dog/notes.txt").write_text("")
    (tree / "train/.hidden").mkdir()
    report = cct.data.check(tree)
    assert report.ok and report.classes == ["cat", "dog"] and report.counts == {"train": [10, 11], "val": [3, 3]}
    assert report.facts["sizes"] == "40 to 300 wide, 30 to 200 high; 26 of 27 are 40 x 30"
    assert report.facts["modes"] == "RGB 26, L 1" and report.facts["ignored"].startswith("1 files")
    text = str(report)
    for part in ("train in train/, val in val/", "dog", "2 classes", "no problem found"):
        assert part in text
    assert str(cct.data.check("folder", tree)) == text


def test_report_shortens_long_lists():
    many = [f"c{i}" for i in range(1000)]
    report = cct.data.Report("x", {}, many, {"train": [3] * 1000}, [f"problem {i} [red]" for i in range(50)])
    text = str(report)
    assert "and 880 more" in text and "3 to 3 each" in text and "and 30 more problems" in text and "problem 0 [red]" in text
    assert "50 problem(s)" in text and "1000 classes" in text and "3000" in text


def test_report_of_the_digits_and_of_an_unknown_name(tmp_path):
    assert sum(cct.data.check("digits").counts["train"]) == 1438
    assert "no such folder" in cct.data.check(str(tmp_path / "digit")).problems[0]
