import anndata
import dask.array as da
import h5py
import numpy as np
import pytest
from anndata.experimental import read_lazy
from distributed import Client, LocalCluster
from helpers import fit, full_disk

from trvae.io import _chunks
from trvae.io._hdf5 import write_h5ad

ARGUMENTS = {"source_condition": "control", "seed": 3}
TO_DISK = {"chunk_size": 17, "progress_bar": False}


def read(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def dense(matrix):
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


def assert_same(one, other):
    assert type(one.X) is type(other.X)
    # A minibatch of one cell is multiplied in another order.
    np.testing.assert_allclose(dense(one.X), dense(other.X), rtol=1e-5, atol=1e-6)
    assert one.X.dtype == other.X.dtype
    for name in other.layers:
        np.testing.assert_allclose(dense(one.layers[name]), dense(one.X))
    assert list(one.obs_names) == list(other.obs_names)
    assert list(one.obs.columns) == list(other.obs.columns)
    assert (one.obs.astype(str) == other.obs.astype(str)).all(axis=None)
    assert one.var.equals(other.var)
    assert dict(one.uns["trvae"], source_conditions=None) == dict(
        other.uns["trvae"], source_conditions=None
    )
    assert list(one.uns["trvae"]["source_conditions"]) == ["control"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("data", ["sparse", "dense", "layer"])
def test_on_disk_is_what_is_in_memory(adata, tmp_path, suffix, data):
    adata.obs["note"] = np.where(np.arange(adata.n_obs) % 3, "a", "b")
    setup, kwargs = {}, {}
    if data == "dense":
        adata.X, kwargs = adata.X.log1p().toarray(), {"gene_likelihood": "normal"}
    if data == "layer":
        adata.layers["counts"], adata.X = adata.X.copy(), None
        setup = {"layer": "counts"}
    model = fit(adata, setup=setup, **kwargs)
    # Another order of more genes.
    cells = adata[:, ::-1].copy()
    expected = model.transfer(cells, "treated", **ARGUMENTS)
    out = model.transfer(cells, "treated", **ARGUMENTS, out=tmp_path / f"p{suffix}", **TO_DISK)
    assert_same(read(out), expected)
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]


def test_reads_backed_lazy_and_dask(trained, control, tmp_path):
    expected = trained.transfer(control, "treated", **ARGUMENTS, indices=[40, 3, 7])
    control.write_h5ad(tmp_path / "cells.h5ad")
    control.write_zarr(tmp_path / "cells.zarr")
    chunked = control.copy()
    chunked.X = da.from_array(control.X.toarray(), chunks=(30, 60))
    for i, cells in enumerate(
        [
            anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
            read_lazy(tmp_path / "cells.zarr"),
            chunked,
        ]
    ):
        out = trained.transfer(
            cells, "treated", **ARGUMENTS, indices=[40, 3, 7], out=tmp_path / f"{i}.zarr",
            chunk_size=2, progress_bar=False,
        )  # fmt: skip
        assert_same(read(out), expected)


def test_on_a_cluster_of_two_workers_is_what_is_in_memory(trained, control, tmp_path):
    expected = trained.transfer(control, "treated", **ARGUMENTS)
    control.write_h5ad(tmp_path / "cells.h5ad")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            out = trained.transfer(
                cells,
                "treated",
                **ARGUMENTS,
                out=tmp_path / "p.h5ad",
                **TO_DISK,
                client=client,
            )
    assert_same(read(out), expected)


def test_an_error_on_a_worker_comes_back(trained, control, tmp_path):
    control.X[-1] = 0.5
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster) as client, pytest.raises(ValueError, match="integer"):
            trained.transfer(
                control, "treated", **ARGUMENTS, out=tmp_path / "p.h5ad", **TO_DISK, client=client
            )
    assert not (tmp_path / "p.h5ad").exists()


def test_own_cells_and_cells_without_a_condition(trained, control, tmp_path):
    out = trained.transfer(
        target_condition="treated", **ARGUMENTS, out=tmp_path / "own.h5ad", **TO_DISK
    )
    assert_same(read(out), trained.transfer(target_condition="treated", **ARGUMENTS))
    del control.obs["condition"]
    out = trained.transfer(control, "treated", **ARGUMENTS, out=tmp_path / "bare.h5ad", **TO_DISK)
    assert_same(read(out), trained.transfer(control, "treated", **ARGUMENTS))
    with pytest.raises(ValueError, match="'condition' is not in adata.obs. Name the condition"):
        trained.transfer(control, "treated", out=tmp_path / "none.h5ad", **TO_DISK)


def test_names_that_occur_twice_have_draws_of_their_own(trained, control, tmp_path):
    twice = anndata.concat([control[:10], control[:10]])
    out = trained.transfer(twice, "treated", **ARGUMENTS, out=tmp_path / "p.h5ad", chunk_size=10)
    predicted = read(out).X.toarray()
    np.testing.assert_array_equal(
        predicted, trained.transfer(twice, "treated", **ARGUMENTS).X.toarray()
    )
    assert (predicted[:10] != predicted[10:]).any()


