import errno
import functools
import itertools
import shutil
import warnings

import anndata
import dask.array as da
import mudata
import numpy as np
import pytest
import zarr
from anndata.experimental import read_lazy
from distributed import Client, LocalCluster
from helpers import DEVICE, QUIET, SMALL, assert_unchanged, content, dense, fit, full_disk
from mudata import MuData
from scipy import sparse

import trvae
from trvae.io import _chunks
from trvae.io._atomic import remove
from trvae.model import _streaming

QUESTION = {"target_condition": "treated", "source_condition": "control", "seed": 3}
SEVERAL = {"target_condition": ["treated", "control"], "seed": 3}
TO_DISK = {"chunk_size": 25, "progress_bar": False}
N_CHUNKS = 3  # of the 60 control cells
SUFFIXES = pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])


@functools.cache
def model_and_cells(kind="sparse"):
    """A model and its 120 cells, not to be changed."""
    adata = trvae.datasets.simulated(n_cells=20, n_genes=30)
    adata.obs["note"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    setup, kwargs = {}, {}
    if kind == "dense":
        adata.X, kwargs = adata.X.log1p().toarray(), {"gene_likelihood": "normal"}
    if kind == "layer":
        adata.layers["counts"], adata.X = adata.X.copy(), None
        setup = {"layer": "counts"}
    return fit(adata, setup=setup, train={"max_epochs": 1}, **kwargs), adata


def read(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def assert_same(path, expected):
    result = read(path)
    assert result.layers.keys() == expected.layers.keys()
    for matrix, other in (
        (result.X, expected.X),
        *((result.layers[name], expected.layers[name]) for name in expected.layers),
    ):
        assert (type(matrix), matrix.dtype) == (type(other), other.dtype)
        # Smaller minibatches are multiplied in another order, on a GPU in many more.
        atol = 1e-6 if DEVICE == "cpu" else 1e-5
        np.testing.assert_allclose(dense(matrix), dense(other), rtol=1e-5, atol=atol)
        assert not sparse.issparse(other) or matrix.indptr.dtype == other.indptr.dtype
    expected.strings_to_categoricals()
    assert result.obs.equals(expected.obs)
    assert result.var.equals(expected.var)
    assert result.uns["trvae"].keys() == expected.uns["trvae"].keys()
    for key, value in expected.uns["trvae"].items():
        assert np.array_equal(result.uns["trvae"][key], value)


@SUFFIXES
def test_writing_warns_of_nothing(tmp_path, suffix):
    model, cells = model_and_cells()
    with warnings.catch_warnings():
        # Others are of what packages will drop, and hidden by default.
        warnings.simplefilter("error", UserWarning)
        model.transfer(cells, **QUESTION, out=tmp_path / f"p{suffix}", **TO_DISK)


@SUFFIXES
@pytest.mark.parametrize(
    ("kind", "question"),
    [("sparse", QUESTION), ("dense", QUESTION), ("layer", QUESTION), ("sparse", SEVERAL)],
)
def test_a_result_on_disk_is_that_in_memory(tmp_path, kind, question, suffix):
    model, cells = model_and_cells(kind)
    # Genes are in another order than in training.
    cells = cells[:, ::-1].copy()
    out = model.transfer(cells, **question, out=tmp_path / f"p{suffix}", **TO_DISK)
    assert_same(out, model.transfer(cells, **question))
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]


def backed(cells, path):
    cells.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


def lazy(cells, path):
    cells.write_zarr(path)
    return read_lazy(path)


def of_dask(cells, path):
    cells.X = da.from_array(dense(cells.X), chunks=(30, 30))
    return cells


def without_condition(cells, path):
    del cells.obs["condition"]
    return cells


def same_names(cells, path):
    return anndata.concat([cells[:30], cells[:30]])


@pytest.mark.parametrize("change", [backed, lazy, of_dask, without_condition, same_names, None])
def test_cells_of_every_kind_are_read_in_chunks(tmp_path, change):
    model, cells = model_and_cells()
    cells = None if change is None else change(cells.copy(), tmp_path / "cells")
    question = QUESTION | {"indices": [50, 3, 33, 7]}
    out = model.transfer(cells, **question, out=tmp_path / "p.h5ad", chunk_size=2)
    in_memory = None if cells is None else cells.to_memory()
    assert_same(out, model.transfer(in_memory, **question))


def test_a_cluster_predicts_the_same_and_its_errors_come_back(tmp_path):
    model, cells = model_and_cells()
    wrong = cells.copy()
    wrong.X.data[-1] = 0.5
    # Within this process, which is fast, but by TCP, which serialises what workers get and return.
    options = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=2, threads_per_worker=2, **options) as cluster:
        with Client(cluster) as client:
            on_cluster = {"chunk_size": 9, "client": client}
            out = model.transfer(cells, **SEVERAL, out=tmp_path / "p.h5ad", **on_cluster)
            with pytest.raises(ValueError, match="integer"):
                model.transfer(wrong, **SEVERAL, out=tmp_path / "wrong.h5ad", **on_cluster)
    assert_same(out, model.transfer(cells, **SEVERAL))
    assert not (tmp_path / "wrong.h5ad").exists()


