"""The loop over labels, conditions, methods and seeds, with methods whose answers are known."""

import functools

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from helpers import QUIET, SMALL, Unchanged, bars
from lightning.pytorch import Callback
from mudata import MuData

import trvae
from trvae.evaluation._methods import settings_of
from trvae.evaluation._split import hold_out

KEYS = {"condition_key": "condition", "labels_key": "cell_type", "source_condition": "control"}
HELD_OUT = KEYS | {"target_condition": "treated", "label": "type_0"}
evaluate = functools.partial(trvae.evaluate, **KEYS, progress_bar=False)


class Truth:
    """A method that knows the held-out cells."""

    def __init__(self, adata, fails_at=None):
        self.adata, self.fails_at, self.fitted = adata, fails_at, 0

    def __call__(self):
        return self

    def fit(self, adata, *, condition_key, labels_key, layer, library_key, seed):
        if self.fitted == self.fails_at:
            raise KeyboardInterrupt
        self.fitted += 1
        self.seen, self.seed = adata.obs_names, seed
        adata.obs["scribble"] = 1

    def transfer(self, adata, target_condition, *, seed):
        wanted = [target_condition, adata.obs["cell_type"].iloc[0]]
        truth = self.adata[(self.adata.obs[["condition", "cell_type"]] == wanted).all(axis=1)]
        assert not truth.obs_names.isin(self.seen).any()
        assert seed == self.seed
        return truth.copy()


def test_one_row_for_each_label_condition_method_and_seed():
    # The third label has too few cells to be held out by default.
    adata = trvae.datasets.simulated(
        n_cells=[[25, 25, 19]] * 3, n_genes=50, conditions=["control", "a", "b"]
    )
    before, method = adata.copy(), Truth(adata)
    table = evaluate(adata, methods={"truth": method, "again": method}, seeds=[0, 1])
    assert method.fitted == 2 * 2 * 2 * 2
    assert set(table["label"]) == {"type_0", "type_1"}
    assert set(table["target_condition"]) == {"a", "b"}
    assert table["method"].value_counts()[["truth", "again", "replicate"]].tolist() == [8, 8, 4]
    assert table.loc[table["method"] == "replicate", "seed"].isna().all()
    truth = table[table["method"] == "truth"]
    np.testing.assert_allclose(truth[["r2_mean", "change", "de_overlap", "de_direction"]], 1)
    np.testing.assert_allclose(truth[["rmse", "rmse_specific", "energy_distance"]], 0, atol=1e-7)
    assert adata.obs.equals(before.obs)
    assert (adata.X != before.X).nnz == 0


def test_an_interrupted_evaluation_resumes_where_it_was(adata, tmp_path):
    chosen = {"labels": np.array(["type_1", "type_0"]), "target_conditions": ["treated"]}
    chosen["seeds"] = range(2)
    whole = evaluate(adata, **chosen, methods={"truth": Truth(adata)})
    assert list(whole["label"].unique()) == ["type_1", "type_0"]
    with pytest.raises(KeyboardInterrupt):
        evaluate(adata, **chosen, methods={"truth": Truth(adata, fails_at=3)}, out=tmp_path)
    chosen |= {"methods": {"truth": (method := Truth(adata))}, "out": tmp_path}
    for _ in range(2):
        pd.testing.assert_frame_equal(evaluate(adata, **chosen), whole)
    assert method.fitted == 1
    with pytest.raises(ValueError, match="other data or settings .they differ in n_top_genes"):
        evaluate(adata, **chosen, n_top_genes=10)


def test_a_baseline_whose_line_was_removed_is_computed_again(adata, tmp_path):
    chosen = {"labels": ["type_0"], "methods": {"truth": Truth(adata)}, "out": tmp_path}
    whole = evaluate(adata, **chosen)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "mean shift" not in line))
    method = chosen["methods"]["truth"]
    fitted = method.fitted
    pd.testing.assert_frame_equal(evaluate(adata, **chosen), whole)
    assert method.fitted == fitted


def test_cells_that_are_set_up_stay_so(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    trained = functools.partial(
        trvae.TRVAEMethod, {"hidden_sizes": (8,)}, {"max_epochs": 1} | QUIET
    )
    evaluate(adata, labels=["type_0"], seeds=[0], methods={"trVAE": trained})
    assert trvae.TRVAE(adata).adata is adata


def test_by_default_what_no_other_label_can_tell_is_left_out(adata):
    other = adata[(adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "treated")]
    other = other.copy()
    other.obs["condition"], other.obs_names = "other", other.obs_names + "o"
    cells = anndata.concat([adata, other])
    table = evaluate(cells, methods={"truth": Truth(cells)}, seeds=[0])
    assert set(table["target_condition"]) == {"treated"}


def test_values_that_are_not_numbers_are_named(adata):
    adata.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="adata.X has 1 values that are NaN"):
        evaluate(adata, methods={"truth": Truth(adata)})


