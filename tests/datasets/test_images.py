import gzip

import numpy as np
import pytest
from PIL import Image

import trvae
from trvae.datasets._strokes import thicker, thinner


def bar(width, size=28):
    """A vertical bar that is ``width`` pixels wide."""
    image = np.zeros((size, size), np.uint8)
    start = (size - width) // 2
    image[3:-3, start : start + width] = 255
    return image


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# ---------------------------------------------------------------------------- strokes


@pytest.mark.parametrize("width", [2, 4, 6])
def test_thickness_of_a_bar_is_its_width(width):
    (measured,) = trvae.metrics.stroke_thickness(bar(width)[None])
    assert measured == pytest.approx(width, abs=0.6)


def test_thickness_does_not_depend_on_position_type_or_channel():
    images = np.stack([bar(4), bar(4).T, np.roll(bar(4), 3, axis=1)])
    thickness = trvae.metrics.stroke_thickness(images)
    np.testing.assert_allclose(thickness, thickness[0], rtol=1e-6)
    np.testing.assert_allclose(trvae.metrics.stroke_thickness(images / 255.0), thickness)
    np.testing.assert_allclose(trvae.metrics.stroke_thickness(images[..., None]), thickness)


def test_nothing_drawn_has_no_thickness():
    assert np.isnan(trvae.metrics.stroke_thickness(np.zeros((1, 28, 28))))


def test_colour_images_have_no_strokes():
    with pytest.raises(ValueError, match=r"\(2, 28, 28, 3\)"):
        trvae.metrics.stroke_thickness(np.zeros((2, 28, 28, 3)))


def test_thinner_and_thicker_are_so_by_what_they_say():
    image = bar(4, size=60)
    before, thin, thick = trvae.metrics.stroke_thickness(
        np.stack([image, thinner(image), thicker(image)])
    )
    assert thin / before == pytest.approx(0.3, abs=0.1)
    assert thick / before == pytest.approx(2.0, abs=0.15)
    assert thinner(image).dtype == thicker(image).dtype == np.uint8


# ----------------------------------------------------------------------------- digits


def test_embedded_digits():
    adata = trvae.datasets.stroke_digits()
    assert adata.shape == (12_000, 28 * 28)
    assert adata.X.dtype == np.uint8
    assert adata.obs["condition"].value_counts().to_dict() == {
        "normal": 4_000, "thin": 4_000, "thick": 4_000,
    }  # fmt: skip
    assert sorted(adata.obs["digit"].unique()) == list("0123456789")
    assert tuple(adata.uns["image_shape"]) == (28, 28, 1)
    # No digit is there twice.
    assert adata.obs_names.is_unique
    some = adata[:600]
    thickness = trvae.metrics.stroke_thickness(np.asarray(some.X).reshape(-1, 28, 28))
    means = {c: np.nanmean(thickness[some.obs["condition"] == c]) for c in ("thin", "thick")}
    normal = np.nanmean(thickness[some.obs["condition"] == "normal"])
    assert means["thin"] < 0.7 * normal
    assert means["thick"] > 1.6 * normal


@pytest.fixture
def mnist(tmp_path):
    """Twelve drawings for training and three for tests, as MNIST's files have them."""
    rng = np.random.default_rng(0)
    images = np.stack([np.roll(bar(4), rng.integers(-5, 5), axis=1) for _ in range(15)])
    digits = np.arange(15, dtype=np.uint8) % 10
    np.savez(
        tmp_path / "mnist.npz",
        x_train=images[:12], y_train=digits[:12], x_test=images[12:], y_test=digits[12:],
    )  # fmt: skip
    return tmp_path, images, digits


def test_digits_from_a_copy_of_mnist(mnist):
    root, images, digits = mnist
    adata = trvae.datasets.stroke_digits(root=root, progress_bar=False)
    assert adata.n_obs == 15
    np.testing.assert_array_equal(adata.obs["digit"].astype(int), digits)
    assert adata.obs["condition"].value_counts().tolist() == [5, 5, 5]
    is_normal = (adata.obs["condition"] == "normal").to_numpy()
    np.testing.assert_array_equal(adata.X[is_normal], images[is_normal].reshape(5, -1))
    again = trvae.datasets.stroke_digits(root=root, progress_bar=False)
    np.testing.assert_array_equal(adata.X, again.X)
    other = trvae.datasets.stroke_digits(root=root, seed=1, progress_bar=False)
    assert (adata.obs["condition"] != other.obs["condition"]).any()
    assert trvae.datasets.stroke_digits(root=root, n=6, progress_bar=False).n_obs == 6


@pytest.mark.parametrize("zipped", [False, True])
def test_digits_from_the_original_files(mnist, tmp_path, zipped):
    root, images, digits = mnist
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, values in {
        "train-images-idx3-ubyte": images[:12],
        "train-labels-idx1-ubyte": digits[:12],
        "t10k-images-idx3-ubyte": images[12:],
        "t10k-labels-idx1-ubyte": digits[12:],
    }.items():
        header = np.array([0x0800 + values.ndim, *values.shape], ">i4").tobytes()
        content = header + values.tobytes()
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    adata = trvae.datasets.stroke_digits(root=folder, progress_bar=False)
    expected = trvae.datasets.stroke_digits(root=root, progress_bar=False)
    np.testing.assert_array_equal(adata.X, expected.X)
    pd_obs = adata.obs.astype(str)
    assert pd_obs.equals(expected.obs.astype(str))


