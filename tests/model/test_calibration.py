"""Weights and errors from labels that are left out."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL, assert_unchanged, content, fit, is_group

import trvae
from trvae.model import _calibration
from trvae.model._calibration import _Fold
from trvae.model._labels import weights_of
from trvae.model._sentences import _of_left_out

FROM_CONTROL = {"target_condition": "treated", "source_condition": "control"}


def types(**kwargs):
    return trvae.datasets.simulated(n_cells=25, n_genes=30, **({"n_cell_types": 4} | kwargs))


@pytest.fixture(scope="module")
def calibrated():
    """A model that has not seen type 0 under treatment, what calibration says, and all cells."""
    adata = types()
    model = fit(adata[~is_group(adata)], train={"max_epochs": 5})
    return model, model.calibrate("treated", progress_bar=False), adata


def trainings(monkeypatch, interrupt_at=None):
    """Count the models that are trained, and interrupt one of them."""
    changes, done = _Fold.changes, []

    def counted(fold):
        done.append(fold.labels)
        if len(done) == interrupt_at:
            raise KeyboardInterrupt
        return changes(fold)

    monkeypatch.setattr(_Fold, "changes", counted)
    return done


def test_left_out_labels_are_listed(calibrated):
    model, table, adata = calibrated
    assert sorted(table.index) == ["type_1", "type_2", "type_3"]
    assert set(table.attrs["weights"]) == {"network", "linear", "shift"}
    assert (table["rmse_linear"] < table["rmse_no_change"]).all()
    assert (table["rmse"] < table["rmse_no_change"]).all()
    # Twice as much is known after the second call, at no cost.
    pd.testing.assert_frame_equal(model.calibrate("treated", progress_bar=False), table)


def test_predictions_change_and_stay_the_same_on_disk(calibrated, tmp_path):
    model, _, adata = calibrated
    control = adata[is_group(adata, "control")].copy()
    before = content(control)
    predicted = model.get_transferred_expression(control, "treated")
    model.save(tmp_path / "model", save_anndata=True)
    loaded = trvae.TRVAE.load(tmp_path / "model", accelerator="cpu")
    pd.testing.assert_frame_equal(loaded.get_transferred_expression(control, "treated"), predicted)
    assert weights_of(loaded, 0, 1) == weights_of(model, 0, 1)
    assert loaded.transfer(control, "treated").uns["trvae"]["is_calibrated"]
    for arguments in ({"estimate": "decoded"}, {"target_condition": "control"}):
        result = loaded.transfer(control, **{"target_condition": "treated"} | arguments)
        assert not result.uns["trvae"]["is_calibrated"]
    summary = loaded.assess_transfer(control, "treated")["summary"]["type_0"]
    assert summary.startswith("Left out one at a time, 3 measured labels were predicted with")
    means, kept = model.get_transferred_means(control, "treated"), loaded.calibration_
    loaded.calibration_ = {}
    plain = loaded.get_transferred_expression(control, "treated")
    assert not plain.equals(predicted)
    assert not loaded.get_transferred_means(control, "treated").equals(means)
    # Of other weights it is not known.
    loaded.calibration_ = kept
    loaded.train(max_epochs=1, **QUIET)
    assert loaded.calibration_ == {}
    assert_unchanged(control, before)


@pytest.mark.parametrize(("network", "warns"), [(0.94, True), (0.956, False), (0.97, False)])
def test_a_network_that_is_worse_than_the_linear_response_is_told(network, warns):
    """By digits that are shown: 0.96 is not less than 0.96."""
    measures = {"r2_mean": 0.97, "r2_mean_network": network, "r2_mean_linear": 0.959}
    errors = {"rmse": 0.1, "rmse_linear": 0.2, "rmse_shift": 0.3, "rmse_no_change": 0.4}
    table = pd.DataFrame(measures | errors | {"r2_mean_no_change": 0.5}, index=["type_0"])
    text = " ".join(_of_left_out(table))
    assert ("longer training" in text) == warns


def test_nothing_is_said_of_the_labels_of_a_fold():
    model = fit(types(n_cell_types=3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.calibrate("treated", progress_bar=False)
    assert not [each for each in caught if "labels_key" in str(each.message)]


def test_nothing_of_a_left_out_label_is_seen(calibrated):
    model, _, adata = calibrated
    other = adata[~is_group(adata)].copy()
    changed = is_group(other, label="type_2")
    other.X[np.flatnonzero(changed)] = other.X[np.flatnonzero(changed)] * 3
    again = fit(other, train={"max_epochs": 5})
    again.calibrate("treated", progress_bar=False)
    for part in ("network", "linear"):
        ours, theirs = (m.calibration_["0>1"][part] for m in (model, again))
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert (ours[[0, 2]] != theirs[[0, 2]]).any()


def test_the_order_of_folds_and_their_number(monkeypatch):
    adata = types()
    model = fit(adata)
    folds = trainings(monkeypatch)
    table = model.calibrate("treated", max_folds=3, progress_bar=False)
    assert sorted(map(len, folds)) == [1, 1, 2]
    assert list(table.index) == [f"type_{i}" for i in range(4)]
    fold = model.calibration_["0>1"]["fold"]
    (together,) = [labels for labels in folds if len(labels) == 2]
    assert {f"type_{i}" for i in np.flatnonzero(fold == np.bincount(fold).argmax())} == set(
        together
    )


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_interruption_loses_nothing(monkeypatch, tmp_path, on_disk):
    adata = types()
    model = fit(adata)
    arguments = {"checkpoint_dir": tmp_path / "folds" if on_disk else None, "progress_bar": False}
    done = trainings(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        model.calibrate("treated", **arguments)
    assert model.calibration_ == {}
    if on_disk:
        model = fit(adata)
    table = model.calibrate("treated", **arguments)
    assert len(done) == 5
    pd.testing.assert_frame_equal(fit(adata).calibrate("treated", progress_bar=False), table)
    assert len(done) == 9
    if on_disk:
        # Results of other cells are not taken.
        other = types(seed=1)
        fit(other).calibrate("treated", **arguments)
        assert len(done) == 13


def test_several_processes_give_the_same(calibrated):
    model, table, adata = calibrated
    again = fit(adata[~is_group(adata)], train={"max_epochs": 5})
    pd.testing.assert_frame_equal(
        again.calibrate("treated", n_jobs=2, progress_bar=False), table, rtol=1e-4
    )


def test_cells_in_a_file_and_covariates(tmp_path):
    adata = types(n_batches=2)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    setup = {"layer": "counts", "categorical_covariate_keys": ["batch"]}
    in_memory = fit(adata, setup=setup)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    in_memory.save(tmp_path / "model")
    in_file = trvae.TRVAE.load(tmp_path / "model", backed, accelerator="cpu")
    tables = [m.calibrate("treated", progress_bar=False) for m in (in_memory, in_file)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_models_are_trained_as_this_one(monkeypatch):
    given = {"max_epochs": 2, "batch_size": 64, "train_size": 1.0, "plan_kwargs": {"lr": 5e-3}}
    given |= {"shuffle_set_split": False, "check_val_every_n_epoch": 2, "gradient_clip_val": 0.5}
    given |= {"early_stopping_patience": 7, "precision": "bf16-mixed"}
    model = fit(types(), train=given, n_latent=3)
    model.train(max_epochs=1, **QUIET | {k: v for k, v in given.items() if k != "max_epochs"})
    trained = []
    train = trvae.TRVAE.train

    def kept(self, **kwargs):
        train(self, **kwargs)
        trained.append((kwargs, self.module.n_latent, self.training_))

    monkeypatch.setattr(trvae.TRVAE, "train", kept)
    model.calibrate("treated", progress_bar=False)
    for kwargs, n_latent, training in trained:
        assert n_latent == 3
        assert training == model.training_
        assert kwargs["max_epochs"] == 3
        assert kwargs["plan_kwargs"]["lr"] == 5e-3
        for name in given.keys() - {"max_epochs", "plan_kwargs"}:
            assert kwargs[name] == given[name]


def test_of_many_cells_some_of_every_donor_are_predicted(monkeypatch):
    """Cells of a file often are in the order of donors."""
    seen = []

    def note(model, cells, source, target):
        seen.append(cells.obs_names.to_numpy())
        return changes_of(model, cells, source, target)

    changes_of = _calibration._changes_of
    monkeypatch.setattr(_calibration, "_MAX_CELLS", 12)
    monkeypatch.setattr(_calibration, "_changes_of", note)
    adata = types()
    fit(adata, train={"max_epochs": 1}).calibrate("treated", progress_bar=False)
    for chosen in seen:
        cells = adata.obs_names[is_group(adata, "control", adata.obs["cell_type"][chosen[0]])]
        assert len(chosen) == 12
        assert 0 < np.isin(chosen, cells[:12]).sum() < 12


def test_without_an_effect_hardly_anything_is_predicted():
    adata = types(n_cell_types=6, effect_size=0.0)
    train = {"max_epochs": 8, "plan_kwargs": {"lr": 1e-2}}
    model = fit(adata[~is_group(adata)], train=train)
    control = adata[is_group(adata, "control")].copy()
    before = model.assess_transfer(control, "treated").loc["type_0", "change"]
    model.calibrate("treated", progress_bar=False)
    assert model.assess_transfer(control, "treated").loc["type_0", "change"] < 0.3 * before


def test_log_normalised_values_and_ensembles():
    adata = types()
    adata.X = adata.X.log1p()
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    ensemble = trvae.TRVAEEnsemble(adata, n_models=2, gene_likelihood="normal", **SMALL)
    ensemble.train(max_epochs=2, **QUIET)
    plain = ensemble.get_transferred_expression(**FROM_CONTROL)
    table = ensemble.calibrate("treated", progress_bar=False)
    assert np.isfinite(table).all(axis=None)
    assert not ensemble.get_transferred_expression(**FROM_CONTROL).equals(plain)


def test_evaluation_of_calibrated_models():
    kwargs = {"model_kwargs": SMALL, "train_kwargs": {"max_epochs": 2} | QUIET}
    table = trvae.evaluate(
        types(),
        condition_key="condition",
        labels_key="cell_type",
        source_condition="control",
        labels=["type_0"],
        seeds=[0],
        methods={
            "plain": lambda: trvae.TRVAEMethod(**kwargs),
            "calibrated": lambda: trvae.TRVAEMethod(
                **kwargs, calibrate_kwargs={"progress_bar": False}
            ),
        },
        progress_bar=False,
    ).set_index("method")
    assert table.loc["plain", "rmse"] != table.loc["calibrated", "rmse"]


@pytest.mark.parametrize(
    ("setup", "arguments", "message"),
    [
        ({}, {"target_condition": "x"}, "target_condition 'x' is not"),
        ({}, {"source_condition": "treated"}, "source_condition is target_condition: 'treated'"),
        ({}, {"max_folds": 1}, "max_folds must be .* got 1"),
        ({}, {"n_jobs": 0}, "n_jobs must be .* got 0"),
        ({"labels_key": None}, {}, "calibrate needs labels"),
    ],
)
def test_wrong_arguments(setup, arguments, message):
    model = fit(types(), setup=setup, train={"max_epochs": 1})
    with pytest.raises(ValueError, match=message):
        model.calibrate(**({"target_condition": "treated"} | arguments))


def test_what_cannot_be_calibrated(tmp_path):
    adata = types(n_cell_types=2)
    one = fit(adata[~is_group(adata)], train={"max_epochs": 1})
    with pytest.raises(ValueError, match="2 labels .* 'control' and 'treated', but there are 1"):
        one.calibrate("treated")
    several = fit(types(conditions=["control", "treated", "other"]), train={"max_epochs": 1})
    with pytest.raises(ValueError, match="source_condition=..."):
        several.calibrate("treated")
    several.save(tmp_path / "model")
    with pytest.raises(ValueError, match="no AnnData of its own"):
        trvae.TRVAE.load(tmp_path / "model", adata=False).calibrate(**FROM_CONTROL)
    query = types(seed=1)
    query.obs["condition"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, several)
    mapped.train(max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="Calibrate its reference"):
        mapped.calibrate("new", source_condition="control")


def test_cells_of_another_data_set_are_refused(calibrated, tmp_path):
    model, table, adata = calibrated
    model.save(tmp_path / "model")
    others = types(seed=1)
    for cells in (others, adata[~is_group(adata)][1:]):
        loaded = trvae.TRVAE.load(tmp_path / "model", cells.copy(), accelerator="cpu")
        with pytest.raises(ValueError, match="the cells that the model was trained on"):
            loaded.calibrate("treated")
    loaded.train(max_epochs=5, **QUIET)
    assert len(loaded.calibrate("treated", progress_bar=False)) == len(table)


def test_a_damaged_checkpoint_is_named(tmp_path):
    adata, arguments = types(), {"checkpoint_dir": tmp_path, "progress_bar": False}
    fit(adata).calibrate("treated", **arguments)
    file = next(tmp_path.iterdir())
    for damaged in (b"", file.read_bytes()[:100]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            fit(adata).calibrate("treated", **arguments)


def test_a_query_keeps_the_calibration_of_its_reference(calibrated):
    model, _, adata = calibrated
    query = types(seed=1)
    query.obs["condition"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **QUIET)
    control = adata[is_group(adata, "control")].copy()
    expected, found = (m.get_transferred_expression(control, "treated") for m in (model, mapped))
    pd.testing.assert_frame_equal(found, expected)
