import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL, fit, full_disk
from mudata import MuData

import trvae

IN_RNA = {"condition_key": "rna", "labels_key": "rna"}
KEYS = {"condition_key": "condition", "labels_key": "cell_type"}
ARGUMENTS = {"target_condition": "treated", "source_condition": "control"}


def as_mudata(cells, *, top=(), **modalities):
    """Beside the cells, proteins in another order of genes' names; columns moved to the top."""
    rna = cells.copy()
    values = np.arange(cells.n_obs * 4, dtype=np.float32).reshape(-1, 4)
    prot = anndata.AnnData(values, obs=pd.DataFrame(index=cells.obs_names))
    prot.var_names = [f"protein_{i}" for i in range(4)]
    prot.obsm["X_pca"] = values[:, :2]
    mdata = MuData({"rna": rna, "prot": prot} | modalities)
    for key in top:
        mdata.obs[key] = rna.obs[key].array
        del rna.obs[key]
    return mdata


def trained_on(mdata, **setup):
    trvae.TRVAE.setup_mudata(mdata, **(KEYS | setup))
    model = trvae.TRVAE(mdata, seed=0, **SMALL)
    model.train(max_epochs=3, **QUIET)
    return model


@pytest.fixture
def mdata(adata):
    return as_mudata(adata)


@pytest.fixture(scope="module")
def model():
    return trained_on(
        as_mudata(trvae.datasets.simulated(n_cells=40, n_genes=60)), modalities=IN_RNA
    )


@pytest.fixture(scope="module")
def of_anndata():
    return fit(trvae.datasets.simulated(n_cells=40, n_genes=60))


def dense(matrix):
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


@pytest.mark.parametrize("place", ["rna", "top"])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_it_is_the_model_of_its_modality(adata, of_anndata, place, layer):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    mdata = as_mudata(adata, top=() if place == "rna" else KEYS.values())
    if layer is not None:
        mdata["rna"].layers[layer] = mdata["rna"].X.copy()
        mdata["rna"].X = None
    model = trained_on(mdata, rna_layer=layer, modalities=IN_RNA if place == "rna" else None)
    assert model.adata is mdata
    assert model.conditions == of_anndata.conditions
    for name, weight in of_anndata.module.state_dict().items():
        np.testing.assert_array_equal(weight, model.module.state_dict()[name], err_msg=name)
    np.testing.assert_array_equal(model.mean_profiles_, of_anndata.mean_profiles_)
    z = of_anndata.get_latent_representation()
    for cells in (None, mdata, mdata.copy()):
        np.testing.assert_allclose(model.get_latent_representation(cells), z, atol=1e-6)


def test_transfer_returns_a_mudata(model, of_anndata, adata):
    mdata = as_mudata(adata)
    mdata.obs["quality"] = np.arange(mdata.n_obs)
    mdata.obs["condition_of_all"] = mdata["rna"].obs["condition"].array
    before = mdata.copy()
    chosen = np.flatnonzero(adata.obs["condition"] == "control")[[7, 3, 5]]
    for cells in (mdata, mdata[:, mdata.var_names[::-1]]):
        predicted = model.transfer(cells, "treated", indices=chosen)
        expected = of_anndata.transfer(adata, "treated", indices=chosen)
        assert isinstance(predicted, MuData)
        assert list(predicted.mod) == ["rna", "prot"]
        rna = predicted["rna"][:, expected.var_names]
        np.testing.assert_array_equal(dense(rna.X), dense(expected.X))
        assert list(predicted.obs_names) == list(adata.obs_names[chosen])
        assert (predicted["rna"].obs["condition"] == "treated").all()
        assert set(predicted["rna"].obs) == {*adata.obs}
        assert predicted["rna"].uns["trvae"]["target_condition"] == "treated"
        prot = mdata["prot"][chosen]
        np.testing.assert_array_equal(predicted["prot"][:, prot.var_names].X, prot.X)
        np.testing.assert_array_equal(predicted["prot"].obsm["X_pca"], prot.obsm["X_pca"])
        np.testing.assert_array_equal(predicted.obs["quality"], chosen)
        assert (predicted.obs["condition_of_all"] == "control").all()
        assert not [column for column in predicted.obs if "_scvi_" in column]
        predicted.update()
        assert predicted.n_obs == 3
    # The measured cells are as they were.
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    assert set(mdata.uns) == set(before.uns)
    for name in mdata.mod:
        np.testing.assert_array_equal(dense(mdata[name].X), dense(before[name].X))
        pd.testing.assert_frame_equal(mdata[name].obs, before[name].obs)


