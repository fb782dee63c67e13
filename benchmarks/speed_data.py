"""The cells for ``benchmarks/speed.py``, and the ways to pass them to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import scanpy as sc
from accuracy import read_kang
from anndata.experimental import AnnCollection
from anndata.io import read_elem, sparse_dataset
from scipy import sparse
from scvi.dataloaders import CollectionAdapter

import trvae

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS, BATCH_SIZE, N_GENES, SEED = (256, 64), 128, 2_000, 0
IN_MEMORY, ONE_FILE, FOUR_FILES, SHARDS = (
    "in memory",
    "from disk",
    "from four files on disk",
    "from shards",
)


def prepare_kang(data: Path, folder: Path) -> None:
    """Write all cells of Kang et al. with 2,000 genes, as counts and as log-normalised values."""
    adata, _ = read_kang(data)
    values = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(values, n_top_genes=N_GENES)
    genes = values.var["highly_variable"].to_numpy()
    for name, cells in (("nb", adata), ("mse", values)):
        cells = ad.AnnData(
            sparse.csr_matrix(cells.X[:, genes]),
            obs={
                "condition": cells.obs["condition"].astype(str).to_numpy(),
                "label": cells.obs["cell_type"].astype(str).to_numpy(),
            },
        )
        cells.write_h5ad(folder / f"kang_{name}.h5ad")


def prepare_simulated(path: Path, n_cells: int, n_conditions: int) -> None:
    """Write counts of which 5 % are not zero."""
    rng = np.random.default_rng(SEED)
    per_cell = N_GENES // 20
    indices = np.sort(
        np.concatenate(
            [rng.integers(0, N_GENES // per_cell, (n_cells, per_cell), dtype=np.int32)]
        ) + np.arange(per_cell, dtype=np.int32) * (N_GENES // per_cell)
    )  # fmt: skip
    counts = rng.poisson(1.0, n_cells * per_cell).astype(np.float32) + 1
    matrix = sparse.csr_matrix(
        (counts, indices.ravel(), np.arange(0, counts.size + 1, per_cell)), (n_cells, N_GENES)
    )
    obs = {
        "condition": np.char.add("c", rng.integers(0, n_conditions, n_cells).astype(str)),
        "label": np.char.add("t", rng.integers(0, 5, n_cells).astype(str)),
    }
    ad.AnnData(matrix, obs=obs).write_h5ad(path)


def prepare_source(path: Path, source: str) -> None:
    """Write the simulated cells of a file as a source needs them, if they aren't there."""
    if not path.exists():
        n_cells, n_conditions = map(int, path.stem.split("_")[1:])
        prepare_simulated(path, n_cells, n_conditions)
    if source == FOUR_FILES and not _parts(path)[0].exists():
        adata = ad.read_h5ad(path)
        rows = np.array_split(np.arange(adata.n_obs), 4)
        for part, rows_of_part in zip(_parts(path), rows, strict=True):
            adata[rows_of_part].copy().write_h5ad(part)
    if source == SHARDS and not _shards(path).exists():
        from annbatch import DatasetCollection

        DatasetCollection(_shards(path)).add_adatas([path])


def _parts(path: Path) -> list[Path]:
    return [path.with_name(f"{path.stem}_part_{i}.h5ad") for i in range(4)]


def _open_part(part: Path) -> ad.AnnData:
    """Return an AnnData with its counts on disk, as a layer: of a collection, no others are read."""
    file = h5py.File(part)
    counts = sparse_dataset(file["X"])
    obs, var = read_elem(file["obs"]), read_elem(file["var"])
    return ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts})


def _shards(path: Path) -> Path:
    return path.with_suffix(".zarr")


def _open_shards(path: Path):
    """Return a data module of shuffled shards."""
    from annbatch import DatasetCollection, Loader
    from scvi.dataloaders import AnnbatchDataModule

    loader = Loader(chunk_size=256, preload_nchunks=32, batch_size=BATCH_SIZE, shuffle=True)
    return AnnbatchDataModule(
        loader.use_collection(DatasetCollection(_shards(path))),
        batch_key="condition",
        label_key="label",
        var_names=[str(i) for i in range(N_GENES)],
        preload_to_gpu=False,
    )


def model_of(
    path: Path, source: str, likelihood: str, decoder: str = "additive"
) -> tuple[trvae.TRVAE, dict]:
    """Return a model of the cells in a file, and what its ``train`` needs to read them."""
    kwargs = {
        "decoder": decoder,
        "hidden_sizes": WIDTHS,
        "gene_likelihood": "nb" if likelihood == "nb" else "normal",
        "seed": SEED,
    }
    if source == SHARDS:
        datamodule = _open_shards(path)
        return trvae.TRVAE(registry=datamodule.registry, **kwargs), {"datamodule": datamodule}
    if source == FOUR_FILES:
        files = [_open_part(part) for part in _parts(path)]
        collection = AnnCollection(files, join_vars="inner", join_obs="inner", label="file")
        cells, layer = CollectionAdapter(collection), "counts"
    else:
        cells, layer = ad.read_h5ad(path, backed="r" if source == ONE_FILE else None), None
    trvae.TRVAE.setup_anndata(cells, condition_key="condition", labels_key="label", layer=layer)
    return trvae.TRVAE(cells, **kwargs), {}
