"""Images: digits with changed strokes, folders, and CelebA."""

import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trvae.datasets import celeba, image_folder, stroke_digits
from trvae.datasets._strokes import thicker, thinner
from trvae.metrics import stroke_thickness

IMAGES, DIGITS = np.zeros((15, 28, 28), np.uint8), np.arange(15, dtype=np.uint8) % 10
for i, image in enumerate(IMAGES):
    image[3:-3, i : i + 4] = 255
CHANGES = {"normal": np.copy, "thin": thinner, "thick": thicker}
FACES = pd.DataFrame(
    np.where(np.random.default_rng(0).random((6, 3)) < 0.5, 1, -1),
    index=[f"{i:06d}.jpg" for i in range(6)],
    columns=["Smiling", "Male", "Young"],
)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.mark.parametrize(("change", "ratio"), [(thinner, 0.3), (thicker, 2.0)])
def test_strokes_change_as_stated(change, ratio):
    image = np.zeros((60, 60), np.uint8)
    assert (change(image) == 0).all()
    image[3:-3, 28:32] = 255
    before, after = stroke_thickness(np.stack([image, change(image)]))
    assert after / before == pytest.approx(ratio, abs=0.15)


def test_embedded_digits():
    adata = stroke_digits()
    assert adata.shape == (12_000, 28 * 28)
    assert adata.X.dtype == np.uint8
    assert dict(adata.obs["condition"].value_counts()) == dict.fromkeys(CHANGES, 4_000)
    assert sorted(adata.obs["digit"].unique()) == list("0123456789")
    assert tuple(adata.uns["image_shape"]) == (28, 28, 1)
    # No digit is there twice.
    assert adata.obs_names.is_unique
    thickness = stroke_thickness(np.asarray(adata.X[:300]).reshape(-1, 28, 28))
    mean = {c: np.nanmean(thickness[adata.obs["condition"][:300] == c]) for c in CHANGES}
    assert mean["thin"] < 0.7 * mean["normal"] < 1.6 * mean["normal"] < mean["thick"]


def write_npz(root):
    values = {"x_train": IMAGES[:12], "x_test": IMAGES[12:]}
    np.savez(root / "mnist.npz", y_train=DIGITS[:12], y_test=DIGITS[12:], **values)


def write_idx(root, suffix="", compress=bytes):
    for part, rows in {"train": slice(12), "t10k": slice(12, 15)}.items():
        for kind, values in {"images": IMAGES[rows], "labels": DIGITS[rows]}.items():
            header = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
            path = root / f"{part}-{kind}-idx{values.ndim}-ubyte{suffix}"
            path.write_bytes(compress(header + values.tobytes()))


@pytest.mark.parametrize(
    "write", [write_npz, write_idx, lambda root: write_idx(root, ".gz", gzip.compress)]
)
def test_digits_from_a_copy_of_mnist(write, tmp_path):
    write(tmp_path)
    adata = stroke_digits(root=tmp_path, progress_bar=False)
    np.testing.assert_array_equal(adata.obs["digit"].astype(int), DIGITS)
    assert adata.obs["condition"].value_counts().tolist() == [5, 5, 5]
    expected = [CHANGES[c](x) for c, x in zip(adata.obs["condition"], IMAGES, strict=True)]
    np.testing.assert_array_equal(adata.X.reshape(IMAGES.shape), expected)
    one, again, other = (stroke_digits(root=tmp_path, n=6, seed=seed).obs for seed in (1, 1, 2))
    assert len(one) == 6
    assert one.equals(again)
    assert not one.equals(other)


def test_folders_name_conditions_and_labels(tmp_path):
    for condition in ("thin", "thick"):
        for label in (1, 7):
            save(tmp_path / condition / f"{label}" / "0.png", np.full((4, 6), label))
    adata = image_folder(tmp_path, label=1, progress_bar=False)
    names = ["thick/1/0.png", "thick/7/0.png", "thin/1/0.png", "thin/7/0.png"]
    assert adata.obs_names.tolist() == names
    assert adata.var_names[[0, 1, -1]].tolist() == ["0_0", "0_1", "3_5"]
    assert tuple(adata.uns["image_shape"]) == (4, 6, 1)
    assert adata.obs.loc["thin/7/0.png"].to_dict() == {"condition": "thin", "label": "7"}
    np.testing.assert_array_equal(adata.X, np.array([[1], [7], [1], [7]]).repeat(24, axis=1))
    assert list(image_folder(tmp_path).obs) == ["condition"]


def test_a_size_cuts_the_middle_square(tmp_path):
    image = np.zeros((4, 8))
    image[:, 2:6] = 200
    save(tmp_path / "a" / "wide.png", image)
    # What lies outside is blurred in by as much as scaling reaches.
    assert (image_folder(tmp_path, size=2).X > 180).all()