@pytest.mark.parametrize("place", [None, "rna", "prot"])
def test_the_target_is_written_where_conditions_are_read(adata, place):
    mdata = as_mudata(adata, top=["condition"])
    if place is not None:
        mdata[place].obs["condition"] = mdata.obs["condition"]
        del mdata.obs["condition"]
        mdata.pull_obs()
    modalities = {"labels_key": "rna"} | ({} if place is None else {"condition_key": place})
    model = trained_on(mdata, modalities=modalities)
    once = model.transfer(**ARGUMENTS)
    top = {None: "condition", "rna": "rna:condition", "prot": "prot:condition"}[place]
    for obs in (once["rna"].obs["condition"], once.obs[top]):
        assert set(obs) == {"treated"}
    # What was predicted can be transferred on, also if its condition was only named.
    assert model.transfer(once, "control").n_obs == once.n_obs
    for frame in (mdata.obs, mdata["rna"].obs, mdata["prot"].obs):
        for column in {"condition", top} & set(frame):
            del frame[column]
    once = model.transfer(mdata.copy(), **ARGUMENTS)
    assert model.transfer(once, "control", source_condition="treated").n_obs == mdata.n_obs
    pd.testing.assert_frame_equal(
        model.get_transferred_expression(once, "control"),
        model.get_transferred_expression(once, "control", source_condition="treated"),
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, cells: model.get_transferred_expression(cells, "treated", n_samples=2),
        lambda model, cells: model.get_transferred_means(cells, "treated", n_samples=3),
        lambda model, cells: model.assess_transfer(cells, **ARGUMENTS),
        lambda model, cells: model.get_transfer_support(cells, **ARGUMENTS),
        lambda model, cells: model.rank_transferred_genes(cells, **ARGUMENTS),
        lambda model, cells: model.get_normalized_expression(
            cells, gene_list=["gene_3", "gene_1"]
        ),
        lambda model, cells: model.differential_expression(
            cells, groupby="condition", group1="treated", silent=True
        ),
        lambda model, cells: pd.DataFrame(model.get_likelihood_parameters(cells)["mean"]),
        lambda model, cells: pd.DataFrame(model.get_mmd_representation(cells)),
        lambda model, cells: pd.Series(model.get_elbo(cells)),
    ],
)
def test_every_question_is_answered_as_of_the_modality(model, of_anndata, adata, ask):
    expected = ask(of_anndata, adata)
    for cells in (None, as_mudata(adata), adata):
        answer = ask(model, cells)
        compare = pd.testing.assert_series_equal
        if isinstance(expected, pd.DataFrame):
            compare = pd.testing.assert_frame_equal
        compare(answer, expected, rtol=1e-4, atol=1e-4)


def test_covariates_size_factors_and_library_sizes(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    adata.obs["size"] = np.ravel(adata.X.sum(1)) + 1
    adata.obs["total"] = (
        2 * adata.obs["size"] * np.where(adata.obs["condition"] == "treated", 2, 1)
    )
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
    model = trained_on(mdata, modalities=IN_RNA | places, **setup)
    np.testing.assert_array_equal(model.modelled_shares_, expected.modelled_shares_)
    predicted = model.transfer(**ARGUMENTS)
    for cells in (predicted, predicted["rna"], predicted["prot"]):
        assert not [key for key in (*cells.obs, *cells.obsm) if "_scvi_" in key]
    for cells, same in ((None, None), (mdata.copy(), adata)):
        pd.testing.assert_frame_equal(
            model.get_transferred_expression(cells, **ARGUMENTS),
            expected.get_transferred_expression(same, **ARGUMENTS),
        )


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_on_disk_is_what_is_in_memory(adata, tmp_path, suffix, layer):
    mdata = as_mudata(adata)
    mdata["prot"].X = mdata["prot"].X.copy()
    if layer is not None:
        mdata["rna"].layers[layer] = mdata["rna"].X.copy()
        mdata["rna"].X = mdata["rna"].X.log1p()
    model = trained_on(mdata, modalities=IN_RNA, rna_layer=layer)
    mdata.write(tmp_path / "cells.h5mu")
    backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed="r")
    expected = model.transfer(mdata, **ARGUMENTS, indices=np.arange(mdata.n_obs)[::-1])
    for i, cells in enumerate((mdata, backed)):
        out = model.transfer(
            cells, **ARGUMENTS, indices=np.arange(mdata.n_obs)[::-1], chunk_size=50,
            out=tmp_path / f"{i}{suffix}", progress_bar=False,
        )  # fmt: skip
        written = mudata.read_zarr(out) if suffix == ".zarr" else mudata.read_h5mu(out)
        assert list(written.mod) == ["rna", "prot"]
        assert list(written.obs_names) == list(expected.obs_names)
        for name in expected.mod:
            np.testing.assert_array_equal(dense(written[name].X), dense(expected[name].X))
            assert (written[name].obs.astype(str) == expected[name].obs.astype(str)).all(axis=None)
            assert list(written[name].var_names) == list(expected[name].var_names)
        if layer is not None:
            np.testing.assert_array_equal(
                dense(written["rna"].layers[layer]), dense(expected["rna"].X)
            )
    with pytest.raises(ValueError, match="ends neither with .h5mu nor with .zarr"):
        model.transfer(mdata, **ARGUMENTS, out=tmp_path / "out.h5ad")
    with pytest.raises(ValueError, match="ends neither with .h5ad nor with .zarr"):
        model.transfer(mdata["rna"], **ARGUMENTS, out=tmp_path / "out.h5mu")