def test_digits_refuse(mnist, tmp_path):
    root, *_ = mnist
    with pytest.raises(ValueError, match="n=10 needs a copy of MNIST"):
        trvae.datasets.stroke_digits(n=10)
    with pytest.raises(ValueError, match="n=16, but there are 15 images"):
        trvae.datasets.stroke_digits(n=16, root=root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither mnist.npz nor train-images-idx3-ubyte"):
        trvae.datasets.stroke_digits(root=tmp_path / "empty")
    (root / "mnist.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="does not have MNIST's arrays"):
        trvae.datasets.stroke_digits(root=root)


# ---------------------------------------------------------------------------- folders


def test_folders_name_conditions_and_labels(tmp_path):
    for condition in ("thin", "thick"):
        for digit in "17":
            for i in range(2):
                value = 10 * int(digit) + i
                save(tmp_path / condition / digit / f"{i}.png", np.full((4, 6), value, np.uint8))
    adata = trvae.datasets.image_folder(tmp_path, label=1, progress_bar=False)
    assert adata.shape == (8, 24)
    assert tuple(adata.uns["image_shape"]) == (4, 6, 1)
    assert adata.obs_names[0] == "thick/1/0.png"
    assert adata.obs.loc["thin/7/1.png"].tolist() == ["thin", "7"]
    np.testing.assert_array_equal(adata["thin/7/1.png"].X, np.full((1, 24), 71))
    assert list(trvae.datasets.image_folder(tmp_path, progress_bar=False).obs) == ["condition"]


def test_a_size_cuts_the_middle_square(tmp_path):
    image = np.zeros((4, 8), np.uint8)
    image[:, 2:6] = 200
    save(tmp_path / "a" / "wide.png", image)
    adata = trvae.datasets.image_folder(tmp_path, size=2, progress_bar=False)
    # What lies outside is blurred in by as much as scaling reaches.
    assert (adata.X > 180).all()


def test_grey_images_among_coloured_ones_have_three_channels(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 0] = 9
    save(tmp_path / "a" / "colour.png", colour)
    save(tmp_path / "a" / "grey.png", np.full((2, 2), 5, np.uint8))
    adata = trvae.datasets.image_folder(tmp_path, progress_bar=False)
    images = adata.X.reshape(2, *adata.uns["image_shape"])
    np.testing.assert_array_equal(images, [colour, np.full((2, 2, 3), 5)])
    assert adata.var_names[:4].tolist() == ["0_0_0", "0_0_1", "0_0_2", "0_1_0"]


def test_folders_refuse(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        trvae.datasets.image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no images"):
        trvae.datasets.image_folder(tmp_path)
    save(tmp_path / "a" / "one.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="label=1, but .*one.png lies in 1 folders"):
        trvae.datasets.image_folder(tmp_path, label=1)
    with pytest.raises(ValueError, match="size=0"):
        trvae.datasets.image_folder(tmp_path, size=0)
    save(tmp_path / "a" / "two.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"two.png has 2 x 3 pixels, .*one.png has 2 x 2"):
        trvae.datasets.image_folder(tmp_path, progress_bar=False)
    (tmp_path / "a" / "broken.png").write_bytes(b"none")
    with pytest.raises(ValueError, match="broken.png can't be read as an image"):
        trvae.datasets.image_folder(tmp_path, progress_bar=False)


# ----------------------------------------------------------------------------- CelebA


@pytest.fixture(params=["txt", "csv"])
def faces(request, tmp_path):
    """Five images with three attributes, as CelebA has them; the attributes of a sixth."""
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    attributes = np.where(np.random.default_rng(0).random((6, 3)) < 0.5, 1, -1)
    attributes[0] = [1, -1, 1]
    columns = ["Smiling", "Male", "Young"]
    for i, name in enumerate(names[:5]):
        save(tmp_path / "img_align_celeba" / name, np.full((218, 178, 3), 20 * i, np.uint8))
    if request.param == "txt":
        lines = ["6", " ".join(columns)]
        lines += [
            f"{n}  {' '.join(f'{v:2d}' for v in row)}"
            for n, row in zip(names, attributes, strict=True)
        ]
        (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    else:
        lines = [",".join(["image_id", *columns])]
        lines += [",".join([n, *map(str, row)]) for n, row in zip(names, attributes, strict=True)]
        (tmp_path / "list_attr_celeba.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, attributes[:5]


def test_celeba(faces):
    root, attributes = faces
    adata = trvae.datasets.celeba(root, size=16, progress_bar=False)
    assert adata.shape == (5, 16 * 16 * 3)
    assert tuple(adata.uns["image_shape"]) == (16, 16, 3)
    np.testing.assert_array_equal(adata.obs["condition"] == "Smiling", attributes[:, 0] == 1)
    np.testing.assert_array_equal(adata.obs["label"] == "not Male", attributes[:, 1] == -1)
    np.testing.assert_array_equal(adata.obs["Young"], attributes[:, 2] == 1)
    np.testing.assert_allclose(adata.X.mean(1), 20 * np.arange(5), atol=2)


def test_celeba_draws_from_a_seed(faces):
    root, _ = faces
    names = [
        trvae.datasets.celeba(root, size=8, n=3, seed=seed, progress_bar=False).obs_names.tolist()
        for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 3


def test_celeba_refuses(faces, tmp_path):
    root, _ = faces
    with pytest.raises(ValueError, match="attribute 'Hair' is not one of CelebA's: 'Smiling'"):
        trvae.datasets.celeba(root, attribute="Hair")
    with pytest.raises(ValueError, match="size=0"):
        trvae.datasets.celeba(root, size=0)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="neither 'list_attr_celeba.txt'"):
        trvae.datasets.celeba(tmp_path / "other")
    for path in (root / "img_align_celeba").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no images with attributes"):
        trvae.datasets.celeba(root)
    file = next(root.glob("list_attr_celeba.*"))
    file.write_text(file.read_text().replace("-1", "2"))
    with pytest.raises(ValueError, match="values other than 1 and -1"):
        trvae.datasets.celeba(root)