def test_grey_images_among_coloured_ones_have_three_channels(tmp_path):
    colour = np.arange(12).reshape(2, 2, 3)
    save(tmp_path / "a" / "colour.png", colour)
    save(tmp_path / "a" / "grey.png", np.full((2, 2), 5))
    adata = image_folder(tmp_path)
    images = adata.X.reshape(2, *adata.uns["image_shape"])
    np.testing.assert_array_equal(images, [colour, np.full((2, 2, 3), 5)])
    assert adata.var_names[:4].tolist() == ["0_0_0", "0_0_1", "0_0_2", "0_1_0"]


def write_attributes(root, faces, suffix="txt"):
    path = root / f"list_attr_celeba.{suffix}"
    if suffix == "csv":
        faces.to_csv(path, index_label="image_id")
    else:
        path.write_text(f"{len(faces)}\n{faces.to_csv(sep=' ', index_label=False)}")


@pytest.fixture
def faces(tmp_path):
    """Folder with five images as CelebA has them."""
    for i, name in enumerate(FACES.index[:5]):
        save(tmp_path / "img_align_celeba" / name, np.full((218, 178, 3), 20 * i))
    return tmp_path


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_celeba(suffix, faces):
    write_attributes(faces, FACES, suffix)
    adata = celeba(faces, size=16, progress_bar=False)
    assert tuple(adata.uns["image_shape"]) == (16, 16, 3)
    assert adata.obs_names.tolist() == FACES.index[:5].tolist()
    smiling, male, young = FACES.to_numpy()[:5].T == 1
    np.testing.assert_array_equal(adata.obs["condition"] == "Smiling", smiling)
    np.testing.assert_array_equal(adata.obs["label"] == "not Male", ~male)
    np.testing.assert_array_equal(adata.obs["Young"], young)
    np.testing.assert_allclose(adata.X, 20 * np.arange(5)[:, None].repeat(768, 1), atol=2)
    one, again, other = (celeba(faces, n=3, seed=seed).obs_names.tolist() for seed in (0, 0, 1))
    assert len(one) == 3
    assert one == again != other


@pytest.fixture
def somewhere(faces, monkeypatch):
    """Working directory with folders of every kind, to be named by relative paths."""
    monkeypatch.chdir(faces)
    for name in ("mnist", "damaged", "empty", "other", "broken/a"):
        (faces / name).mkdir(parents=True)
    write_npz(faces / "mnist")
    for name in ("damaged/mnist.npz", "broken/a/0.png"):
        (faces / name).write_bytes(b"none")
    for width in (2, 3):
        save(faces / "images" / "a" / f"{width}.png", np.zeros((2, width)))
    write_attributes(faces, FACES)
    write_attributes(faces / "empty", FACES)
    write_attributes(faces / "damaged", FACES + 1)


@pytest.mark.parametrize(
    ("read", "settings", "error", "message"),
    [
        (stroke_digits, {"n": 10}, ValueError, "n=10 needs a copy of MNIST"),
        (stroke_digits, {"n": 0, "root": "mnist"}, ValueError, "n must be a positive integer"),
        (stroke_digits, {"n": 16, "root": "mnist"}, ValueError, "n=16, but there are 15 images"),
        (stroke_digits, {"root": "damaged"}, ValueError, "lacks MNIST's arrays"),
        (stroke_digits, {"root": "other"}, FileNotFoundError, "neither mnist.npz nor train-im"),
        (image_folder, {"root": "none"}, FileNotFoundError, "no folder"),
        (image_folder, {"root": "other"}, FileNotFoundError, "no images"),
        (image_folder, {"root": "images", "label": 1}, ValueError, "2.png has no folder at that"),
        (image_folder, {"root": "images", "condition": -1}, ValueError, "a non-negative integer"),
        (image_folder, {"root": "images", "size": 0}, ValueError, "size must be a positive int"),
        (image_folder, {"root": "images"}, ValueError, "3.png has 2 x 3 pix.*2.png has 2 x 2"),
        (image_folder, {"root": "broken"}, ValueError, "0.png can't be read as an image"),
        (celeba, {"root": ".", "attribute": "Hair"}, ValueError, "'Hair' is not one of CelebA's"),
        (celeba, {"root": ".", "size": 0}, ValueError, "size must be a positive integer"),
        (celeba, {"root": ".", "n": 0}, ValueError, "n must be a positive integer"),
        (celeba, {"root": "damaged"}, ValueError, "values other than 1 and -1"),
        (celeba, {"root": "empty"}, FileNotFoundError, "no images with attributes"),
        (celeba, {"root": "other"}, FileNotFoundError, "neither list_attr_celeba.txt"),
    ],
)
def test_refuses(read, settings, error, message, somewhere):
    with pytest.raises(error, match=message):
        read(**settings)