def test_results_of_other_settings_of_a_method_are_not_taken(adata, tmp_path):
    def method(**train):
        return {
            "ours": functools.partial(trvae.TRVAEMethod, SMALL, QUIET | {"max_epochs": 1} | train)
        }

    chosen = {"labels": ["type_0"], "seeds": [0], "out": tmp_path}
    table = evaluate(adata, **chosen, methods=method())
    pd.testing.assert_frame_equal(evaluate(adata, **chosen, methods=method()), table)
    with pytest.raises(ValueError, match="results of 'ours' with other settings.*another name"):
        evaluate(adata, **chosen, methods=method(max_epochs=2))
    others = {"theirs": method(max_epochs=2)["ours"]}
    assert evaluate(adata, **chosen, methods=others)["method"].iloc[0] == "theirs"


def test_results_of_another_covariate_are_not_taken(adata):
    method = functools.partial(
        trvae.TRVAEMethod,
        setup_kwargs={"categorical_covariate_keys": ["donor"], "size_factor_key": None},
    )
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    before = settings_of(method, adata)
    assert settings_of(method, adata.copy()) == before
    adata.obs["donor"] = adata.obs["donor"].to_numpy()[::-1]
    assert settings_of(method, adata) != before


def test_methods_are_the_same_in_another_process(adata):
    methods = [lambda: trvae.TRVAEMethod(train_kwargs={"callbacks": [Callback()]})] * 2
    kept = [Callback(), Callback()]
    assert repr(kept[0]) != repr(kept[1])
    assert len({settings_of(method, adata) for method in methods}) == 1


class StopAfter(Callback):
    """A callback without a representation of its own."""

    def __init__(self, n_epochs, owner=None):
        self.n_epochs, self.owner = np.full(2000, n_epochs), owner or self
        self.best = torch.tensor(torch.inf)


class Other(trvae.TRVAEMethod):
    """A method with a setting of its own."""

    def __init__(self, shrink):
        super().__init__()
        self.shrink = shrink


@pytest.mark.parametrize(
    "make",
    [
        lambda x: trvae.TRVAEMethod(train_kwargs={"callbacks": [StopAfter(x)]}),
        lambda x: trvae.TRVAEMethod(train_kwargs={"callbacks": [StopAfter(0, StopAfter(x))]}),
        lambda x: trvae.TRVAEMethod(transfer_kwargs={"indices": np.arange(2000) == 1000 + x}),
        lambda x: trvae.TRVAEMethod(model_kwargs={"weights": torch.arange(2000) == 1000 + x}),
        lambda x: trvae.TRVAEMethod(train_kwargs={"callbacks": (StopAfter(x),)}),
        lambda x: trvae.TRVAEMethod(
            transfer_kwargs={"indices": pd.Series(range(2000)) == 1000 + x}
        ),
        Other,
    ],
)
def test_settings_are_compared_to_the_last_value(adata, make):
    one, other = (settings_of(functools.partial(make, x), adata) for x in (1, 2))
    assert one != other
    assert settings_of(functools.partial(make, 1), adata) == one


@pytest.mark.parametrize(
    "wrong", [{"transfer_kwargs": {"estimat": 1}}, {"transfer_kwargs": {"seed": 1}},
              {"calibrate_kwargs": {"folds": 1}}]
)  # fmt: skip
def test_arguments_that_the_model_lacks_are_found_at_once(wrong):
    with pytest.raises(TypeError, match=r"estimat|seed|folds"):
        trvae.TRVAEMethod(**wrong)


def test_what_a_method_returns_is_checked(adata):
    class Array(Unchanged):
        def transfer(self, adata, target_condition, *, seed):
            return adata.X

    with pytest.raises(ValueError, match="Array.transfer must return an AnnData, got a "):
        evaluate(adata, methods={"array": Array}, seeds=[0])


