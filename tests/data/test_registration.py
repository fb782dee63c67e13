"""Bad input: a clear error at once, and the user's data as they were."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import SMALL, fit

import trvae


def setup(adata, **kwargs):
    trvae.TRVAE.setup_anndata(adata, **({"condition_key": "condition"} | kwargs))


def with_obs(adata, key, value):
    adata.obs[key] = value
    return adata


def with_value(adata, value):
    adata.X = adata.X.toarray()
    adata.X[3, 2] = value
    return adata


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, {"condition_key": "stim"}, "condition_key 'stim' is not in adata.obs: 'condition'"),
        (None, {"labels_key": "type"}, "labels_key 'type' is not in adata.obs"),
        (None, {"layer": "counts"}, "layer 'counts' is not in adata.layers"),
        (None, {"size_factor_key": "size"}, "size_factor_key 'size' is not in"),
        (None, {"categorical_covariate_keys": ["donor"]}, "covariate_keys 'donor' is not in"),
        (None, {"continuous_covariate_keys": ["age"]}, "covariate_keys 'age' is not in"),
        (
            None,
            {"categorical_covariate_keys": "cell_type"},
            "categorical_covariate_keys='cell_type' is not a list",
        ),
        (lambda a: a[:0].copy(), {}, "empty: n_obs x n_vars is 0 x 60"),
        (lambda a: a[:, :0].copy(), {}, "empty: n_obs x n_vars is 240 x 0"),
        (lambda a: a[a.obs["condition"] == "control"].copy(), {}, "only one condition, 'control'"),
        (
            lambda a: with_obs(a, "condition", [None, *a.obs["condition"][1:]]),
            {},
            "1 of 240 rows of adata.obs have no value",
        ),
        (
            lambda a: with_obs(a, "size", np.zeros(a.n_obs)),
            {"size_factor_key": "size"},
            "'size' has values that are not positive",
        ),
        (
            lambda a: with_obs(a, "size", "large"),
            {"size_factor_key": "size"},
            "size_factor_key 'size' is not of real numbers",
        ),
        (
            lambda a: with_obs(a, "age", np.inf),
            {"continuous_covariate_keys": ["age"]},
            "'age' has infinite values",
        ),
    ],
)
def test_setup_refuses(adata, change, arguments, message):
    adata = adata if change is None else change(adata)
    before = adata.copy()
    with pytest.raises(ValueError, match=message):
        setup(adata, **arguments)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert dict(adata.uns) == dict(before.uns)


def test_setup_refuses_genes_of_one_name(adata):
    adata.var_names = ["twice", "twice", *adata.var_names[2:]]
    with pytest.raises(ValueError, match="not unique: 'twice'. Call adata.var_names_make_unique"):
        setup(adata)


@pytest.mark.parametrize(
    ("value", "gene_likelihood", "message"),
    [
        (np.nan, "nb", "adata.X has 1 values that are NaN or infinite"),
        (np.inf, "nb", "adata.X has 1 values that are NaN or infinite"),
        (np.nan, "normal", "adata.X has 1 values that are NaN or infinite"),
        (-1.0, "nb", "negative values .as low as -1., but gene_likelihood='nb' is for raw counts"),
        (0.5, "zinb", "not integers .such as 0.5., but gene_likelihood='zinb'"),
        (0.0, "normal", "holds only integers .* gene_likelihood='normal' is for log-normalised"),
    ],
)
def test_values_that_do_not_suit_the_likelihood(adata, value, gene_likelihood, message):
    adata = with_value(adata, value)
    setup(adata)
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE(adata, gene_likelihood=gene_likelihood)


def test_log_normalised_data_for_a_count_likelihood(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    setup(adata)
    with pytest.raises(ValueError, match="Register the layer that holds the counts"):
        trvae.TRVAE(adata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gene_likelihood": "gaussian"}, "gene_likelihood='gaussian' is not one of 'nb'"),
        ({"dispersion": "gene-batch"}, "dispersion='gene-batch' is not one of 'gene', 'gene-cond"),
        ({"decoder": "linear"}, "decoder='linear' is not one of 'additive', 'conditional'"),
        ({"normalization": "group"}, "normalization='group' is not one of"),
        ({"mmd_layer": "encoder"}, "mmd_layer='encoder' is not one of 'decoder', 'latent'"),
        ({"mmd_weight": -1}, "mmd_weight=-1 is not a number from 0 on"),
        ({"mmd_weight": float("nan")}, "mmd_weight=nan is not a number from 0 on"),
        ({"mmd_within_labels": True}, "needs labels: setup_anndata"),
        ({"n_latent": 0}, "n_latent=0 is not a positive integer"),
        ({"n_latent": True}, "n_latent=True is not a positive integer"),
        ({"hidden_sizes": 5}, "hidden_sizes=5 is not a list of positive integers"),
        ({"mmd_bandwidths": [0.0]}, "mmd_bandwidths=.0.0. are not positive"),
        ({"mmd_bandwidths": [float("nan")]}, "mmd_bandwidths=.nan. are not positive"),
        ({"seed": -1}, r"seed=-1 is not an integer from 0 to 2\*\*32 - 1"),
        ({"seed": 2**32}, r"seed=4294967296 is not an integer from 0 to 2\*\*32 - 1"),
        ({"hidden_sizes": []}, "hidden_sizes=.. is not a list of positive integers"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 is not in"),
        ({"dropout_rate": None}, "dropout_rate=None is not in"),
        ({"mmd_bandwidths": 5}, "mmd_bandwidths=5 are not positive"),
        ({"linear_weight": 1.5}, "linear_weight=1.5 is not a number from 0 to 1"),
    ],
)
def test_wrong_model_arguments(adata, arguments, message):
    setup(adata)
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE(adata, **arguments)


def test_model_without_data():
    with pytest.raises(ValueError, match="registered with TRVAE.setup_anndata, or a registry"):
        trvae.TRVAE()


def test_untrained_model(adata):
    setup(adata)
    model = trvae.TRVAE(adata, **SMALL)
    for ask in (model.get_latent_representation, model.get_mmd_representation):
        with pytest.raises(RuntimeError, match="train"):
            ask()
    with pytest.raises(RuntimeError, match="train"):
        model.transfer(target_condition="treated")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, 2:].copy(), "2 of the model's 60 genes .*: 'gene_0', 'gene_1'"),
        (lambda a: a[:0].copy(), "empty: n_obs x n_vars is 0 x 60"),
        (lambda a: with_value(a, np.nan), "NaN or infinite"),
        (lambda a: with_value(a, -2), "negative values"),
        (lambda a: AnnData(a.X.log1p(), a.obs, a.var), "not integers"),
        (
            lambda a: with_obs(a, "condition", "other"),
            "not trained on: 'other'. It knows 'control'",
        ),
        (lambda a: with_obs(a, "condition", np.nan), "100 of 100 rows of adata.obs have no value"),
        (lambda a: a[:, [0, *range(60)]].copy(), "not unique: 'gene_0'"),
    ],
)
def test_prediction_refuses(trained, control, change, message):
    cells = change(control)
    with pytest.raises(ValueError, match=message):
        trained.transfer(cells, "treated")
    with pytest.raises(ValueError, match=message):
        trained.get_latent_representation(cells)


def test_unused_categories_are_no_conditions(adata):
    adata.obs["condition"] = adata.obs["condition"].cat.add_categories(["planned"])
    model = fit(adata)
    assert model.conditions == ["control", "treated"]
    with pytest.raises(ValueError, match="'planned' is not one of the model's conditions"):
        model.transfer(target_condition="planned")


@pytest.mark.parametrize("values", [[0, 1], [False, True], [0.5, 2.0]])
def test_conditions_that_are_not_strings(adata, values):
    adata.obs["dose"] = np.where(adata.obs["condition"] == "control", *values)
    model = fit(adata, setup={"condition_key": "dose"})
    assert model.conditions == values
    predicted = model.transfer(target_condition=values[1], source_condition=values[0])
    assert (predicted.obs["dose"] == values[1]).all()


def test_conditions_of_mixed_types(adata):
    adata.obs["dose"] = np.array([0, "high"], dtype=object)[
        (adata.obs["condition"] == "treated").to_numpy().astype(int)
    ]
    with pytest.raises(ValueError, match="'dose' mixes values of types 'int', 'str'"):
        setup(adata, condition_key="dose")


def test_genes_in_another_order_are_matched_where_the_cells_become_the_models(adata, tmp_path):
    model = fit(adata)
    model.save(str(tmp_path / "model"))
    shuffled = adata[:, ::-1].copy()
    before = shuffled.copy()
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=shuffled)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert list(loaded.adata.var_names) == list(adata.var_names)
    assert "_scvi_uuid" not in shuffled.uns
    assert shuffled.obs.equals(before.obs)

    query = shuffled.copy()
    query.obs["condition"] = "other"
    mapped = trvae.TRVAE.load_query_data(query, model)
    assert mapped.conditions[-1] == "other"
    np.testing.assert_array_equal(mapped.adata.X.toarray(), adata.X.toarray())

    lacking = shuffled[:, 1:].copy()
    for give in (
        lambda: trvae.TRVAE.load(tmp_path / "model", adata=lacking),
        lambda: trvae.TRVAE.load_query_data(lacking, model),
    ):
        with pytest.raises(ValueError, match="1 of the model's 60 genes are not in .*gene_59"):
            give()
    trvae.TRVAE.prepare_query_anndata(lacking, model)
    assert trvae.TRVAE.load_query_data(lacking, model).conditions == model.conditions


def test_unknown_category_of_a_covariate(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = fit(adata, setup={"categorical_covariate_keys": ["donor"]})
    cells = adata[:5].copy()
    cells.obs["donor"] = "c"
    with pytest.raises(ValueError, match="'donor'. has values that .*: 'c'. It knows 'a', 'b'"):
        model.transfer(cells, "treated")


def test_all_zero_cells_and_genes_are_fine(adata):
    adata.X = adata.X.toarray()
    adata.X[0] = 0
    adata.X[:, 0] = 0
    model = fit(adata)
    predicted = model.get_transferred_expression(target_condition="treated")
    assert np.isfinite(predicted).all(axis=None)
    assert np.isfinite(model.history["train_loss"].astype(float)).all(axis=None)
