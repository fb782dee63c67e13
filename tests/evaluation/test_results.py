"""What is kept of an evaluation on disk, and when it may be resumed."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

import trvae
from trvae.evaluation._results import Results, fingerprint_of

KEYS = [("NK", "treated", "trVAE", 0), ("NK", "treated", "replicate", None)]
ROW = {"rmse": 0.1, "rmse_specific": np.nan}
SETTINGS = {"condition_key": "condition", "labels_key": "cell_type", "library_key": None}
SETTINGS |= {"layer": None}


@pytest.fixture
def kept(tmp_path):
    """A folder with two rows."""
    for key in KEYS:
        Results(tmp_path, SETTINGS).add(key, ROW)
    return tmp_path


@pytest.mark.parametrize("unfinished", ["", '{"key": "[\\"B\\"'])
def test_rows_survive_an_interruption(kept, unfinished):
    file = kept / "results.jsonl"
    complete = file.read_text()
    file.write_text(complete + unfinished)
    results = Results(kept, SETTINGS)
    results.add(KEYS[0], {"rmse": 2.0})
    np.testing.assert_equal([results[key] for key in KEYS], [ROW, ROW])
    another = (*KEYS[0][:-1], 1)
    assert another not in results
    results.add(another, {"rmse": 2.0})
    first, added = file.read_text().rsplit("\n", 2)[:2]
    assert first + "\n" == complete
    assert json.loads(added)["rmse"] == 2.0


def test_a_label_is_the_same_in_numpy(tmp_path):
    results = Results(tmp_path, SETTINGS)
    results.add((np.int64(0), np.bool_(True), "trVAE", 0), ROW)
    assert (0, True, "trVAE", 0) in results
    assert (0, True, "trVAE", 0) in Results(tmp_path, SETTINGS)


def test_runs_share_a_folder_unless_a_method_has_other_settings(tmp_path):
    runs = [Results(tmp_path, SETTINGS) for _ in range(3)]
    for run, settings in zip(runs, ["A", "A", "B"], strict=True):
        run.check_method("trVAE", settings)
    runs[0].add(KEYS[0], ROW)
    runs[1].add(KEYS[0], {"rmse": 2.0})
    np.testing.assert_equal(runs[1][KEYS[0]], runs[0][KEYS[0]])
    with pytest.raises(ValueError, match="results of 'trVAE' with other settings: 'A', not B"):
        runs[2].add(KEYS[0], ROW)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["results.jsonl", "settings.json"])
@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'"key"', b'{"key": nu', b'{"key": "\xff"}', b"{}"]
)
def test_damaged_files_are_named_and_left_alone(kept, name, damage):
    file = kept / name
    is_rows = name == "results.jsonl"
    damaged = (
        file.read_bytes().splitlines(keepends=True)[0] + damage + b"\n" if is_rows else damage
    )
    file.write_bytes(damaged)
    message = (
        "Line 2 of .*results.jsonl is damaged .*Remove" if is_rows else "is damaged|differ in"
    )
    with pytest.raises(ValueError, match=message):
        Results(kept, SETTINGS)
    assert file.read_bytes() == damaged


def test_results_of_other_measures_or_versions_are_refused(adata, tmp_path, monkeypatch):
    Results(tmp_path, fingerprint_of(adata, SETTINGS))
    monkeypatch.setattr("trvae.evaluation._results.__version__", "9.9")
    monkeypatch.setattr("trvae.evaluation._results.MEASURES", ["rmse"])
    with pytest.raises(ValueError, match="they differ in version, measures"):
        Results(tmp_path, fingerprint_of(adata, SETTINGS))


def test_rows_of_runs_that_write_together_are_complete(tmp_path):
    file = tmp_path / "results.jsonl"
    runs = [Results(tmp_path, SETTINGS) for _ in range(4)]
    file.write_text('{"key": "unfinished')
    start = threading.Barrier(4)

    def add(number):
        start.wait()
        for seed in range(20):
            runs[number].add(("NK", "treated", str(number), seed), ROW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert len(file.read_text().splitlines()) == 80
    assert ("NK", "treated", "3", 19) in Results(tmp_path, SETTINGS)


def test_of_runs_that_start_together_those_with_the_first_settings_go_on(tmp_path):
    start = threading.Barrier(8)

    def run(number):
        start.wait()
        with suppress(ValueError):
            Results(tmp_path, SETTINGS | {"n_genes": number})
            return number

    with ThreadPoolExecutor(start.parties) as pool:
        went_on = set(pool.map(run, [0, 1, 2, 3] * 2)) - {None}
    assert [json.loads((tmp_path / "settings.json").read_text())["n_genes"]] == list(went_on)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (lambda adata: adata[::-1].copy(), "cells_and_genes"),
        (lambda adata: adata[:, ::-1].copy(), "cells_and_genes"),
        (lambda adata: adata.obs.__setitem__("condition", "treated"), "cells_and_genes"),
        (lambda adata: adata.X.data.put(0, 1000), "values"),
        # The sum is the same.
        (lambda adata: adata.X.__setitem__(slice(None), adata.X[::-1]), "values"),
    ],
)
def test_other_data_are_refused(tmp_path, change, differing):
    adata = trvae.datasets.simulated(n_cells=5, n_genes=10)
    Results(tmp_path, fingerprint_of(adata, SETTINGS))
    changed = change(adata)
    with pytest.raises(ValueError, match=rf"they differ in {differing}"):
        Results(tmp_path, fingerprint_of(adata if changed is None else changed, SETTINGS))
