"""ImageTRVAE: its network and likelihood, and bars that are transferred between brightnesses."""

import anndata
import numpy as np
import pytest
import torch
from helpers import QUIET, bars, dense
from PIL import Image
from torch.nn.functional import one_hot

import trvae
from trvae.module._covariates import Covariates, CovariateSizes
from trvae.module._image_layers import ImageDecoder, ImageEncoder
from trvae.module._images import GreyBernoulli

LONG = {"max_epochs": 30, "batch_size": 32, "plan_kwargs": {"lr": 1e-2}}
SETUP = {"condition_key": "condition", "labels_key": "shape"}


def untrained(adata, *, setup=None, **kwargs):
    setup = SETUP | {"image_shape": adata.uns["image_shape"]} | (setup or {})
    trvae.ImageTRVAE.setup_anndata(adata, **setup)
    small = {"channels": (8, 8), "n_latent": 2, "mmd_weight": 10.0, "seed": 0}
    return trvae.ImageTRVAE(adata, **(small | kwargs))


def fit(adata, *, train=None, **kwargs):
    model = untrained(adata.copy(), **kwargs)
    model.train(**({"max_epochs": 2} | QUIET | (train or {})))
    return model


@pytest.fixture(scope="module")
def trained():
    """Trained long enough to draw bars. Not to be changed."""
    return fit(bars(60), train=LONG)


@pytest.fixture
def source():
    """Dark upright bars."""
    adata = bars(60)
    return adata[(adata.obs["condition"] == "dark") & (adata.obs["shape"] == "upright")].copy()


# ------------------------------------------------------------- network and likelihood


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (7, 5, 3), (9, 16, 2)])
@pytest.mark.usefixtures("tensors_on_device")
def test_images_of_any_size_come_back_in_it(image_shape):
    sizes = CovariateSizes(3, (2,), 1)
    height, width, n_channels = image_shape
    encoder = ImageEncoder(image_shape, 2, (4, 6), sizes)
    decoder = ImageDecoder(image_shape, 2, (4, 6), sizes)
    covariates = Covariates(
        torch.arange(5) % 3, torch.arange(5)[:, None] % 2, torch.linspace(-1, 1, 5)[:, None]
    )
    mean, scale = encoder(torch.rand(5, n_channels, height, width), covariates)
    n_latent = 2 * -(-height // 4) * -(-width // 4)
    assert mean.shape == scale.shape == (5, n_latent)
    assert (scale > 0).all()
    one = decoder(mean, covariates)
    assert one.logits.shape == (5, height * width * n_channels)
    # Several draws are decoded as each by itself.
    both = decoder(torch.stack([mean, mean + 1]), covariates)
    torch.testing.assert_close(both.logits[0], one.logits)
    torch.testing.assert_close(both.first_layer[1], decoder(mean + 1, covariates).first_layer)


@pytest.mark.usefixtures("tensors_on_device")
def test_pixels_keep_their_places():
    # Of the decoder's last layer, the bias differs between the channels.
    decoder = ImageDecoder((3, 4, 2), 1, (2,), CovariateSizes(1))
    with torch.no_grad():
        decoder.logits.weight.zero_()
        decoder.logits.bias.copy_(torch.tensor([1.0, 2.0]))
    logits = decoder(torch.zeros(1, 1 * 2 * 2), Covariates(torch.zeros(1, dtype=int))).logits
    assert logits.tolist() == [[1.0, 2.0] * 12]


@pytest.mark.usefixtures("tensors_on_device")
def test_the_condition_enters_the_first_layer_of_the_decoder():
    decoder = ImageDecoder((8, 8, 1), 2, (4, 4), CovariateSizes(2))
    z = torch.randn(3, 2 * 2 * 2)
    first, other = (decoder(z, Covariates(torch.full((3,), code))).first_layer for code in (0, 1))
    difference = decoder.offset.condition.weight[1] - decoder.offset.condition.weight[0]
    on = (first > 0) & (other > 0)
    expected = difference[:, None].expand(4, 4).reshape(1, -1).expand(3, -1)
    torch.testing.assert_close((other - first)[on], expected[on])


@pytest.mark.usefixtures("tensors_on_device")
def test_black_and_white_pixels_have_bernoullis_probability():
    logits = torch.randn(4, 6)
    pixels = one_hot(torch.arange(4), 6)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(pixels.float())
    for white in (1.0, 255.0):
        px = GreyBernoulli(logits, torch.tensor(white))
        torch.testing.assert_close(px.log_prob(white * pixels), expected)
        torch.testing.assert_close(px.mean, white * torch.sigmoid(logits))
        assert set(px.sample().unique().tolist()) <= {0.0, white}


@pytest.mark.usefixtures("tensors_on_device")
def test_the_likeliest_mean_is_the_grey_value():
    grey = torch.tensor([[0.2, 0.5, 0.9]])
    logits = torch.logit(grey).requires_grad_()
    (-GreyBernoulli(logits, torch.tensor(1.0)).log_prob(grey).sum()).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)
    other = GreyBernoulli(logits.detach() + 0.1, torch.tensor(1.0)).log_prob(grey)
    assert (other < GreyBernoulli(logits.detach(), torch.tensor(1.0)).log_prob(grey)).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_the_scale_of_the_pixels_does_not_matter(likelihood):
    integers = bars(10)
    floats = integers.copy()
    floats.X = integers.X.astype(np.float32) / 255
    as_integers, as_floats = (
        fit(adata, pixel_likelihood=likelihood).get_transferred_images(adata, "bright")
        for adata in (integers, floats)
    )
    assert (as_integers.dtype, as_floats.dtype) == (np.uint8, np.float32)
    np.testing.assert_allclose(as_integers / 255.0, as_floats, atol=0.6 / 255)