def test_goes_on_where_it_was_interrupted(trained, control, tmp_path, monkeypatch):
    arguments = {**ARGUMENTS, "out": tmp_path / "p.h5ad", "chunk_size": 30, "progress_bar": False}
    predict, done = type(trained)._predict, []

    def interrupted(self, selection, *args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(selection)
        return predict(self, selection, *args)

    monkeypatch.setattr(type(trained), "_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.transfer(control, "treated", **arguments)
    assert not (tmp_path / "p.h5ad").exists()
    with pytest.raises(ValueError, match=r"another transfer \(they differ in seed\)"):
        trained.transfer(control, "treated", **(arguments | {"seed": 4}))
    doubled = control.copy()
    doubled.X = 2 * doubled.X
    with pytest.raises(ValueError, match=r"another transfer \(they differ in values\)"):
        trained.transfer(doubled, "treated", **arguments)
    with (
        monkeypatch.context() as other,
        pytest.raises(ValueError, match=r"\(they differ in model\)"),
    ):
        other.setattr(trained, "linear_weight", 0.0)
        trained.transfer(control, "treated", **arguments)
    done.insert(0, None)  # From now on, 100 cells leave 2 chunks.
    monkeypatch.setattr(
        type(trained), "_predict", lambda *args: done.append(args[1]) or predict(*args)
    )
    out = trained.transfer(control, "treated", **arguments)
    assert len(done) == 5
    monkeypatch.undo()
    assert_same(read(out), trained.transfer(control, "treated", **ARGUMENTS))


def test_an_interruption_while_all_is_put_together_loses_nothing(
    trained, control, tmp_path, monkeypatch
):
    arguments = {**ARGUMENTS, "out": tmp_path / "p.zarr", **TO_DISK}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_chunks, "_write_matrix", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.transfer(control, "treated", **arguments)
    monkeypatch.undo()
    monkeypatch.setattr(type(trained), "_predict", interrupted)
    out = trained.transfer(control, "treated", **arguments)
    monkeypatch.undo()
    assert_same(read(out), trained.transfer(control, "treated", **ARGUMENTS))


def test_wrong_outputs_are_known_before_anything_is_written(trained, control, tmp_path):
    (tmp_path / "there.h5ad").touch()
    for out, error, message in (
        ("there.h5ad", FileExistsError, "is there already"),
        ("p.csv", ValueError, "ends neither with .h5ad nor with .zarr"),
        ("no/p.h5ad", FileNotFoundError, "There is no folder"),
    ):
        with pytest.raises(error, match=message):
            trained.transfer(control, "treated", **ARGUMENTS, out=tmp_path / out)
    with pytest.raises(ValueError, match="chunk_size=0"):
        trained.transfer(control, "treated", out=tmp_path / "p.h5ad", chunk_size=0)
    with pytest.raises(ValueError, match="genes are not in adata.var_names"):
        trained.transfer(control[:, :5].copy(), "treated", out=tmp_path / "p.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5ad"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("fails_at", ["first chunk", "putting together"])
def test_a_full_disk_leaves_nothing_that_is_not_complete(
    trained, control, tmp_path, monkeypatch, suffix, fails_at
):
    out = tmp_path / f"p{suffix}"
    arguments = {**ARGUMENTS, "out": out, **TO_DISK}
    write_matrix = _chunks._write_matrix
    disk = full_disk(1_000)

    def write_to_a_full_disk(*args):
        with disk:
            write_matrix(*args)

    if fails_at == "putting together":
        monkeypatch.setattr(_chunks, "_write_matrix", write_to_a_full_disk)
        with pytest.raises(OSError, match=f"p{suffix} could not be written: .*"):
            trained.transfer(control, "treated", **arguments)
        monkeypatch.undo()
    else:
        with disk, pytest.raises(OSError, match="000000.npz could not be written: File too large"):
            trained.transfer(control, "treated", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}.parts"]
    n_chunks = len(list((tmp_path / f"p{suffix}.parts").glob("*.npz")))
    assert n_chunks == (0 if fails_at == "first chunk" else 6)
    # There is room again.
    trained.transfer(control, "treated", **arguments)
    assert_same(read(out), trained.transfer(control, "treated", **ARGUMENTS))


def content(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update(
                {name: item[()] if isinstance(item, h5py.Dataset) else dict(item.attrs)}
            )
        )
    return found


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_cells_are_written_as_anndata_does(adata, tmp_path, place):
    adata.obs["text"] = adata.obs["condition"].astype(str).astype(object)
    adata.raw = adata[:, :5].copy()
    adata.copy().write_h5ad(tmp_path / "theirs.h5ad")
    cells = adata if place == "memory" else anndata.read_h5ad(tmp_path / "theirs.h5ad", backed="r")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_h5ad(tmp_path / "full.h5ad", cells)
    write_h5ad(tmp_path / "ours.h5ad", cells, compression="gzip")
    np.testing.assert_equal(content(tmp_path / "ours.h5ad"), content(tmp_path / "theirs.h5ad"))


def test_a_folder_that_cannot_be_written_is_known_at_once(trained, control, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(PermissionError, match="The folder .* can't be written to"):
        trained.transfer(control, "treated", out=tmp_path / "p.zarr")
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_were_killed_while_removed_are_not_taken_for_others(
    trained, control, tmp_path
):
    arguments = {"source_condition": "control", "out": tmp_path / "p.zarr", **TO_DISK}
    (tmp_path / "p.zarr.parts").mkdir()
    # Of a transfer that was complete, with the description of its task removed first.
    _chunks._save(tmp_path / "p.zarr.parts" / "000002.npz", control.X[:17])
    out = trained.transfer(control, "treated", seed=3, **arguments)
    assert_same(read(out), trained.transfer(control, "treated", **ARGUMENTS))