def failing_after(n, function, error=KeyboardInterrupt):
    """The same function, but there is an error after some calls."""
    calls = itertools.count()

    def wrapped(*args):
        if next(calls) == n:
            raise error
        return function(*args)

    return wrapped


def test_an_interrupted_transfer_resumes_and_refuses_chunks_of_others(tmp_path, monkeypatch):
    model, cells = model_and_cells()
    out, predict = {"out": tmp_path / "p.h5ad", **TO_DISK}, _streaming.predict
    # Left of another transfer by a removal that was killed.
    (tmp_path / "p.h5ad.parts").mkdir()
    np.savez(tmp_path / "p.h5ad.parts" / "000000-0a.npz", dense=np.zeros((25, 30)))
    monkeypatch.setattr(_streaming, "predict", failing_after(N_CHUNKS - 1, predict))
    with pytest.raises(KeyboardInterrupt):
        model.transfer(cells, **QUESTION, **out)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.parts"]

    # A single row, wherever it is, and a covariate's value would both give another prediction.
    one_row = cells.copy()
    one_row.X[7] = 2 * one_row.X[7]
    for data, change, differing in (
        (cells, {"seed": 4}, "seed"),
        (cells, {"source_condition": "treated"}, "cells"),
        (cells, {"estimate": "decoded", "chunk_size": 20}, "chunk_size, estimate"),
        (cells[:, ::-1].copy(), {}, "genes"),
        (one_row, {}, "values of cells"),
    ):
        with pytest.raises(ValueError, match=rf"another transfer \(they differ in {differing}\)"):
            model.transfer(data, **(QUESTION | out | change))
    left_out = {"network": np.ones((2, 30)), "linear": np.ones((2, 30)), "counts_per_cell": 100.0}
    calibrated = {"0>1": left_out | {"labels": np.arange(2), "fold": np.arange(2)}}
    for name, value in (("linear_weight", 0.0), ("calibration_", calibrated)):
        with monkeypatch.context() as changed, pytest.raises(ValueError, match="differ in model"):
            changed.setattr(model, name, value)
            model.transfer(cells, **QUESTION, **out)

    # Only one chunk is missing.
    monkeypatch.setattr(_streaming, "predict", failing_after(1, predict, AssertionError))
    path = model.transfer(cells, **QUESTION, **out)
    monkeypatch.undo()
    assert_same(path, model.transfer(cells, **QUESTION))


def test_another_process_that_writes_the_same_is_refused(tmp_path, monkeypatch):
    model, cells = model_and_cells()
    out, predict, refused = {"out": tmp_path / "p.h5ad", **TO_DISK}, _streaming.predict, []

    def meanwhile(*args):
        with pytest.raises(ValueError, match="Another transfer is writing .*p.h5ad"):
            model.transfer(cells, **QUESTION, **out)
        refused.append(True)
        return predict(*args)

    monkeypatch.setattr(_streaming, "predict", meanwhile)
    path = model.transfer(cells, **QUESTION, **out)
    monkeypatch.undo()
    assert len(refused) == N_CHUNKS
    assert_same(path, model.transfer(cells, **QUESTION))
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_what_others_put_in_the_folder_of_chunks_stays(tmp_path):
    model, cells = model_and_cells()
    (tmp_path / "p.h5ad.parts").mkdir()
    names = ["2024 old.npz", "2024.npz", "notes.txt"]
    for name in [*names, ".000000-0a.npz.unfinished.npz"]:
        (tmp_path / "p.h5ad.parts" / name).touch()
    model.transfer(cells, **QUESTION, out=tmp_path / "p.h5ad", **TO_DISK)
    assert sorted(path.name for path in (tmp_path / "p.h5ad.parts").iterdir()) == names


