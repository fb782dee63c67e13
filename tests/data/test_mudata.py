"""A model of a MuData is the model of its modality, and predicts within a MuData."""

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from helpers import (
    QUIET,
    SMALL,
    assert_same_weights,
    assert_unchanged,
    content,
    dense,
    fit,
    full_disk,
)
from mudata import MuData

import trvae

IN_RNA = {"condition_key": "rna", "labels_key": "rna"}
KEYS = {"condition_key": "condition", "labels_key": "cell_type"}
ARGUMENTS = {"target_condition": "treated", "source_condition": "control"}


def as_mudata(cells, *, top=(), **modalities):
    """The cells beside a modality of proteins; the columns ``top`` are moved to the top."""
    rna = cells.copy()
    values = np.arange(cells.n_obs * 4, dtype=np.float32).reshape(-1, 4)
    prot = anndata.AnnData(values, obs=pd.DataFrame(index=cells.obs_names))
    prot.var_names = [f"protein_{i}" for i in range(4)]
    prot.obsm["X_pca"] = values[:, :2].copy()
    mdata = MuData({"rna": rna, "prot": prot} | modalities)
    for key in top:
        mdata.obs[key] = rna.obs.pop(key).array
    return mdata


def trained_on(mdata, modalities=None, **setup):
    trvae.TRVAE.setup_mudata(mdata, **(KEYS | setup), modalities=modalities)
    model = trvae.TRVAE(mdata, seed=0, **SMALL)
    model.train(max_epochs=3, **QUIET)
    return model


@pytest.fixture
def mdata(adata):
    return as_mudata(adata)


@pytest.fixture(scope="module")
def model():
    cells = trvae.datasets.simulated(n_cells=40, n_genes=60)
    return trained_on(as_mudata(cells), IN_RNA)


@pytest.fixture(scope="module")
def of_anndata():
    return fit(trvae.datasets.simulated(n_cells=40, n_genes=60))


def assert_same_cells(ours, theirs):
    """Two MuData have the same cells, whatever the order of genes."""
    assert list(ours.mod) == list(theirs.mod)
    assert list(ours.obs_names) == list(theirs.obs_names)
    for name, expected in theirs.mod.items():
        cells = ours[name][:, expected.var_names]
        np.testing.assert_array_equal(dense(cells.X), dense(expected.X))
        assert (cells.obs.astype(str) == expected.obs.astype(str)).all(axis=None)


# ------------------------------------------------------------------ as of the modality


@pytest.mark.parametrize(("place", "layer"), [("rna", None), ("top", "counts")])
def test_it_is_the_model_of_its_modality(adata, of_anndata, place, layer):
    mdata = as_mudata(adata, top=() if place == "rna" else KEYS.values())
    if layer is not None:
        mdata["rna"].layers[layer] = mdata["rna"].X.copy()
        mdata["rna"].X = None
    model = trained_on(mdata, IN_RNA if place == "rna" else None, rna_layer=layer)
    assert model.adata is mdata
    assert model.conditions == of_anndata.conditions
    assert_same_weights(model.module, of_anndata.module.state_dict())
    np.testing.assert_array_equal(model.mean_profiles_, of_anndata.mean_profiles_)


QUESTIONS = {
    "get_latent_representation": {},
    "get_mmd_representation": {},
    "get_elbo": {},
    "get_likelihood_parameters": {},
    "get_normalized_expression": {"gene_list": ["gene_3", "gene_1"]},
    "differential_expression": {"groupby": "condition", "group1": "treated", "silent": True},
    "get_transferred_expression": ARGUMENTS | {"n_samples": 2},
    "get_transferred_means": ARGUMENTS,
    "assess_transfer": ARGUMENTS,
    "get_transfer_support": ARGUMENTS,
    "rank_transferred_genes": ARGUMENTS,
}


@pytest.mark.parametrize("method", QUESTIONS)
def test_every_question_is_answered_as_of_the_modality(model, of_anndata, adata, method):
    def answer(asked, cells):
        given = getattr(asked, method)(cells, **QUESTIONS[method])
        return pd.DataFrame(given["mean"] if isinstance(given, dict) else np.atleast_1d(given))

    expected = answer(of_anndata, adata)
    for cells in (None, as_mudata(adata), adata):
        pd.testing.assert_frame_equal(answer(model, cells), expected, rtol=1e-4, atol=1e-4)


