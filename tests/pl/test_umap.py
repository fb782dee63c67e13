"""UMAP: coordinates, colours and what can't be drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib.colors import to_hex

import trvae
from trvae._scvi import LATENT_POSTERIOR, MINIFY_TYPE_KEY


@pytest.fixture
def known_coordinates(monkeypatch):
    """The first two features in place of a UMAP."""
    monkeypatch.setattr("trvae.pl._umap._coordinates", lambda values, *_: values[:, :2])


@pytest.mark.usefixtures("known_coordinates")
def test_cells_have_the_colour_of_their_group(given_model):
    model = given_model()
    axes = trvae.pl.umap(model, show=False)
    assert [ax.get_title() for ax in axes] == [
        f"{name}: {key}"
        for name in ("latent representation", "first decoder layer")
        for key in ("condition", "cell_type")
    ]
    order = np.random.default_rng(0).permutation(60)
    for ax, key, sign in zip(axes, ["condition", "cell_type"] * 2, (1, 1, -1, -1), strict=True):
        legend = ax.get_legend()
        color = {
            text.get_text(): to_hex(handle.get_facecolor()[0])
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
        }
        groups = model.adata.obs[key]
        assert list(color) == list(groups.cat.categories)
        drawn = ax.collections[0]
        assert [to_hex(c) for c in drawn.get_facecolor()] == [color[g] for g in groups.iloc[order]]
        np.testing.assert_allclose(drawn.get_offsets(), sign * model.adata.X[order, :2])


@pytest.mark.usefixtures("known_coordinates")
def test_genes_and_numbers_colour_cells(given_model):
    model = given_model()
    model.adata.obs["age"] = np.arange(60.0)
    model.adata.obs["condition"] = np.arange(60) % 2
    *axes, last = trvae.pl.umap(
        model, representation="latent", color=["1", "age", "condition"], show=False
    )
    for ax, values in zip(axes, (model.adata.X[:, 1], np.arange(60.0)), strict=True):
        # Scanpy draws high values last.
        drawn = np.column_stack([ax.collections[0].get_offsets(), ax.collections[0].get_array()])
        expected = np.column_stack([model.adata.X[:, :2], values])
        np.testing.assert_allclose(sorted(drawn.tolist()), sorted(expected.tolist()))
    # A colour bar each, but conditions are groups, also if they are numbers.
    assert len(last.figure.axes) == 5
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["0", "1"]


@pytest.mark.usefixtures("known_coordinates")
def test_conditions_and_labels_share_no_colour_unless_it_is_given(given_model):
    def colors(model):
        axes = trvae.pl.umap(model, representation="latent", show=False)
        drawn = [{to_hex(c) for c in ax.collections[0].get_facecolor()} for ax in axes]
        plt.close("all")
        return drawn

    model = given_model()
    of_conditions, of_labels = colors(model)
    assert not of_conditions & of_labels
    model.adata.uns["condition_colors"] = ["#ff0000", "#00ff00"]
    assert colors(model) == [{"#ff0000", "#00ff00"}, of_labels]


def test_umap_is_the_same_for_a_seed_and_keeps_neighbours(given_model):
    model = given_model(n_cells=80)
    far = np.where(np.arange(80) < 40, 0, 50)[:, None]
    model.get_latent_representation = lambda _, indices: (model.adata.X + far)[indices]

    def coordinates(seed):
        arguments = {"representation": "latent", "color": "cell_type", "n_neighbors": 10}
        points = trvae.pl.umap(model, seed=seed, show=False, **arguments).collections[0]
        order = np.random.default_rng(seed).permutation(80)
        return points.get_offsets()[np.argsort(order)]

    first = coordinates(0)
    np.testing.assert_array_equal(first, coordinates(0))
    assert not np.allclose(first, coordinates(1))
    distance = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(1) < 40) == (np.arange(80) < 40)).all()


def test_umap_of_a_model(model):
    before = model.adata.copy()
    axes = trvae.pl.umap(model, n_neighbors=5, show=False)
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [90] * 4
    assert model.adata.obsm.keys() == before.obsm.keys()
    assert model.adata.uns.keys() == before.uns.keys()
    new = trvae.datasets.simulated(n_cells=5, n_genes=20, seed=1)
    del new.obs["cell_type"]
    _, given = plt.subplots()
    chosen = new.obs["condition"] == "control"
    arguments = {"representation": "decoder", "indices": chosen, "n_neighbors": 5}
    assert trvae.pl.umap(model, new, ax=given, **arguments) is given
    assert len(given.collections[0].get_offsets()) == 15
    assert given.get_title() == "first decoder layer: condition"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"representation": "z"}, "representation must be one of 'latent', 'decoder', 'both'"),
        ({"n_neighbors": 0}, "n_neighbors must be a positive integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"color": ["condition", "donor"]}, "'donor' is neither a gene nor in adata.obs: 'cond"),
        ({"color": []}, r"color=\[\]"),
        ({"indices": range(15)}, "15 cells are too few for n_neighbors=15"),
    ],
)
def test_wrong_arguments(given_model, arguments, words):
    with pytest.raises(ValueError, match=words):
        trvae.pl.umap(given_model(), **arguments)


@pytest.mark.usefixtures("known_coordinates")
def test_wrong_models_and_axes(model, given_model):
    with pytest.raises(ValueError, match="is not a list of 4 Axes"):
        trvae.pl.umap(model, ax=plt.gca())
    without_cells = given_model()
    without_cells.adata = None
    with pytest.raises(ValueError, match="no AnnData of its own"):
        trvae.pl.umap(without_cells)
    ensemble = trvae.TRVAEEnsemble(model.adata, n_models=2, n_latent=2)
    with pytest.raises(ValueError, match=r"no representation .* model.models\[0\]"):
        trvae.pl.umap(ensemble)
    minified = given_model()
    minified.adata.uns[MINIFY_TYPE_KEY] = LATENT_POSTERIOR
    with pytest.raises(ValueError, match="'1' is a gene, but the minified AnnData has no"):
        trvae.pl.umap(minified, color="1")
    with pytest.raises(RuntimeError, match="train"):
        trvae.pl.umap(ensemble.models[0])
    with pytest.raises(ValueError, match="expected a model, got an object of type AnnData"):
        trvae.pl.umap(model.adata)


def test_neighbors_of_many_cells():
    # Of more than 4,096, scanpy takes PyNNDescent's.
    cells = AnnData(np.random.default_rng(0).normal(size=(4_200, 3)).astype(np.float32))
    sc.pp.neighbors(cells, n_neighbors=5, use_rep="X")
    assert cells.obsp["distances"].shape == (4_200, 4_200)