def test_conditions_are_found_by_their_value(adata):
    adata.obs["condition"] = (adata.obs["condition"] == "treated").astype(int)
    table = trvae.evaluate(
        adata, condition_key="condition", labels_key="cell_type", source_condition=False,
        target_conditions=[True], methods={"none": Unchanged}, seeds=[0], progress_bar=False,
    )  # fmt: skip
    assert set(table["target_condition"]) == {1}
    assert set(table["source_condition"]) == {0}


@pytest.mark.parametrize("condition", ["control", "treated"])
@pytest.mark.parametrize("target_sum", [None, 1e4])
def test_a_group_without_counts_can_be_compared_with_logarithms(adata, condition, target_sum):
    sc.pp.normalize_total(adata, target_sum=target_sum)
    sc.pp.log1p(adata)
    if target_sum is not None:
        adata.uns["log1p"]["target_sum"] = target_sum
    adata.X = adata.X.toarray()
    cells = {
        name: ((adata.obs["cell_type"] == "type_1") & (adata.obs["condition"] == name)).to_numpy()
        for name in ("control", "treated")
    }
    adata.X[cells[condition]] = 0
    means = [adata.X[group].mean(0) for group in cells.values()]
    table = evaluate(adata, methods={"none": Unchanged}, seeds=[0])
    assert "linear counts" not in set(table["method"])
    of_empty = table[(table["label"] == "type_1") & (table["method"] == "no change")]
    rmse = np.sqrt(np.square(means[1] - means[0]).mean())
    np.testing.assert_allclose(of_empty["rmse"], rmse, rtol=1e-6)


def test_seeds_count_once(adata):
    table = evaluate(adata, methods={"none": Unchanged}, seeds=[0, 0], labels=["type_0"])
    assert (table["method"] == "none").sum() == 1


@pytest.mark.parametrize("n_genes", [None, 20])
def test_cells_without_counts(adata, n_genes):
    """Most cells are empty; what is left is compared."""
    adata.X = adata.X.toarray() * (np.arange(240) % 5 == 0)[:, None]
    table = evaluate(adata, methods={"none": Unchanged}, seeds=[0], n_genes=n_genes)
    assert np.isfinite(table["rmse"]).all()
    ours, same = (table[table["method"] == name] for name in ("none", "no change"))
    np.testing.assert_allclose(ours["rmse"], same["rmse"])


@pytest.mark.parametrize("n_labels", [3, 4])
def test_conditions_can_be_true_and_false(n_labels):
    adata = trvae.datasets.simulated(n_cells=10, n_genes=20, n_cell_types=n_labels)
    adata.obs["condition"] = adata.obs["condition"] == "treated"
    arguments = {"labels": ["type_0"], "source_condition": False, "methods": {"none": Unchanged}}
    table = evaluate(adata, seeds=[0], **arguments)
    assert table["target_condition"].unique() == [True]
    is_left = (adata.obs["cell_type"] == "type_0") | ~adata.obs["condition"]
    is_left |= adata.obs["cell_type"] == "type_1"
    evaluate(adata[is_left].copy(), seeds=[0], **arguments)


def test_genes_are_chosen_without_the_held_out_cells(adata):
    extreme = adata.copy()
    held_out = (extreme.obs["condition"] == "treated") & (extreme.obs["cell_type"] == "type_0")
    extreme.X = extreme.X.toarray()
    silent = np.argsort(extreme.X[~held_out].var(0))[:5]
    extreme.X[np.flatnonzero(held_out)[::2][:, None], silent] = 500
    one, other = (hold_out(cells, **HELD_OUT, n_genes=20) for cells in (adata, extreme))
    assert one.train.n_vars == 20
    assert list(one.train.var_names) == list(other.train.var_names)
    # Library sizes are still those over all genes.
    library = one.control.obs["_library_size"]
    np.testing.assert_allclose(library, adata[library.index].X.sum(1).A1)
    adata.X = adata.X.log1p()
    assert hold_out(adata, **HELD_OUT, n_genes=20).keys["library_key"] is None


def test_trvae_is_the_default(adata, monkeypatch):
    train = functools.partialmethod(trvae.TRVAE.train, max_epochs=1)
    monkeypatch.setattr(trvae.TRVAE, "train", train)
    table = evaluate(adata, labels=["type_0"], seeds=[3]).set_index("method")
    assert table.loc["trVAE", "seed"] == 3
    assert np.isfinite(table.loc["trVAE", "energy_distance"])