def test_covariates_size_factors_and_library_sizes(adata):
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    adata.obs["size"] = np.ravel(adata.X.sum(1)) + 1
    adata.obs["total"] = adata.obs["size"] * np.where(adata.obs["condition"] == "treated", 4, 2)
    setup = {
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
        "size_factor_key": "size",
        "library_key": "total",
    }
    expected = fit(adata, setup=setup)
    mdata = as_mudata(adata, top=["age", "total"])
    mdata["prot"].obs["donor"] = mdata["rna"].obs.pop("donor")
    places = {"categorical_covariate_keys": "prot", "size_factor_key": "rna"}
    model = trained_on(mdata, IN_RNA | places, **setup)
    np.testing.assert_array_equal(model.modelled_shares_, expected.modelled_shares_)
    predicted = model.transfer(**ARGUMENTS)
    for cells in (predicted, predicted["rna"], predicted["prot"]):
        assert not [key for key in (*cells.obs, *cells.obsm) if "_scvi_" in key]
    for cells, same in ((None, None), (mdata.copy(), adata)):
        pd.testing.assert_frame_equal(
            model.get_transferred_expression(cells, **ARGUMENTS),
            expected.get_transferred_expression(same, **ARGUMENTS),
        )


# ---------------------------------------------------------------------------- transfer


def test_transfer_returns_a_mudata(model, of_anndata, adata):
    mdata = as_mudata(adata)
    mdata.obs["quality"] = np.arange(mdata.n_obs)
    mdata.obs["condition_of_all"] = mdata["rna"].obs["condition"].array
    before = content(mdata)
    chosen = np.flatnonzero(adata.obs["condition"] == "control")[[7, 3, 5]]
    expected = mdata[chosen].copy()
    expected.mod["rna"] = of_anndata.transfer(adata, "treated", indices=chosen)
    for cells in (mdata, mdata[:, mdata.var_names[::-1]]):
        predicted = model.transfer(cells, "treated", indices=chosen)
        assert isinstance(predicted, MuData)
        assert_same_cells(predicted, expected)
        assert predicted["rna"].uns["trvae"]["target_condition"] == "treated"
        np.testing.assert_array_equal(
            predicted["prot"].obsm["X_pca"], mdata["prot"].obsm["X_pca"][chosen]
        )
        np.testing.assert_array_equal(predicted.obs["quality"], chosen)
        assert (predicted.obs["condition_of_all"] == "control").all()
        assert not [column for column in predicted.obs if "_scvi_" in column]
        predicted.update()
        assert predicted.n_obs == 3
    assert_unchanged(mdata, before)


@pytest.mark.parametrize("place", [None, "rna", "prot"])
def test_the_target_is_written_where_conditions_are_read(adata, place):
    mdata = as_mudata(adata, top=["condition"])
    if place is not None:
        mdata[place].obs["condition"] = mdata.obs.pop("condition")
        mdata.pull_obs()
    places = {} if place is None else {"condition_key": place}
    model = trained_on(mdata, {"labels_key": "rna"} | places)
    once = model.transfer(**ARGUMENTS)
    top = "condition" if place is None else f"{place}:condition"
    for obs in (once["rna"].obs["condition"], once.obs[top]):
        assert set(obs) == {"treated"}
    # Predicted cells can be transferred on, even if their condition was only named.
    assert model.transfer(once, "control").n_obs == once.n_obs
    for frame in (mdata.obs, mdata["rna"].obs, mdata["prot"].obs):
        for column in {"condition", top} & set(frame):
            del frame[column]
    once = model.transfer(mdata.copy(), **ARGUMENTS)
    assert once.n_obs == mdata.n_obs
    pd.testing.assert_frame_equal(
        model.get_transferred_expression(once, "control"),
        model.get_transferred_expression(once, "control", source_condition="treated"),
    )


@pytest.mark.parametrize("key", ["condition", "rna:condition"])
def test_the_target_is_in_all_copies_of_the_conditions(adata, tmp_path, key):
    mdata = as_mudata(adata)
    mdata.pull_obs()
    mdata.obs["condition"] = mdata["rna"].obs["condition"].array
    # Of the same name, but not of the same meaning.
    mdata["prot"].obs["condition"] = "frozen"
    mdata.update()
    mdata.pull_obs(mods=["rna"])
    model = trained_on(mdata, {"labels_key": "rna"}, condition_key=key)
    predicted = model.transfer(**ARGUMENTS)
    predicted.write(tmp_path / "p.h5mu")
    again = mudata.read_h5mu(tmp_path / "p.h5mu")
    again.pull_obs(mods=["rna"])
    for found in (predicted, again):
        for column in (found.obs[key], found["rna"].obs["condition"], found.obs["rna:condition"]):
            assert set(column) == {"treated"}
        assert set(found["prot"].obs["condition"]) == {"frozen"}
    axes = trvae.pl.umap(model, representation="latent", show=False)
    assert axes[0].get_title().endswith(key)