def test_a_result_that_another_process_has_written_meanwhile_stays(tmp_path, monkeypatch):
    model, cells = model_and_cells()
    out = tmp_path / "p.h5ad"

    def after_another(path, task):
        path.write_text("another")
        return chunks_of(path, task)

    chunks_of = _streaming.chunks_of
    monkeypatch.setattr(_streaming, "chunks_of", after_another)
    with pytest.raises(FileExistsError, match="p.h5ad exists"):
        model.transfer(cells, **QUESTION, out=out, **TO_DISK)
    assert out.read_text() == "another"
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_chunks_are_in_the_order_of_their_numbers(tmp_path):
    with _chunks.chunks_of(tmp_path / "p.h5ad", {}) as chunks:
        for number in (1_000_000, 999_999):
            chunks.save(number, "0a", np.full((1, 1), number))
        chunks.join(anndata.AnnData(np.zeros((2, 1))), None, None)
    assert read(tmp_path / "p.h5ad").X.ravel().tolist() == [999_999, 1_000_000]


@pytest.mark.parametrize(
    ("suffix", "room"),
    [(".h5ad", 100), (".h5ad", 20_000), (".zarr", 100), (".h5ad", None), (".zarr", None)],
)
def test_a_result_that_fails_keeps_the_chunks(tmp_path, monkeypatch, suffix, room):
    """As the disk is full, or by Ctrl-C."""
    model, cells = model_and_cells()
    out, join = {"out": tmp_path / f"p{suffix}", **TO_DISK}, _chunks.Chunks.join

    def join_on_full_disk(*args):
        with full_disk(room):
            join(*args)

    if room is None:
        error, message = KeyboardInterrupt, None
        monkeypatch.setattr(_chunks, "_append", failing_after(1, _chunks._append))
    else:
        error, message = OSError, f"p{suffix} could not be written: File too large"
        monkeypatch.setattr(_chunks.Chunks, "join", join_on_full_disk)
    with pytest.raises(error, match=message):
        model.transfer(cells, **QUESTION, **out)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}.parts"]

    monkeypatch.setattr(
        _streaming, "predict", failing_after(0, _streaming.predict, AssertionError)
    )
    path = model.transfer(cells, **QUESTION, **out)
    monkeypatch.undo()
    assert_same(path, model.transfer(cells, **QUESTION))


def test_what_is_still_written_to_is_removed(tmp_path, monkeypatch):
    """As by threads that have not seen yet that another one failed."""
    (folder := tmp_path / "p.zarr").mkdir()
    fails = iter([OSError(errno.ENOTEMPTY, "Directory not empty")] * 2)
    rmtree = shutil.rmtree

    def still_written_to(path):
        if (error := next(fails, None)) is not None:
            raise error
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", still_written_to)
    remove(folder)
    assert not folder.exists()