@pytest.mark.parametrize("kind", ["integers", "floats", "sparse"])
def test_training_of_colours_starts_at_their_mean(kind):
    adata = bars(5, n_channels=3, kind=kind)
    model = untrained(adata, pixel_likelihood="normal")
    mean = dense(adata.X).reshape(-1, 3).mean(0) / (255.0 if kind == "integers" else 1.0)
    np.testing.assert_allclose(model.module.decoder.logits.bias.detach(), mean, rtol=1e-5)


def test_decoded_colours_are_pixels():
    adata = bars(5, n_channels=3)
    model = fit(adata, pixel_likelihood="normal")
    for beyond, end in ((-3.0, 0), (3.0, 255)):
        with torch.no_grad():
            model.module.decoder.logits.bias.fill_(beyond)
        assert (model.get_interpolated_images(adata[:3], "bright") == end).all()
        assert (model.get_transferred_images(adata[:3], "bright", estimate="decoded") == end).all()


# -------------------------------------------------------------------------- transfer


def test_transfers_what_was_there(trained, source):
    images = trained.get_transferred_images(source, "bright")
    assert images.shape == (60, 10, 10, 1)
    drawn = source.X.reshape(images.shape) > 40
    # Dark bars have 77, bright ones 204.
    assert 150 < images[drawn].mean() < 230
    assert images[~drawn].mean() < 30
    # Noise of the image is kept.
    decoded = trained.get_transferred_images(source, "bright", estimate="decoded")
    assert (images != decoded).any()
    same = trained.get_transferred_images(source, "dark")
    np.testing.assert_array_equal(same, source.X.reshape(same.shape))
    table = trained.assess_transfer(source, "bright")
    assert table.loc["upright", "n_cells"] == 60
    assert table.loc["upright", "change"] > 0


def test_what_does_not_matter(trained, source):
    expected = trained.get_transferred_images(source, "bright")
    turned = source[:, ::-1].copy()
    np.testing.assert_array_equal(trained.get_transferred_images(turned, "bright"), expected)
    pixels = trained.transfer(turned, "bright").X[:, ::-1]
    np.testing.assert_array_equal(pixels.reshape(expected.shape), expected)
    both = trained.get_transferred_images(source, ["dark", "bright"])
    np.testing.assert_array_equal(both[1], expected)
    assert both.shape == (2, *expected.shape)
    # Sums of convolutions are rounded otherwise in other minibatches.
    small = trained.get_transferred_images(source, "bright", batch_size=7)
    assert np.abs(small.astype(int) - expected).max() <= 1


def test_interpolation_goes_from_one_condition_to_the_other(trained, source):
    steps = trained.get_interpolated_images(source, "bright", n_steps=5, batch_size=17)
    assert steps.shape == (5, 60, 10, 10, 1)
    assert steps.dtype == np.uint8
    for images, condition in ((steps[0], "dark"), (steps[-1], "bright")):
        decoded = trained.get_transferred_images(source, condition, estimate="decoded")
        assert np.abs(images.astype(int) - decoded).max() <= 1
    drawn = source.X.reshape(steps.shape[1:]) > 40
    assert (np.diff([images[drawn].mean() for images in steps]) > 5).all()
    turned = trained.get_interpolated_images(source[:, ::-1].copy(), "bright", n_steps=5)
    assert np.abs(turned.astype(int) - steps).max() <= 1
    with pytest.raises(ValueError, match="n_steps must be"):
        trained.get_interpolated_images(source, "bright", n_steps=1)