def test_a_method_passes_on_what_it_is_given(adata, monkeypatch):
    passed = {}
    monkeypatch.setattr(trvae.TRVAE, "train", lambda self, **kwargs: passed.update(kwargs))
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "one", "two")
    setup = {"categorical_covariate_keys": ["donor"]}
    split, method = (
        hold_out(adata, **HELD_OUT),
        trvae.TRVAEMethod(SMALL, QUIET, setup_kwargs=setup),
    )
    with pytest.raises(RuntimeError, match="call fit first"):
        method.transfer(split.control, "treated", seed=0)
    method.fit(split.train, seed=7, **split.keys)
    assert method.model.summary_stats["n_extra_categorical_covs"] == 1
    assert (method.model.module.n_latent, method.model.seed) == (SMALL["n_latent"], 7)
    assert passed == QUIET


def test_images_are_evaluated_as_they_are():
    images = bars(n=20)
    setup = {"image_shape": images.uns["image_shape"]}
    table = trvae.evaluate(
        images, condition_key="condition", labels_key="shape", source_condition="dark",
        labels=["level"], seeds=[0], normalize=False, progress_bar=False,
        methods={"trVAE": lambda: trvae.TRVAEMethod(
            {}, {"max_epochs": 1, **QUIET}, setup_kwargs=setup, model_cls=trvae.ImageTRVAE
        )},
    ).set_index("method")  # fmt: skip
    assert np.isfinite(table.loc["trVAE", "energy_distance"])
    means = (
        images.to_df().astype(float).groupby([images.obs["shape"], images.obs["condition"]]).mean()
    )
    change = means.loc["level", "bright"] - means.loc["level", "dark"]
    assert table.loc["no change", "rmse"] == pytest.approx(np.sqrt(np.mean(change**2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["type_0", "type_9"]}, "label 'type_9' is not in .*'cell_type'.*: 'type_0'"),
        ({"source_condition": "ctrl"}, "source_condition 'ctrl' is not in adata.obs"),
        ({"target_conditions": ["stim"]}, "target_condition 'stim' is not in adata.obs"),
        ({"target_conditions": ["treated", "control"]}, "has the source condition 'control'"),
        ({"labels": np.array(["type_0", "type_9"])}, "label .*'type_9'.* is not in"),
        ({"labels": "type_0"}, "labels must be None or a list .*, got 'type_0'"),
        ({"labels": []}, r"labels must be None or a list with at least one element, got \[\]"),
        ({"methods": {"truth": 1}}, "methods must be .* functions that make a method"),
        ({"target_conditions": "treated"}, "target_conditions must be None or a list"),
        ({"condition_key": "cond"}, "condition_key 'cond' is not in adata.obs"),
        ({"methods": {"replicate": Truth}}, "names of baselines: 'replicate'"),
        ({"methods": {}}, "methods must be .* at least one"),
        ({"seeds": [0, -1]}, "seeds must be"),
        ({"library_key": "size"}, "library_key 'size' is not in adata.obs"),
        ({"library_key": "condition", "normalize": False}, "library_key"),
        ({"n_genes": 0}, "n_genes must be"),
        ({"n_genes": 1000}, "n_genes=1000, but there are only 60 genes"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(adata, arguments, message):
    method = Truth(adata)
    with pytest.raises(ValueError, match=message):
        evaluate(adata, **({"methods": {"truth": method}} | arguments))
    assert method.fitted == 0


def test_cells_that_cannot_be_held_out_are_refused(adata):
    with pytest.raises(ValueError, match="No label has 20 cells under 'control'"):
        evaluate(adata[np.r_[0:10, 120:130]])
    with pytest.raises(ValueError, match="'type_0' has 0 cells under 'control'"):
        hold_out(adata[40:], **HELD_OUT)
    method = Truth(adata)
    chosen = {"methods": {"truth": method}, "labels": ["type_1", "type_0"]}
    # Of these, type 0 has one cell under treatment, or is the only one with cells under both.
    few = adata[(adata.obs["cell_type"] != "type_0") | (np.arange(240) <= 120)]
    with pytest.raises(ValueError, match="'type_0' has 1 cells under 'treated'; 2 or more"):
        evaluate(few, **chosen)
    alone = adata[(adata.obs["cell_type"] == "type_0") | (adata.obs["condition"] == "control")]
    with pytest.raises(ValueError, match="No label but 'type_0' has cells under both"):
        evaluate(alone, **chosen | {"labels": ["type_0"]})
    assert method.fitted == 0
    for other in (MuData({"rna": adata}), adata.to_df()):
        with pytest.raises(ValueError, match="takes an AnnData"):
            evaluate(other)
