import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import trvae

KEYS = {
    "condition_key": "condition",
    "labels_key": "cell_type",
    "source_condition": "control",
}
QUICK = {"seeds": [0, 1], "progress_bar": False}


class Shift:
    """Multiplies counts by the change of their means over all cells."""

    fitted = 0

    def fit(self, adata, *, condition_key, labels_key, layer, library_key, seed):
        type(self).fitted += 1
        x = pd.DataFrame(adata.X.toarray()).groupby(adata.obs[condition_key].to_numpy()).mean()
        self.means = x + 1e-3
        self.seed = seed
        adata.obs["scribble"] = 1

    def transfer(self, adata, target_condition, *, seed):
        assert seed == self.seed
        ratio = (self.means.loc[target_condition] / self.means.loc["control"]).to_numpy()
        predicted = adata.copy()
        predicted.X = np.round(adata.X.toarray() * ratio)
        return predicted


class Truth:
    """Knows the held-out cells."""

    adata: AnnData

    def fit(self, adata, **kwargs):
        self.seen = adata.obs_names

    def transfer(self, adata, target_condition, *, seed):
        label = adata.obs["cell_type"].iloc[0]
        is_target = (self.adata.obs[["condition", "cell_type"]] == [target_condition, label]).all(
            axis=1
        )
        assert not is_target.index[is_target].isin(self.seen).any()
        return self.adata[is_target].copy()


@pytest.fixture
def shift():
    Shift.fitted = 0
    return Shift


def test_one_row_for_each_label_condition_method_and_seed(shift):
    adata = trvae.datasets.simulated(n_cells=30, n_genes=50, conditions=["control", "a", "b"])
    before = adata.copy()
    Truth.adata = adata
    table = trvae.evaluate(adata, **KEYS, methods={"shift": shift, "truth": Truth}, **QUICK)
    assert shift.fitted == 3 * 2 * 2
    assert set(table["label"]) == {"type_0", "type_1", "type_2"}
    assert set(table["target_condition"]) == {"a", "b"}
    methods = table.groupby("method").size()
    assert methods["shift"] == methods["truth"] == 12
    assert methods["ceiling"] == methods["linear shift"] == 6
    assert table.loc[table["method"] == "ceiling", "seed"].isna().all()
    truth = table[table["method"] == "truth"]
    np.testing.assert_allclose(truth[["r2_mean", "change", "de_overlap", "de_direction"]], 1)
    np.testing.assert_allclose(truth[["rmse", "rmse_specific", "energy_distance"]], 0, atol=1e-9)
    assert adata.obs.equals(before.obs)
    assert (adata.X != before.X).nnz == 0


def test_some_labels_and_conditions(adata, shift):
    table = trvae.evaluate(
        adata,
        **KEYS,
        labels=["type_1"],
        target_conditions=["treated"],
        methods={"shift": shift},
        **QUICK,
    )
    assert set(table["label"]) == {"type_1"}
    assert shift.fitted == 2


def test_an_interrupted_evaluation_goes_on_where_it_was(adata, shift, tmp_path):
    arguments = {**KEYS, **QUICK, "out": tmp_path}
    whole = trvae.evaluate(adata, **KEYS, methods={"shift": shift}, **QUICK)

    class Interrupted(shift):
        fitted = 0

        def fit(self, adata, **kwargs):
            if Interrupted.fitted == 3:
                raise KeyboardInterrupt
            super().fit(adata, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        trvae.evaluate(adata, methods={"shift": Interrupted}, **arguments)
    results = tmp_path / "results.jsonl"
    # Killed in the middle of a line.
    lines = results.read_text()
    results.write_text(lines + lines.splitlines()[-1][:20])
    shift.fitted = 0
    resumed = trvae.evaluate(adata, methods={"shift": shift}, **arguments)
    assert shift.fitted == 3
    pd.testing.assert_frame_equal(resumed, whole)
    again = trvae.evaluate(adata, methods={"shift": shift}, **arguments)
    assert shift.fitted == 3
    pd.testing.assert_frame_equal(again, whole)
    assert all(json.loads(line) for line in results.read_text().splitlines())


def test_results_of_other_data_are_not_mixed(adata, shift, tmp_path):
    arguments = {**KEYS, **QUICK, "methods": {"shift": shift}, "out": tmp_path}
    trvae.evaluate(adata, **arguments)
    with pytest.raises(ValueError, match="other data or settings .they differ in n_top_genes"):
        trvae.evaluate(adata, **arguments, n_top_genes=10)
    with pytest.raises(ValueError, match="they differ in cells_and_genes"):
        trvae.evaluate(adata[::-1], **arguments)


def test_an_interruption_leaves_no_truncated_file(adata, shift, tmp_path, monkeypatch):
    arguments = {**KEYS, **QUICK, "methods": {"shift": shift}, "out": tmp_path}

    def interrupted(path, text):
        with path.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    def evaluate_interrupted():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "write_text", interrupted)
            trvae.evaluate(adata, **arguments)

    evaluate_interrupted()
    assert not any(tmp_path.iterdir())
    whole = trvae.evaluate(adata, **arguments)
    # The file of results is written anew if its last line is unfinished.
    results = tmp_path / "results.jsonl"
    lines = results.read_text()
    results.write_text(lines + lines[:20])
    evaluate_interrupted()
    assert results.read_text() == lines + lines[:20]
    n_fitted = shift.fitted
    pd.testing.assert_frame_equal(trvae.evaluate(adata, **arguments), whole)
    assert shift.fitted == n_fitted
    assert results.read_text() == lines


