import os
import shutil

import anndata
import pytest
from helpers import content, full_disk

from trvae.io._hdf5 import check_room, write_h5ad


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_cells_are_written_as_anndata_does(adata, tmp_path, place):
    adata.obs["text"] = adata.obs["condition"].astype(str).astype(object)
    adata.raw = adata[:, :5].copy()
    adata.copy().write_h5ad(tmp_path / "theirs.h5ad")
    cells = adata if place == "memory" else anndata.read_h5ad(tmp_path / "theirs.h5ad", backed="r")
    # Wherever the disk is full, it is an error of Python, not a crash.
    for room in range(0, 100_000, 10_000):
        with full_disk(room), pytest.raises(OSError, match="File too large"):
            write_h5ad(tmp_path / f"{room}.h5ad", cells)
    write_h5ad(tmp_path / "ours.h5ad", cells, compression="gzip")
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    assert content(ours) == content(theirs)
    assert content(ours.raw.to_adata()) == content(theirs.raw.to_adata())


@pytest.mark.parametrize("can_reserve", [True, False])
def test_room_for_what_others_write_is_checked(adata, tmp_path, monkeypatch, can_reserve):
    path, usage = tmp_path / "cells.h5ad", shutil.disk_usage(tmp_path)
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    check_room(path, adata)
    assert not path.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with full_disk(2**20), pytest.raises(OSError, match="too large|No space left"):
        check_room(path, adata)
