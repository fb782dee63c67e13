import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import DEVICE, FIXTURES, QUIET, on_device
from scipy import sparse

import trvae

DATA = FIXTURES / "scarches"
MODELS = ["nb", "zinb", "mse"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def read(name):
    """What scArches gave, and the cells that it gave it for."""
    expected = dict(np.load(DATA / name / "expected.npz"))
    n_cells = len(expected["x"])
    cells = anndata.AnnData(
        expected["x"],
        obs=pd.DataFrame(
            {"study": expected["study"], "type": np.resize(["s", "t"], n_cells)},
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=expected["genes"]),
    )
    return expected, cells


def decode(model, cells, condition):
    library_size = "latent" if model.module.is_count_model else 1
    return model.get_normalized_expression(
        cells, transform_batch=condition, library_size=library_size, return_numpy=True
    )


def from_scarches(source, cells, **kwargs):
    """A converted model, on the device that the tests run on."""
    model = trvae.TRVAE.from_scarches(source, cells, **kwargs)
    model.to_device(DEVICE)
    return model


def assert_same_as_scarches(model, cells, expected):
    assert model.conditions == expected["conditions"].tolist()
    np.testing.assert_allclose(model.get_latent_representation(cells), expected["latent"], **CLOSE)
    np.testing.assert_allclose(
        model.get_mmd_representation(cells), expected["first_layer"], **CLOSE
    )
    for condition, decoded in zip(expected["conditions"], expected["decoded"], strict=True):
        np.testing.assert_allclose(decode(model, cells, condition), decoded, **CLOSE)


@pytest.fixture
def saved(tmp_path):
    """A function that copies a saved model, with some of its attributes changed."""

    def copy(name="nb", **changed):
        folder = tmp_path / name
        shutil.copytree(DATA / name, folder)
        attributes = pickle.loads((folder / "attr.pkl").read_bytes())
        attributes |= {f"{key}_": value for key, value in changed.items()}
        (folder / "attr.pkl").write_bytes(pickle.dumps(attributes))
        return folder

    return copy


def live(name):
    """What is looked at of a model of scArches that is in memory."""
    _, cells = read(name)
    network = torch.nn.Module()
    state = torch.load(DATA / name / "model_params.pt", weights_only=True)
    network.state_dict = lambda: state
    attributes = pickle.loads((DATA / name / "attr.pkl").read_bytes())
    return SimpleNamespace(model=network, adata=cells, **attributes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("from_memory", [False, True])
def test_represents_and_decodes_as_scarches(name, from_memory):
    expected, cells = read(name)
    before = cells.copy()
    model = from_scarches(live(name) if from_memory else DATA / name, cells)
    assert_same_as_scarches(model, None, expected)
    assert_same_as_scarches(model, cells, expected)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert list(cells.uns) == list(before.uns)
    np.testing.assert_array_equal(cells.X, before.X)


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_likelihood_is_that_of_scarches(name):
    expected, cells = read(name)
    model = from_scarches(DATA / name, cells)
    for code, condition in enumerate(expected["conditions"]):
        rows = expected["study"] == condition
        parameters = model.get_likelihood_parameters(cells[rows])
        dispersions = np.broadcast_to(expected["theta"][:, code], parameters["mean"].shape)
        np.testing.assert_allclose(parameters["dispersions"], dispersions, **CLOSE)
        if name == "zinb":
            inflated = 1 / (1 + np.exp(-expected["dropout_logits"][code, rows]))
            np.testing.assert_allclose(parameters["dropout"], inflated, **CLOSE)


def test_squared_error_is_the_loss_but_for_a_constant():
    expected, cells = read("mse")
    model = from_scarches(DATA / "mse", cells)
    tensors = next(iter(model._make_data_loader(model.adata)))
    with torch.no_grad(), model.module.posterior_mean():
        loss = model.module(on_device(tensors))[2].reconstruction_loss["reconstruction_loss"]
    codes = [model.conditions.index(condition) for condition in expected["study"]]
    own = expected["decoded"][codes, np.arange(len(codes))]
    constant = 0.5 * np.log(np.pi) * len(expected["genes"])
    np.testing.assert_allclose(loss.cpu() - constant, ((cells.X - own) ** 2).sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "weight", "layer"),
    [
        ({"beta": 2}, 2 * 19, "latent"),
        ({"beta": np.float64(0.5), "mmd_on": "y"}, 0.5 * 19, "decoder"),
        ({"use_mmd": False, "mmd_boundary": 1}, 0, "latent"),
    ],
)
def test_objective(saved, changed, weight, layer):
    model = trvae.TRVAE.from_scarches(saved(**changed), read("nb")[1])
    assert (model.module.mmd_weight, model.module.mmd_layer) == (weight, layer)
    assert not model.module.mmd_within_labels


def test_genes_and_conditions_are_matched_by_name():
    expected, cells = read("nb")
    more = anndata.AnnData(
        np.ones((cells.n_obs, 1), np.float32), obs=cells.obs, var=pd.DataFrame(index=["other"])
    )
    shuffled = anndata.concat([more, cells], axis=1, merge="same")[::-1, ::-1].copy()
    shuffled.X = sparse.csc_matrix(shuffled.X)
    model = from_scarches(str(DATA / "nb"), shuffled)
    assert model.adata.var_names.tolist() == expected["genes"].tolist()
    np.testing.assert_allclose(
        model.get_latent_representation()[::-1], expected["latent"], **CLOSE
    )
    np.testing.assert_allclose(
        decode(model, shuffled, "a")[::-1, ::-1], expected["decoded"][1], **CLOSE
    )


def test_other_columns_and_layers():
    expected, cells = read("nb")
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X)
    cells.obs = cells.obs.rename(columns={"study": "batch"})
    with pytest.raises(ValueError, match="condition_key 'study' is not in adata.obs: 'batch'"):
        trvae.TRVAE.from_scarches(DATA / "nb", cells)
    with pytest.raises(ValueError, match="is for raw counts"):
        trvae.TRVAE.from_scarches(DATA / "nb", cells, condition_key="batch")
    model = from_scarches(
        DATA / "nb", cells, condition_key="batch", layer="counts", labels_key="type"
    )
    assert_same_as_scarches(model, cells, expected)
    assert model.mean_profiles_.shape == (2, 3, 12)


