"""Categories are found by name, in whatever order, type and home a column declares them."""

import itertools

import mudata
import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL, assert_unchanged, content

import trvae
from trvae.data._codes import codes_of, extended, used_categories

KEYS = {
    "condition_key": "condition",
    "labels_key": "cell_type",
    "categorical_covariate_keys": ["sex", "batch", "smokes"],
}
COLUMNS = ["condition", "cell_type", "sex", "batch", "smokes"]


def with_covariates(adata):
    """Covariates that are strings, integers and booleans."""
    rng = np.random.default_rng(0)
    for name, values in {"sex": ["m", "f"], "batch": [10, 9], "smokes": [True, False]}.items():
        adata.obs[name] = pd.Categorical(rng.choice(values, adata.n_obs), categories=values)
    return adata


def as_mudata(adata):
    return mudata.MuData({"rna": adata.copy()})


def trained(data):
    if isinstance(data, mudata.MuData):
        modalities = dict.fromkeys(["condition_key", "labels_key", *list(KEYS)[2:]], "rna")
        trvae.TRVAE.setup_mudata(data, **KEYS, modalities=modalities)
    else:
        trvae.TRVAE.setup_anndata(data, **KEYS)
    model = trvae.TRVAE(data, seed=0, **SMALL)
    model.train(max_epochs=2, **QUIET)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of AnnData and one of MuData, and where they are saved. Not to be changed."""
    adata = with_covariates(trvae.datasets.simulated(n_cells=30, n_genes=20))
    folder = tmp_path_factory.mktemp("models")
    made = {"anndata": trained(adata), "mudata": trained(as_mudata(adata))}
    for name, model in made.items():
        model.save(folder / name)
    return adata, made, folder


def reversed_order(column):
    return pd.Categorical(column, categories=list(column.cat.categories)[::-1])


def unused(column):
    return column.cat.set_categories([*list(column.cat.categories)[::-1], "never"])


WAYS = {
    "in another order": reversed_order,
    "ordered in another order": lambda column: reversed_order(column).as_ordered(),
    "with an unused category": unused,
    "not categorical": lambda column: column.astype(object),
    "one category only": lambda column: column.cat.remove_unused_categories(),
}
ENTRIES = {
    "new cells": lambda model, path, cells: model,
    "load": lambda model, path, cells: trvae.TRVAE.load(path, cells),
    "query": lambda model, path, cells: trvae.TRVAE.load_query_data(cells, model),
    "query of a saved reference": lambda model, path, cells: trvae.TRVAE.load_query_data(
        cells, path
    ),
}


@pytest.mark.parametrize("kind", ["anndata", "mudata"])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("way", WAYS)
def test_categories_are_found_by_name(models, kind, entry, way):
    adata, made, folder = models
    model, chosen = made[kind], np.arange(0, adata.n_obs, 2)
    # Cells of one sex, so that one category is lacking.
    chosen = chosen[adata.obs["sex"].iloc[chosen] == "f"]
    cells = adata[chosen].copy()
    for name in COLUMNS:
        cells.obs[name] = WAYS[way](cells.obs[name].astype("category"))
    del cells.obsm
    cells = cells if kind == "anndata" else as_mudata(cells)
    expected = model.get_normalized_expression(indices=chosen, return_numpy=True)
    entered = ENTRIES[entry](model, folder / kind, cells)
    found = entered.get_normalized_expression(cells, return_numpy=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


WRONG = {
    "integers for strings": ("condition", lambda column: pd.factorize(column)[0], "type number"),
    "strings for integers": ("batch", lambda column: column.astype(str), "type string"),
    "integers for booleans": ("smokes", lambda column: column.astype(int), "type number"),
    "another label type": ("cell_type", lambda column: pd.factorize(column)[0], "type number"),
}


# Predictions ignore labels.
@pytest.mark.parametrize(
    ("case", "entry"),
    sorted({*itertools.product(WRONG, ENTRIES)} - {("another label type", "new cells")}),
)
def test_categories_of_another_type_are_refused(models, entry, case):
    adata, made, folder = models
    column, change, message = WRONG[case]
    cells = adata[:60].copy()
    cells.obs = cells.obs[COLUMNS]
    cells.obs[column] = change(cells.obs[column])
    del cells.obsm
    before = content(cells)
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] has values of {message}"):
        ENTRIES[entry](made["anndata"], folder / "anndata", cells).get_latent_representation(cells)
    assert_unchanged(cells, before)


@pytest.mark.parametrize(
    ("column", "value"),
    [("condition", "new"), ("cell_type", "new"), ("sex", "new"), ("batch", 11)],
)
def test_unknown_categories_are_refused_by_load(models, column, value):
    adata, _, folder = models
    cells = adata[:60].copy()
    cells.obs = cells.obs[COLUMNS]
    cells.obs[column] = cells.obs[column].astype(object)
    cells.obs.loc[cells.obs_names[0], column] = value
    del cells.obsm
    before = content(cells)
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] has values that .* not trained on"):
        trvae.TRVAE.load(folder / "anndata", cells)
    assert_unchanged(cells, before)


@pytest.mark.parametrize("column", COLUMNS)
def test_columns_that_changed_are_noticed_before_training(column):
    adata = with_covariates(trvae.datasets.simulated(n_cells=30, n_genes=20))
    trvae.TRVAE.setup_anndata(adata, **KEYS)
    model = trvae.TRVAE(adata, seed=0, **SMALL)
    adata.obs[column] = adata.obs[column].array[::-1]
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] has changed"):
        model.train(max_epochs=1, **QUIET)


def test_codes():
    column = pd.Series(pd.Categorical(["b", "a", "c"], categories=["c", "x", "b", "a"]))
    assert list(used_categories(column)) == ["c", "b", "a"]
    assert list(codes_of(column, ["a", "b"])) == [1, 0, -1]
    assert list(extended(np.array(["a", "b"]), column)) == ["a", "b", "c"]
    assert list(extended(np.array([2, 1]), pd.Series([3, 1, 0]))) == [2, 1, 0, 3]