@pytest.mark.parametrize(("suffix", "layer"), [(".h5mu", None), (".zarr", "counts")])
def test_on_disk_is_what_is_in_memory(adata, tmp_path, suffix, layer):
    mdata = as_mudata(adata)
    if layer is not None:
        mdata["rna"].layers[layer] = mdata["rna"].X.copy()
        mdata["rna"].X = mdata["rna"].X.log1p()
    model = trained_on(mdata, IN_RNA, rna_layer=layer)
    mdata.write(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    backwards = {"indices": np.arange(mdata.n_obs)[::-1]}
    expected = model.transfer(mdata, **ARGUMENTS, **backwards)
    for i, cells in enumerate((mdata, backed)):
        out = tmp_path / f"{i}{suffix}"
        model.transfer(cells, **ARGUMENTS, **backwards, out=out, chunk_size=50, progress_bar=False)
        written = mudata.read_zarr(out) if suffix == ".zarr" else mudata.read_h5mu(out)
        assert_same_cells(written, expected)
        if layer is not None:
            values = dense(written["rna"].layers[layer])
            np.testing.assert_array_equal(values, dense(expected["rna"].X))


def test_several_targets(model, mdata, tmp_path):
    targets = ["treated", "control"]
    arguments = {"source_condition": "control", "seed": 3, "progress_bar": False}
    predicted = model.transfer(mdata, targets, **arguments)
    out = model.transfer(mdata, targets, **arguments, out=tmp_path / "predicted.h5mu")
    for together in (predicted, mudata.read_h5mu(out)):
        assert together.n_obs == 240
        for target in targets:
            one = model.transfer(mdata, target, **arguments)
            among = together[[f"{name}-{target}" for name in one.obs_names]]
            assert (among["rna"].obs["condition"] == target).all()
            for name in ("rna", "prot"):
                np.testing.assert_array_equal(dense(among[name].X), dense(one[name].X))


# ------------------------------------------------------------------------ saved, mapped


@pytest.mark.parametrize("cells", ["saved with it", "given", "given reversed", "none"])
@pytest.mark.filterwarnings("error:.*var_names.*does not match")
def test_save_and_load(model, adata, tmp_path, cells):
    mdata = as_mudata(adata)
    model.save(tmp_path / "model", save_anndata=cells == "saved with it")
    if cells == "given reversed":
        mdata = MuData({"rna": mdata["rna"][:, ::-1].copy(), "prot": mdata["prot"]})
    given = {"saved with it": None, "none": False}.get(cells, mdata)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=given)
    z = model.get_latent_representation()
    if cells != "none":
        assert isinstance(loaded.adata, MuData)
        np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-6)
        assert loaded.transfer(**ARGUMENTS).mod.keys() == {"rna", "prot"}
    np.testing.assert_allclose(loaded.get_latent_representation(mdata), z, atol=1e-6)
    assert {name: list(genes) for name, genes in loaded.get_var_names().items()} == {
        "rna": list(adata.var_names)
    }


@pytest.mark.parametrize("from_path", [False, True])
def test_query(model, adata, tmp_path, from_path):
    reference = model
    if from_path:
        reference = tmp_path / "model"
        model.save(reference)
    query = adata[adata.obs["condition"] == "treated"].copy()[:, ::-1].copy()
    query.obs["condition"] = "other"
    atac = anndata.AnnData(np.ones((query.n_obs, 2)), obs=query.obs[[]])
    query = as_mudata(query, atac=atac)
    before = model.get_transferred_expression(adata, "treated")
    mapped = trvae.TRVAE.load_query_data(query, reference, match_reference=True)
    mapped.train(max_epochs=2, **QUIET)
    assert mapped.conditions == ["control", "treated", "other"]
    assert mapped.adata.n_obs == query.n_obs
    pd.testing.assert_frame_equal(mapped.get_transferred_expression(adata, "treated"), before)
    predicted = mapped.transfer(target_condition="control")
    assert list(predicted.mod) == ["rna", "prot", "atac"]
    mapped.save(tmp_path / "mapped")
    loaded = trvae.TRVAE.load(tmp_path / "mapped", adata=query)
    assert_same_cells(loaded.transfer(query, "control"), predicted)


def test_genes_that_a_query_lacks_are_filled_in(model, adata):
    query = as_mudata(adata[:, 1:].copy())
    with pytest.raises(ValueError, match="1 of the model's 60 genes"):
        trvae.TRVAE.load_query_data(query, model)
    prepared = trvae.TRVAE.prepare_query_mudata(query, model, inplace=False)
    mapped = trvae.TRVAE.load_query_data(prepared, model)
    full = adata.copy()
    full.X = full.X.toarray()
    full.X[:, 0] = 0
    np.testing.assert_allclose(
        mapped.get_latent_representation(), model.get_latent_representation(full), atol=1e-6
    )