@pytest.mark.parametrize("damage", [b"", b'{"layer": nu', b"[]", b'{"layer": "\xff"}'])
def test_damaged_settings_are_named(adata, shift, tmp_path, damage):
    settings = tmp_path / "settings.json"
    settings.write_bytes(damage)
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        trvae.evaluate(adata, **KEYS, **QUICK, methods={"shift": shift}, out=tmp_path)
    # It is all that tells what the results beside it are of.
    assert settings.read_bytes() == damage
    assert shift.fitted == 0


@pytest.mark.parametrize("damage", ["", "{}", "[]", "1", '"key"', '{"key": nu'])
def test_a_damaged_result_is_named_with_its_line(adata, shift, tmp_path, damage):
    arguments = {**KEYS, **QUICK, "methods": {"shift": shift}, "out": tmp_path}
    trvae.evaluate(adata, **arguments)
    results = tmp_path / "results.jsonl"
    first, _, *others = results.read_text().splitlines(keepends=True)
    damaged = "".join([first, damage + "\n", *others])
    results.write_text(damaged)
    with pytest.raises(ValueError, match=r"Line 2 of .*results\.jsonl is damaged .*Remove it"):
        trvae.evaluate(adata, **arguments)
    assert results.read_text() == damaged


def test_genes_are_chosen_without_the_held_out_cells(adata):
    from trvae.evaluation._split import hold_out

    extreme = adata.copy()
    held_out = (extreme.obs["condition"] == "treated") & (extreme.obs["cell_type"] == "type_0")
    extreme.X = extreme.X.toarray()
    silent = np.argsort(extreme.X[~held_out].var(0))[:5]
    extreme.X[np.flatnonzero(held_out)[::2][:, None], silent] = 500
    arguments = KEYS | {"label": "type_0", "target_condition": "treated", "n_genes": 20}
    one, other = (hold_out(a, **arguments) for a in (adata, extreme))
    assert one.train.n_vars == 20
    assert list(one.train.var_names) == list(other.train.var_names)
    # Library sizes are still those over all genes.
    library = one.control.obs["_library_size"]
    np.testing.assert_allclose(library, adata[library.index].X.sum(1).A1)


def test_trvae_is_the_default(adata, tmp_path):
    table = trvae.evaluate(
        adata, **KEYS, labels=["type_0"], seeds=[3], progress_bar=False,
        methods={"trVAE": lambda: trvae.TRVAEMethod(
            {"hidden_sizes": (16,)}, {"max_epochs": 2, "enable_progress_bar": False}
        )},
    )  # fmt: skip
    assert np.isfinite(table.loc[table["method"] == "trVAE", "energy_distance"]).all()
    assert list(table["seed"].dropna()) == [3]
    with pytest.raises(RuntimeError, match="call fit first"):
        trvae.TRVAEMethod().transfer(adata, "treated", seed=0)


def test_batches_can_be_told(adata):
    adata = adata.copy()
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "one", "two")
    held_out = {"label": "type_0", "target_condition": "treated"}
    split = trvae.evaluation._split.hold_out(adata, **KEYS, **held_out)
    method = trvae.TRVAEMethod(
        train_kwargs={"max_epochs": 1, "enable_progress_bar": False},
        setup_kwargs={"categorical_covariate_keys": ["donor"]},
    )
    method.fit(split.train, seed=0, **split.keys)
    assert method.model.summary_stats["n_extra_categorical_covs"] == 1


def test_images_are_evaluated_as_they_are():
    digits = trvae.datasets.stroke_digits()[::20].copy()
    pixels = digits.X.astype(float)
    method = functools.partial(
        trvae.TRVAEMethod,
        train_kwargs={"max_epochs": 1, "enable_progress_bar": False},
        setup_kwargs={"image_shape": digits.uns["image_shape"]},
        model_cls=trvae.ImageTRVAE,
    )
    table = trvae.evaluate(
        digits, condition_key="condition", labels_key="digit", source_condition="normal",
        target_conditions=["thin"], labels=["3"], methods={"trVAE": method}, seeds=[0],
        normalize=False, progress_bar=False,
    ).set_index("method")  # fmt: skip
    assert np.isfinite(table.loc["trVAE", "energy_distance"])
    is_three = digits.obs["digit"] == "3"
    means = {
        strokes: pixels[is_three & (digits.obs["condition"] == strokes)].mean(0)
        for strokes in ("normal", "thin")
    }
    change = means["thin"] - means["normal"]
    assert table.loc["no change", "rmse"] == pytest.approx(np.sqrt(np.mean(change**2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["type_9"]}, "label 'type_9' is not in adata.obs.'cell_type'.: 'type_0'"),
        ({"source_condition": "ctrl"}, "source_condition 'ctrl' is not in adata.obs"),
        ({"target_conditions": ["stim"]}, "target_condition 'stim' is not in adata.obs"),
        ({"condition_key": "cond"}, "condition_key 'cond' is not in adata.obs"),
        ({"methods": {"ceiling": Shift}}, "names of baselines: 'ceiling'"),
        ({"methods": {}}, "at least one method and one seed"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"library_key": "size"}, "library_key 'size' is not in adata.obs"),
        ({"library_key": "condition", "normalize": False}, "library_key='condition' is of no use"),
        ({"n_genes": 0}, "n_genes=0 is not a positive integer"),
        ({"n_genes": 1000}, "n_genes=1000, but there are only 60 genes"),
    ],
)
def test_what_cannot_be_evaluated_is_known_at_once(adata, shift, arguments, message):
    with pytest.raises(ValueError, match=message):
        trvae.evaluate(adata, **(KEYS | {"methods": {"shift": shift}} | arguments))
    assert shift.fitted == 0


def test_too_few_cells(adata):
    few = adata[np.r_[0:10, 120:130]]
    with pytest.raises(ValueError, match="No label has 20 cells under 'control'"):
        trvae.evaluate(few, **KEYS)