def test_conditions_that_are_not_strings(saved):
    expected, cells = read("nb")
    numbers = {condition: np.int64(i) for i, condition in enumerate(expected["conditions"], 7)}
    cells.obs["study"] = cells.obs["study"].astype(str).map(numbers).astype(int)
    model = from_scarches(saved(conditions=list(numbers.values())), cells)
    assert model.conditions == [7, 8, 9]
    np.testing.assert_allclose(model.get_latent_representation(), expected["latent"], **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_does_all_that_others_do(name, tmp_path):
    expected, cells = read(name)
    model = from_scarches(DATA / name, cells, labels_key="type")
    transferred = model.transfer(cells, target_condition="a")
    np.testing.assert_array_equal(model.transfer(target_condition="a").X, transferred.X)
    assert (transferred.X >= 0).all()
    assert model.history is None
    assert model.get_transfer_support(cells, "a") is not None
    assert np.isfinite(model.get_elbo())

    model.save(str(tmp_path / "model"), save_anndata=True)
    loaded = trvae.TRVAE.load(str(tmp_path / "model"))
    assert_same_as_scarches(loaded, None, expected)
    np.testing.assert_array_equal(loaded.transfer(cells, target_condition="a").X, transferred.X)

    query = cells.copy()
    query.obs["study"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, loaded, match_reference=True)
    mapped.train(max_epochs=1, **QUIET)
    np.testing.assert_array_equal(
        mapped.get_latent_representation(cells), model.get_latent_representation(cells)
    )
    assert mapped.transfer(query, target_condition="a").shape == cells.shape

    model.train(max_epochs=1, **QUIET)
    model.train(max_epochs=1, **QUIET)
    assert len(model.history["train_loss"]) == 2
    assert not np.allclose(model.get_latent_representation(), expected["latent"])


def test_a_mean_below_0_only_where_it_may_be(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="nonnegative_mean=True needs gene_likelihood='normal'"):
        trvae.TRVAE(adata, nonnegative_mean=True)
    adata.X = adata.X.log1p()
    for allowed in (False, True):
        model = trvae.TRVAE(adata, gene_likelihood="normal", nonnegative_mean=not allowed, seed=0)
        model.is_trained_ = True
        assert (model.get_normalized_expression().min(axis=None) < 0) == allowed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mmd_boundary": 1}, "mmd_boundary=1"),
        ({"conditions": ["a"]}, r"conditions=\['a'\]"),
        ({"recon_loss": "bce"}, "recon_loss must be one of 'nb', 'zinb', 'mse', got 'bce'"),
        ({"is_trained": False}, "not trained"),
        ({"input_dim": 13}, "input_dim=13, but names of 12 genes"),
        ({"beta": np.array([1.0])}, "of a wrong type: 'beta'"),
        ({"conditions": ["a", None]}, "of a wrong type: 'conditions'"),
        ({"hidden_layer_sizes": [8, 16]}, "weights of the scArches model don't fit"),
        ({"hidden_layer_sizes": [16, 8, 8]}, "weights of the scArches model don't fit"),
        ({"latent_dim": 10**9}, "weights of the scArches model don't fit"),
        ({"beta": np.datetime64(1, "s")}, "attr.pkl was not loaded"),
    ],
)
def test_what_has_no_counterpart(saved, changed, message):
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.from_scarches(saved(**changed), read("nb")[1])


def test_cells_that_do_not_fit():
    _, cells = read("nb")
    other = cells.copy()
    other.obs["study"] = other.obs["study"].astype(str).replace("c", "new")
    with pytest.raises(ValueError, match="does not know: 'new'. It knows 'b', 'a', 'c'"):
        trvae.TRVAE.from_scarches(DATA / "nb", other)
    with pytest.raises(ValueError, match="no cells of .* conditions 'c'"):
        trvae.TRVAE.from_scarches(DATA / "nb", cells[cells.obs["study"] != "c"])
    with pytest.raises(ValueError, match="12 genes are not in adata.var_names: 'gene_3'"):
        trvae.TRVAE.from_scarches(DATA / "nb", cells[:, cells.var_names != "gene_3"])


def test_not_a_model(saved, tmp_path):
    _, cells = read("nb")
    with pytest.raises(ValueError, match="has no 'attr.pkl', 'model_params.pt', 'var_names.csv'"):
        trvae.TRVAE.from_scarches(tmp_path, cells)
    with pytest.raises(ValueError, match="Expected a folder or a TRVAE .* of type dict"):
        trvae.TRVAE.from_scarches({}, cells)
    folder = saved()
    for content, message in [
        (b"", "attr.pkl is damaged"),
        (pickle.dumps([1]), "does not hold the attributes"),
        (pickle.dumps({"beta_": 1}), "not a TRVAE of scArches 0.6, .* 'condition_key_'"),
        (pickle.dumps({"beta_": Path("a")}), "attr.pkl was not loaded: it asks for pathlib"),
    ]:
        (folder / "attr.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            trvae.TRVAE.from_scarches(folder, cells)
