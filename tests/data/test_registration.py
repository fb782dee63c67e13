"""Cells that become a model's own are matched to its genes by name."""

import numpy as np
import pytest
from anndata import AnnData
from helpers import QUIET, SMALL, assert_unchanged, content, fit
from mudata import MuData

import trvae


@pytest.fixture
def model(adata):
    return fit(adata)


def test_genes_in_another_order_are_matched(model, adata, tmp_path):
    model.save(tmp_path / "model")
    shuffled = adata[:, ::-1].copy()
    before = content(shuffled)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=shuffled)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert list(loaded.adata.var_names) == list(adata.var_names)
    assert "_scvi_uuid" not in shuffled.uns
    assert_unchanged(shuffled, before)

    shuffled.obs["condition"] = "other"
    mapped = trvae.TRVAE.load_query_data(shuffled, model)
    assert mapped.conditions == ["control", "treated", "other"]
    np.testing.assert_array_equal(mapped.adata.X.toarray(), adata.X.toarray())


def test_missing_genes_are_an_error_unless_they_are_filled_in(model, adata, tmp_path):
    model.save(tmp_path / "model")
    lacking = adata[:, :0:-1].copy()
    for give in (
        lambda: trvae.TRVAE.load(tmp_path / "model", adata=lacking),
        lambda: trvae.TRVAE.load_query_data(lacking, model),
    ):
        with pytest.raises(ValueError, match="1 of the model's 60 genes .*gene_0"):
            give()
    trvae.TRVAE.prepare_query_anndata(lacking, model)
    mapped = trvae.TRVAE.load_query_data(lacking, model)
    filled = adata.copy()
    filled.X = filled.X.toarray()
    filled.X[:, 0] = 0
    np.testing.assert_allclose(
        mapped.get_latent_representation(), model.get_latent_representation(filled), atol=1e-6
    )


def with_modality(adata):
    mdata = MuData({"rna": adata})
    mdata.obs = adata.obs.copy()
    return mdata


def registered(data):
    """What scvi-tools writes to, and the genes."""
    parts = [data, *data.mod.values()] if isinstance(data, MuData) else [data]
    return [
        (list(part.obs), part.obs.to_dict(), list(part.obsm), dict(part.uns), list(part.var_names))
        for part in parts
    ]


def with_fractions(adata):
    adata.X = adata.X / 2
    return adata


def with_unknown_label(adata):
    adata.obs["cell_type"] = "new"
    return adata


def with_duplicate_genes(adata):
    return adata[:, [0, *range(adata.n_vars)]].copy()


def of_integers(adata):
    adata.obs["condition"] = 1
    return adata


def empty(adata):
    return adata[:0].copy()