def test_ensemble(mdata, adata, tmp_path):
    trvae.TRVAE.setup_mudata(mdata, **KEYS, modalities=IN_RNA)
    ensemble = trvae.TRVAEEnsemble(mdata, n_models=2, **SMALL)
    ensemble.train(max_epochs=2, **QUIET)
    decoded = ARGUMENTS | {"estimate": "decoded"}
    expected = [model.get_transferred_expression(**decoded) for model in ensemble.models]
    np.testing.assert_allclose(
        ensemble.get_transferred_expression(**decoded), np.mean(expected, axis=0), rtol=1e-5
    )
    for cells in (None, mdata, as_mudata(adata)):
        predicted = ensemble.transfer(cells, **ARGUMENTS)
        assert list(predicted.mod) == ["rna", "prot"]
        table = ensemble.assess_transfer(cells, **ARGUMENTS)
        assert list(table.index) == ["type_0", "type_1", "type_2"]
    ensemble.save(tmp_path / "ensemble")
    loaded = trvae.TRVAEEnsemble.load(tmp_path / "ensemble", adata=False)
    assert_same_cells(loaded.transfer(mdata, **ARGUMENTS), predicted)


def test_a_full_disk_is_an_error(model, mdata, tmp_path):
    with full_disk(), pytest.raises(OSError, match="model could not be written"):
        model.save(tmp_path / "model", save_anndata=True)
    with full_disk(), pytest.raises(OSError, match="out.h5mu could not be written"):
        model.transfer(mdata, **ARGUMENTS, out=tmp_path / "out.h5mu", chunk_size=20)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5mu.parts"]


# --------------------------------------------------------------------------- bad input

SETUPS = {
    "columns of a modality": ({}, "not in mdata.obs, but in mdata['rna'].obs"),
    "columns of another": ({"condition_key": "prot"}, "not in mdata['prot'].obs, but in mdata"),
    "an unknown modality": ({"condition_key": "atac"}, "'atac' is not in the MuData"),
    "an unknown argument": (IN_RNA | {"layer": "rna"}, "'layer'"),
    "one column of two": (IN_RNA, "'condition' would be taken from two modalities"),
    "an unknown layer": (IN_RNA, "layer 'counts' is not in adata.layers"),
    "an unknown column": (IN_RNA, "condition_key 'stim' is not in adata.obs"),
    "cells in another order": (IN_RNA, "mdata['rna'] must have the cells of the MuData"),
}
ARGUMENTS_OF = {
    "one column of two": {"categorical_covariate_keys": ["condition"]},
    "an unknown layer": {"rna_layer": "counts"},
    "an unknown column": {"condition_key": "stim"},
}


@pytest.mark.parametrize("kind", SETUPS)
def test_what_cannot_be_set_up(mdata, kind):
    modalities, words = SETUPS[kind]
    if kind == "one column of two":
        mdata.obs["condition"] = "a"
    if kind == "cells in another order":
        mdata.mod["rna"] = mdata["rna"][::-1].copy()
    before = content(mdata)
    with pytest.raises(ValueError) as caught:
        trvae.TRVAE.setup_mudata(
            mdata, **(KEYS | ARGUMENTS_OF.get(kind, {})), modalities=modalities
        )
    assert words in str(caught.value)
    assert_unchanged(mdata, before)


@pytest.mark.parametrize("model_of", ["AnnData", "MuData"])
def test_data_of_the_other_kind(model, of_anndata, mdata, adata, tmp_path, model_of):
    known, other = (of_anndata, mdata) if model_of == "AnnData" else (model, adata)
    known.save(tmp_path / "model")
    message = f"set up with an? {model_of}, got "
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.load(tmp_path / "model", adata=other)
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.load_query_data(other, known)


def test_what_a_mudata_cannot_be_used_for(model, mdata, tmp_path):
    for ask, words in {
        lambda: model.transfer(MuData({"prot": mdata["prot"]}), "treated"): "'rna' is not in",
        lambda: trvae.evaluate(mdata, **KEYS, source_condition="control"): "an AnnData",
        lambda: model.minify_adata(): "only an AnnData can be minified",
        lambda: trvae.TRVAE.load_query_data(
            mdata, model, inplace_subset_query_vars=True
        ): "inplace_subset_query_vars=True needs an AnnData",
        lambda: model.transfer(mdata, **ARGUMENTS, out=tmp_path / "out.h5ad"): ".h5mu",
        lambda: model.transfer(mdata["rna"], **ARGUMENTS, out=tmp_path / "out.h5mu"): ".h5ad",
    }.items():
        with pytest.raises(ValueError, match=words):
            ask()
    mdata["rna"].X = mdata["rna"].X.log1p()
    with pytest.raises(ValueError, match="not integers"):
        trvae.TRVAE.load_query_data(mdata, model)