@pytest.mark.parametrize("cells", ["saved with it", "given", "given reversed", "none"])
def test_save_and_load(model, adata, tmp_path, cells):
    mdata = as_mudata(adata)
    model.save(str(tmp_path / "model"), save_anndata=cells == "saved with it")
    if cells == "given reversed":
        mdata = MuData({"rna": mdata["rna"][:, ::-1].copy(), "prot": mdata["prot"]})
    given = {"saved with it": None, "none": False}.get(cells, mdata)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*var_names.*does not match")
        loaded = trvae.TRVAE.load(str(tmp_path / "model"), adata=given)
    z = model.get_latent_representation()
    if cells != "none":
        assert isinstance(loaded.adata, MuData)
        np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-6)
        assert loaded.transfer(**ARGUMENTS).mod.keys() == {"rna", "prot"}
    np.testing.assert_allclose(loaded.get_latent_representation(mdata), z, atol=1e-6)
    assert list(loaded.get_var_names()) == ["rna"]
    assert (
        list(mdata["rna"].var_names)
        == list(loaded.get_var_names()["rna"])[:: -1 if cells == "given reversed" else 1]
    )


def test_a_full_disk_is_an_error(model, adata, tmp_path):
    mdata = as_mudata(adata)
    with full_disk(), pytest.raises(OSError, match="model could not be written"):
        model.save(tmp_path / "model", save_anndata=True)
    with full_disk(), pytest.raises(OSError, match="out.h5mu could not be written"):
        model.transfer(mdata, **ARGUMENTS, out=tmp_path / "out.h5mu", chunk_size=20)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5mu.parts"]


@pytest.mark.parametrize("from_path", [False, True])
def test_query(model, adata, tmp_path, from_path):
    reference = model
    if from_path:
        model.save(str(tmp_path / "model"))
        reference = tmp_path / "model"
    query = adata[adata.obs["condition"] == "treated"].copy()[:, ::-1].copy()
    query.obs["condition"] = "other"
    # Another modality beside is no matter.
    query = as_mudata(query, atac=anndata.AnnData(np.ones((query.n_obs, 2)), obs=query.obs[[]]))
    before = model.get_transferred_expression(adata, "treated")
    mapped = trvae.TRVAE.load_query_data(query, reference, match_reference=True)
    mapped.train(max_epochs=2, **QUIET)
    assert mapped.conditions == ["control", "treated", "other"]
    assert mapped.adata.n_obs == query.n_obs
    pd.testing.assert_frame_equal(mapped.get_transferred_expression(adata, "treated"), before)
    predicted = mapped.transfer(target_condition="control")
    assert list(predicted.mod) == ["rna", "prot", "atac"]
    assert list(predicted.obs_names) == list(query.obs_names)
    mapped.save(str(tmp_path / "mapped"))
    loaded = trvae.TRVAE.load(str(tmp_path / "mapped"), adata=query)
    np.testing.assert_array_equal(
        dense(loaded.transfer(query, "control")["rna"].X),
        dense(mapped.transfer(query, "control")["rna"].X),
    )