REFUSED = {
    "with_fractions": (with_fractions, "not integers"),
    "with_unknown_label": (with_unknown_label, "'new'"),
    "with_duplicate_genes": (with_duplicate_genes, "not unique: 'gene_0'"),
    "of_integers": (of_integers, "type number"),
    "empty": (empty, "adata is empty"),
}
TAKERS = {
    "load": lambda data, model, folder: trvae.TRVAE.load(folder, data),
    "load an ensemble": lambda data, model, folder: trvae.TRVAEEnsemble.load(folder.parent, data),
    "load_query_data": lambda data, model, folder: trvae.TRVAE.load_query_data(
        data, model, match_reference=True
    ),
    "genes in place": lambda data, model, folder: trvae.TRVAE.load_query_data(
        data, model, match_reference=True, inplace_subset_query_vars=True
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models of an AnnData and a MuData, with the folder of each. Not to be changed."""
    cells = trvae.datasets.simulated(n_cells=20, n_genes=20)
    mdata = with_modality(cells.copy())
    trvae.TRVAE.setup_mudata(mdata, condition_key="condition", labels_key="cell_type")
    models = fit(cells, train={"max_epochs": 1}), trvae.TRVAE(mdata, seed=0)
    models[1].train(max_epochs=1, accelerator="cpu")
    folders = [tmp_path_factory.mktemp(name) / "0" for name in ("anndata", "mudata")]
    for model, folder in zip(models, folders, strict=True):
        model.save(folder)
    return dict(zip((AnnData, MuData), zip(models, folders, strict=True), strict=True))


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize(
    ("kind", "taker"),
    [(AnnData, taker) for taker in TAKERS] + [(MuData, taker) for taker in list(TAKERS)[:-1]],
)
def test_cells_that_are_refused_are_as_before(saved, kind, taker, change):
    make, words = REFUSED[change]
    # With a gene that would be dropped in place.
    data = make(trvae.datasets.simulated(n_cells=20, n_genes=21 if "genes" in taker else 20))
    data = data if kind is AnnData else with_modality(data)
    before = registered(data)
    with pytest.raises(ValueError, match=words):
        TAKERS[taker](data, *saved[kind])
    assert registered(data) == before


def test_cells_that_are_refused_stay_set_up_as_they_were(saved):
    data = with_unknown_label(trvae.datasets.simulated(n_cells=20, n_genes=20))
    trvae.TRVAE.setup_anndata(data, condition_key="condition")
    before = registered(data)
    with pytest.raises(ValueError, match="'new'"):
        TAKERS["load_query_data"](data, *saved[AnnData])
    assert registered(data) == before
    assert trvae.TRVAE(data).registered_data.arguments["labels_key"] is None
    assert trvae.TRVAE(data).adata is data


@pytest.mark.parametrize("in_place", [True, False])
def test_genes_to_fill_in_must_be_unique(saved, in_place):
    for kind, prepare in (
        (AnnData, trvae.TRVAE.prepare_query_anndata),
        (MuData, trvae.TRVAE.prepare_query_mudata),
    ):
        data = with_duplicate_genes(trvae.datasets.simulated(n_cells=20, n_genes=20))
        data = data if kind is AnnData else with_modality(data)
        before = registered(data)
        for wrong, words in ((data, "not unique: 'gene_0'"), (None, "expected an? .*Data, got a")):
            with pytest.raises(ValueError, match=words):
                prepare(wrong, saved[kind][0], inplace=in_place)
        assert registered(data) == before


def test_genes_are_put_in_order_in_a_copy_unless_in_place(saved):
    model, _ = saved[AnnData]
    data = trvae.datasets.simulated(n_cells=20, n_genes=21)[:, ::-1].copy()
    genes = list(data.var_names)
    prepared = trvae.TRVAE.prepare_query_anndata(data, model, inplace=False)
    assert list(prepared.var_names) == list(model.adata.var_names)
    assert list(data.var_names) == genes
    mdata, (model, _) = with_modality(data), saved[MuData]
    prepared = trvae.TRVAE.prepare_query_mudata(mdata, model, inplace=False)
    assert list(prepared["rna"].var_names) == genes[:0:-1]
    assert list(data.var_names) == genes


@pytest.mark.parametrize("kind", [AnnData, MuData])
def test_a_warning_shows_the_line_of_the_user(kind):
    data = trvae.datasets.simulated(n_cells=4, n_genes=5, n_cell_types=2)
    keys = {"condition_key": "condition", "labels_key": "cell_type"}
    with pytest.warns(UserWarning, match="Only 2 of the labels") as caught:
        if kind is AnnData:
            trvae.TRVAE.setup_anndata(data, **keys)
        else:
            trvae.TRVAE.setup_mudata(with_modality(data), **keys, modalities={"rna_layer": "rna"})
    assert [each.filename for each in caught if "labels" in str(each.message)] == [__file__]


@pytest.mark.parametrize("kind", [AnnData, MuData])
def test_cells_with_their_genes_in_another_order_stay_set_up(saved, kind):
    _, path = saved[kind]
    adata = trvae.datasets.simulated(n_cells=20, n_genes=20)[:, ::-1].copy()
    data = adata if kind is AnnData else with_modality(adata)
    if kind is AnnData:
        trvae.TRVAE.setup_anndata(data, condition_key="condition")
    else:
        trvae.TRVAE.setup_mudata(data, condition_key="condition", modalities={"rna_layer": "rna"})
    trvae.TRVAE.load(path, data, accelerator="cpu")
    assert trvae.TRVAE(data).adata is data


def test_labels_can_be_a_covariate_too(adata):
    covariate = {"categorical_covariate_keys": ["cell_type"]}
    model = fit(adata, setup=covariate, train={"max_epochs": 5})
    own, passed = (model.get_latent_representation(cells) for cells in (None, model.adata.copy()))
    np.testing.assert_array_equal(passed, own)


@pytest.mark.parametrize("kind", [AnnData, MuData])
def test_two_models_of_the_same_cells_predict_as_one_alone(kind):
    def made(data, key):
        if kind is AnnData:
            trvae.TRVAE.setup_anndata(data, condition_key=key)
        else:
            trvae.TRVAE.setup_mudata(data, condition_key=key, modalities={"rna_layer": "rna"})
        model = trvae.TRVAE(data, **SMALL, seed=0)
        model.train(max_epochs=1, **QUIET)
        return model

    def predicted(model, data, target):
        return model.get_transferred_expression(data, target, return_numpy=True)

    adata = trvae.datasets.simulated(n_cells=20, n_genes=20, n_batches=2)
    data = adata if kind is AnnData else with_modality(adata)
    alone = {
        key: predicted(made(data.copy(), key), None, target)
        for key, target in (("condition", "treated"), ("batch", "batch_0"))
    }
    models = {key: made(data, key) for key in alone}
    for key in ("condition", "batch", "condition"):
        for given in (None, data):
            target = "treated" if key == "condition" else "batch_0"
            np.testing.assert_array_equal(predicted(models[key], given, target), alone[key])
    models["condition"].train(max_epochs=1, **QUIET)