def test_a_chunk_that_fails_leaves_nothing(tmp_path):
    model, cells = model_and_cells()
    with full_disk(1_000), pytest.raises(OSError, match="000000-.*npz could not be .* too large"):
        model.transfer(cells, **QUESTION, out=tmp_path / "p.zarr", **TO_DISK)
    assert [path.name for path in (tmp_path / "p.zarr.parts").iterdir()] == ["task.json"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"out": "there.h5ad"}, FileExistsError, "there.h5ad exists"),
        ({"out": "p.csv"}, ValueError, "out must end with .h5ad or .zarr"),
        ({"out": "no/p.h5ad"}, FileNotFoundError, "no/p.h5ad"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be a positive integer"),
        ({"indices": []}, ValueError, "select none of the 120 cells"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_written(tmp_path, change, error, message):
    model, cells = model_and_cells()
    (tmp_path / "there.h5ad").touch()
    arguments = QUESTION | {"out": "p.h5ad"} | change
    with pytest.raises(error, match=message):
        model.transfer(cells, **(arguments | {"out": tmp_path / arguments["out"]}))
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5ad"]


def mixed(adata):
    adata.obs["mixed"] = np.array([1, "a"] * 60, object)


def mixed_of_genes(adata):
    adata.var["mixed"] = np.array([1, "a"] * 15, object)


def named_like_a_column(adata):
    adata.obs["barcode"] = adata.obs_names
    adata.obs.index.name = "barcode"


def named_like_another(adata):
    adata.obs.index.name = "note"


def two_of_one_name(adata):
    adata.obs.insert(0, "note", "c", allow_duplicates=True)


def of_numbers(adata):
    adata.obs[5] = 1


def unknown_condition(adata):
    adata.obs["condition"] = [*adata.obs["condition"][:-1], "new"]


def missing_condition(adata):
    adata.obs["condition"] = [*adata.obs["condition"][:-1], None]


@pytest.mark.parametrize(
    ("change", "suffix", "words"),
    [
        (mixed, ".h5ad", r"adata.obs\['mixed'\] can't be written"),
        (mixed_of_genes, ".h5ad", r"adata.var\['mixed'\] can't be written"),
        (named_like_another, ".h5ad", r"adata.obs\['note'\] can't .* also used by a column"),
        # The names differ from the column once the target is appended.
        (named_like_a_column, ".zarr", r"adata.obs\['barcode'\] can't .* also used by a column"),
        (two_of_one_name, ".zarr", r"adata.obs\['note'\] can't .* repeated"),
        (of_numbers, ".zarr", r"adata.obs\[5\] can't be written"),
        (unknown_condition, ".h5ad", "not trained on: 'new'"),
        (missing_condition, ".h5ad", "1 missing values"),
    ],
)
def test_cells_that_can_not_be_written_are_refused_at_once(
    tmp_path, monkeypatch, change, suffix, words
):
    monkeypatch.setattr(_streaming, "predict", None)
    model, cells = model_and_cells()
    cells = cells.copy()
    change(cells)
    before = content(cells)
    with pytest.raises(ValueError, match=words):
        model.transfer(cells, **SEVERAL, out=tmp_path / f"p{suffix}", **TO_DISK)
    assert list(tmp_path.iterdir()) == []
    assert_unchanged(cells, before)


def test_a_mudata_that_can_not_be_written_is_refused_at_once(tmp_path, monkeypatch):
    _, cells = model_and_cells()
    mdata = MuData({"rna": cells.copy(), "prot": anndata.AnnData(cells.X[:, :2], cells.obs[[]])})
    mdata.obs = cells.obs[["condition"]].copy()
    trvae.TRVAE.setup_mudata(mdata, condition_key="condition")
    model = trvae.TRVAE(mdata, seed=0)
    model.train(max_epochs=1, accelerator="cpu")
    mixed(mdata["prot"])
    monkeypatch.setattr(_streaming, "predict", None)
    with pytest.raises(ValueError, match=r"mdata\['prot'\].obs\['mixed'\] can't be written"):
        model.transfer(mdata, **QUESTION, out=tmp_path / "p.h5mu", **TO_DISK)
    assert list(tmp_path.iterdir()) == []


def test_more_values_than_32_bits_count_have_64_bit_offsets(tmp_path, monkeypatch):
    monkeypatch.setattr(_chunks, "_MAX_INT32", 100)
    model, cells = model_and_cells()
    result = read(model.transfer(cells, **QUESTION, out=tmp_path / "p.h5ad", **TO_DISK))
    assert result.X.indptr.dtype == np.int64
    assert (result.X != model.transfer(cells, **QUESTION).X).nnz == 0


@pytest.mark.parametrize("as_mudata", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_has_the_format_of_anndatas_settings(tmp_path, zarr_format, as_mudata):
    model, cells = model_and_cells()
    expected = model.transfer(cells, **QUESTION)
    if as_mudata:
        cells = MuData({"rna": cells.copy()})
        place = {"rna_layer": "rna", "condition_key": "rna", "labels_key": "rna"}
        trvae.TRVAE.setup_mudata(
            cells, condition_key="condition", labels_key="cell_type", modalities=place
        )
        model = trvae.TRVAE(cells, seed=0, **SMALL)
        model.train(1, **QUIET)
        expected = model.transfer(cells, **QUESTION)["rna"]
    with anndata.settings.override(zarr_write_format=zarr_format):
        out = model.transfer(cells, **QUESTION, out=tmp_path / "p.zarr", **TO_DISK)
    root = zarr.open_group(out, mode="r")
    assert root.metadata.zarr_format == zarr_format
    (matrix,) = (path for path in root.metadata.consolidated_metadata.flattened_metadata
                 if path in ("X/data", "mod/rna/X/data"))  # fmt: skip
    # Rows were appended after the first chunk.
    assert root[matrix].shape == (expected.X.nnz,)
    result = mudata.read_zarr(out)["rna"] if as_mudata else anndata.read_zarr(out)
    np.testing.assert_array_equal(dense(result.X), dense(expected.X))
    assert (out / "zarr.json").exists() == (zarr_format == 3)


def test_transfers_side_by_side_into_one_folder_share_no_name(tmp_path, monkeypatch):
    model, cells = model_and_cells()
    predict = _streaming.predict

    def with_another_transfer(*args):
        # The next transfer starts and ends between two chunks of this one.
        if names_left:
            run(names_left.pop())
        return predict(*args)

    def run(name):
        results[name] = model.transfer(
            cells, **(QUESTION | {"seed": len(name)}), out=tmp_path / name, **TO_DISK
        )

    names_left, results = ["p.zarr", "q.zarr", "p.zarr.h5ad"], {}
    monkeypatch.setattr(_streaming, "predict", with_another_transfer)
    run("p.h5ad")
    monkeypatch.undo()
    assert sorted(results) == sorted(path.name for path in tmp_path.iterdir())
    for name, path in results.items():
        assert_same(path, model.transfer(cells, **(QUESTION | {"seed": len(name)})))
