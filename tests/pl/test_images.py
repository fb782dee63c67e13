"""Rows of images."""

import numpy as np
import pytest
from anndata import AnnData

import trvae


def test_loss_is_per_image(image_model):
    ax = trvae.pl.history(image_model, terms="kl_local", show=False)
    assert ax.get_ylabel() == "KL divergence [nats per image]"


def image_at(ax, row, column):
    """Grey values of one of the images of 28 x 28 pixels, which are 2 apart."""
    sheet = ax.get_images()[0].get_array()
    place = sheet[row * 30 : row * 30 + 28, column * 30 : column * 30 + 28]
    assert (place[..., 3] == 1).all()
    return place[..., 0]


def test_images_are_where_they_belong(image_model):
    adata = image_model.adata
    ax = trvae.pl.transferred_images(
        image_model, source_condition="normal", observed=adata, n_images=3, show=False
    )
    names = [label.get_text() for label in ax.get_yticklabels()]
    others = [one for one in image_model.conditions if one != "normal"]
    kinds = [f"{one}, {kind}" for one in others for kind in ("predicted", "observed")]
    assert names == ["normal", *kinds]
    normal = np.flatnonzero(adata.obs["condition"] == "normal")
    shown = normal[[0, (len(normal) - 1) // 2, -1]]
    predicted = image_model.get_transferred_images(target_condition=others, indices=shown)
    for column in (0, 2):  # the position of the middle one is rounded
        given = adata.X[shown[column]].reshape(28, 28) / 255
        np.testing.assert_allclose(image_at(ax, 0, column), given, atol=1e-6)
        for row in (1, 3):
            expected = predicted[row // 2, column, ..., 0] / 255
            np.testing.assert_allclose(image_at(ax, row, column), expected, atol=1 / 255)
    of_target = adata[adata.obs["condition"] == others[0]]
    first = of_target.X[0].reshape(28, 28) / 255
    np.testing.assert_allclose(image_at(ax, 2, 0), first, atol=1e-6)


def test_steps_are_side_by_side(image_model):
    ax = trvae.pl.interpolated_images(
        image_model,
        target_condition="thick",
        source_condition="normal",
        n_images=2,
        n_steps=4,
        show=False,
    )
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == ["given", "normal", "", "", "thick"]
    normal = np.flatnonzero(image_model.adata.obs["condition"] == "normal")
    thick = image_model.get_transferred_images(
        target_condition="thick", indices=normal[[0, -1]], estimate="decoded"
    )
    for row, image in enumerate(thick):
        np.testing.assert_allclose(image_at(ax, row, 4), image[..., 0] / 255, atol=1 / 255)


def test_wrong_arguments(image_model, model):
    with pytest.raises(ValueError, match="n_images must be a positive integer"):
        trvae.pl.transferred_images(image_model, n_images=0)
    with pytest.raises(ValueError, match="the images are of all conditions"):
        trvae.pl.transferred_images(image_model, n_images=100)
    unnamed = AnnData(image_model.adata.X)
    with pytest.raises(ValueError, match="observed: condition_key 'condition' is not in"):
        trvae.pl.transferred_images(image_model, target_condition="thick", observed=unnamed)
    with pytest.raises(ValueError, match="bold"):
        trvae.pl.transferred_images(image_model, target_condition="bold")
    with pytest.raises(ValueError, match="got TRVAE"):
        trvae.pl.interpolated_images(model, target_condition="treated")