def test_a_query_of_other_values_is_refused(model, adata):
    query = as_mudata(adata)
    query["rna"].X = query["rna"].X.log1p()
    with pytest.raises(ValueError, match="not integers"):
        trvae.TRVAE.load_query_data(query, model)
    with pytest.raises(ValueError, match="inplace_subset_query_vars=True is of AnnData"):
        trvae.TRVAE.load_query_data(as_mudata(adata), model, inplace_subset_query_vars=True)


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
        assert list(ensemble.assess_transfer(cells, **ARGUMENTS).index) == [
            "type_0",
            "type_1",
            "type_2",
        ]
    ensemble.save(tmp_path / "ensemble")
    loaded = trvae.TRVAEEnsemble.load(tmp_path / "ensemble", adata=False)
    np.testing.assert_array_equal(
        dense(loaded.transfer(mdata, **ARGUMENTS)["rna"].X), dense(predicted["rna"].X)
    )


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"modalities": {"rna_layer": "gex"}}, "modalities.'rna_layer'. 'gex' is not in the Mu"),
        ({}, r"condition_key 'condition' is not in mdata.obs, but in mdata\['rna'\].obs"),
        ({"modalities": {"condition_key": "prot"}}, r"is not in mdata\['prot'\].obs, but in mdat"),
        ({"modalities": {"condition_key": "atac"}}, "modalities.'condition_key'. 'atac' is not"),
        (
            {"condition_key": "cond", "labels_key": None},
            "condition_key 'cond' is not in adata.obs",
        ),
        ({"modalities": IN_RNA, "rna_layer": "counts"}, "layer 'counts' is not in adata.layers"),
        ({"modalities": IN_RNA | {"layer": "rna"}}, "Extraneous modality mapping.*'layer'"),
        (
            {"modalities": IN_RNA, "categorical_covariate_keys": ["condition"]},
            "'condition' is taken from two modalities",
        ),
    ],
)
def test_what_cannot_be_set_up(mdata, setup, message):
    if "categorical_covariate_keys" in setup:
        mdata.obs["condition"] = pd.Categorical(["a"] * mdata.n_obs)
    before = mdata.copy()
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.setup_mudata(mdata, **(KEYS | setup))
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    pd.testing.assert_frame_equal(mdata["rna"].obs, before["rna"].obs)
    assert set(mdata.uns) == set(before.uns)


def test_cells_of_a_modality_in_another_order_are_refused(adata):
    mdata = as_mudata(adata)
    mdata.mod["rna"] = mdata["rna"][::-1].copy()
    with pytest.raises(ValueError, match=r"cells of mdata\['rna'\] are not those of the MuData"):
        trvae.TRVAE.setup_mudata(mdata, **KEYS, modalities=IN_RNA)


def test_the_wrong_kind_of_data_is_named(model, of_anndata, mdata, adata, tmp_path):
    with pytest.raises(ValueError, match="mdata is a AnnData, but no MuData"):
        trvae.TRVAE.setup_mudata(adata, **KEYS)
    with pytest.raises(ValueError, match="adata is a MuData, which setup_mudata registers"):
        trvae.TRVAE.setup_anndata(mdata, **KEYS)
    with pytest.raises(ValueError, match=r"takes one modality, such as mdata\['rna'\]"):
        of_anndata.transfer(mdata, "treated")
    for known, other, message in (
        (of_anndata, mdata, "with an AnnData, so that it takes no MuData"),
        (model, adata, "with a MuData, so that it takes no AnnData"),
    ):
        known.save(str(tmp_path / "model"), overwrite=True)
        with pytest.raises(ValueError, match=message):
            trvae.TRVAE.load(str(tmp_path / "model"), adata=other)
        with pytest.raises(ValueError, match=message):
            trvae.TRVAE.load_query_data(other, known)
    with pytest.raises(ValueError, match="'rna' is not in the MuData: 'prot'"):
        model.transfer(MuData({"prot": mdata["prot"]}), "treated")
    with pytest.raises(ValueError, match="evaluate takes an AnnData"):
        trvae.evaluate(mdata, **KEYS, source_condition="control")
    with pytest.raises(ValueError, match="Only an AnnData can be minified"):
        model.minify_adata()


def test_several_targets(model, mdata, tmp_path):
    targets = ["treated", "control"]
    arguments = {"source_condition": "control", "seed": 3}
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


def test_genes_that_a_query_lacks_are_filled_up(model, adata):
    query = as_mudata(adata[:, 1:].copy())
    with pytest.raises(ValueError, match="1 of the model's 60 genes are not in adata.var_names"):
        trvae.TRVAE.load_query_data(query, model)
    prepared = trvae.TRVAE.prepare_query_mudata(query, model, inplace=False)
    mapped = trvae.TRVAE.load_query_data(prepared, model)
    full = adata.copy()
    full.X = full.X.toarray()
    full.X[:, 0] = 0
    np.testing.assert_allclose(
        mapped.get_latent_representation(), model.get_latent_representation(full), atol=1e-6
    )