@pytest.mark.parametrize("kind", ["integers", "floats", "sparse"])
def test_in_memory_and_on_disk_alike(tmp_path, kind):
    adata = bars(10, kind=kind)
    model = fit(adata, train={"max_epochs": 1})
    images = model.get_transferred_images(adata, "bright")
    predicted = model.transfer(adata, "bright")
    assert type(predicted.X) is type(adata.X)
    assert predicted.X.dtype == adata.X.dtype
    assert predicted.uns["trvae"]["pixel_likelihood"] == "bernoulli"
    out = tmp_path / "out.h5ad"
    model.transfer(adata, "bright", out=out, chunk_size=7, progress_bar=False)
    atol = 0 if kind == "integers" else 1e-6
    for matrix in (predicted.X, anndata.read_h5ad(out).X):
        pixels = dense(matrix).reshape(images.shape)
        np.testing.assert_allclose(pixels, images, rtol=0, atol=atol)


def test_minified_images_are_no_images():
    model = fit(bars(10), train={"max_epochs": 1})
    latent = dict(
        zip(("qzm", "qzv"), model.get_latent_representation(return_dist=True), strict=True)
    )
    for name, values in latent.items():
        model.adata.obsm[f"X_latent_{name}"] = values
    model.minify_adata()
    with pytest.raises(ValueError, match="minified AnnData has no images"):
        model.get_images()
    assert model.get_images(bars(10)).max() > 0


def test_faces_of_celeba_are_transferred(tmp_path):
    # Smiles are red and faces of one sex are blue, on 16 photographs as CelebA has them.
    rng = np.random.default_rng(0)
    (tmp_path / "img_align_celeba").mkdir()
    lines = ["16", "Smiling Male"]
    for i in range(16):
        smiling, male = i % 2, i // 2 % 2
        face = rng.integers(0, 30, (218, 178, 3), dtype=np.uint8)
        face[80:180, 40:140, 2] += 150 * np.uint8(male)
        face[140:170, 50:130, 0] += 200 * np.uint8(smiling)
        Image.fromarray(face).save(tmp_path / "img_align_celeba" / f"{i:06d}.jpg")
        lines.append(f"{i:06d}.jpg {2 * smiling - 1} {2 * male - 1}")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    adata = trvae.datasets.celeba(
        tmp_path, attribute="Smiling", group="Male", size=32, progress_bar=False
    )
    model = fit(
        adata,
        setup={"labels_key": "label"},
        channels=(8, 16),
        pixel_likelihood="normal",
        train={"max_epochs": 60, "batch_size": 8, "plan_kwargs": {"lr": 2e-3}},
    )
    sober = adata[adata.obs["condition"] == "not Smiling"].copy()
    images = model.get_images(sober).astype(float)
    smiling = model.get_images(adata[adata.obs["condition"] == "Smiling"])
    mouth = (smiling.mean(0) - images.mean(0)).max(-1) > 100
    smiles = model.get_transferred_images(sober, "Smiling")
    assert smiles.shape == images.shape == (8, 32, 32, 3)
    change = (smiles - images).mean(0)
    red, green, _ = change[mouth].mean(0)
    assert red > 10
    assert abs(green) < red / 3
    assert abs(change[~mouth]).mean() < red / 3


# ----------------------------------------------------------------------- saved, mapped


def test_saved_and_loaded(tmp_path, trained, source):
    expected = trained.get_transferred_images(source, "bright")
    trained.save(tmp_path / "model", save_anndata=True)
    for adata in (None, False, trained.adata):
        loaded = trvae.ImageTRVAE.load(tmp_path / "model", adata)
        assert loaded.image_shape == (10, 10, 1)
        np.testing.assert_array_equal(loaded.get_transferred_images(source, "bright"), expected)


@pytest.mark.parametrize("with_covariate", [False, True])
def test_a_query_leaves_the_reference_as_it_is(with_covariate):
    adata, setup = bars(15), {}
    query = bars(8, seed=1)[16:].copy()
    query.obs["condition"] = "glaring"
    if with_covariate:
        adata.obs["writer"] = np.resize(["a", "b"], adata.n_obs)
        query.obs["writer"] = "c"
        setup = {"categorical_covariate_keys": ["writer"]}
    model = fit(adata, setup=setup)
    mapped = trvae.ImageTRVAE.load_query_data(query, model)
    mapped.train(max_epochs=20, plan_kwargs={"lr": 1e-2}, **QUIET)
    for method, *arguments in (
        ["get_latent_representation"],
        ["get_mmd_representation"],
        ["get_transferred_images", "dark"],
    ):
        ours, theirs = (getattr(one, method)(adata, *arguments) for one in (mapped, model))
        np.testing.assert_array_equal(ours, theirs)
    # The new condition's weights learn.
    loss = mapped.history["reconstruction_loss_train"].to_numpy(dtype=float)
    assert loss[-5:].mean() < loss[:5].mean()
