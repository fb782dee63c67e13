"""PBMCs with and without interferon-beta (Kang et al. 2018)."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pooch
from anndata import AnnData, read_h5ad

from trvae.data._checks import is_nonnegative
from trvae.metrics._normalize import is_counts

_URL = "https://scverse-exampledata.s3.eu-west-1.amazonaws.com/pertpy/kang_2018.h5ad"
_FULL_NAME = "kang_2018.h5ad"
# About 25,000 cells.
_N_CELLS = 20_000, 30_000
# Annotations can name some genes otherwise.
_SHARE_OF_GENES = 0.5


def kang18(*, full: bool = False, cache_dir: str | Path | None = None) -> AnnData:
    """PBMCs of eight lupus patients, half of them stimulated with interferon-beta.

    Parameters
    ----------
    full
        Whether to download the full data set (about 25,000 cells with the authors' annotation, from
        scverse's example data) instead of the subset that ships with the package. Its columns have
        other names; see ``adata.obs``.
    cache_dir
        Folder for the download, by default the user's cache folder.

    Returns
    -------
    AnnData with raw counts in ``X``. The subset that ships with the package has 12,969 cells and
    2,000 genes, chosen without the stimulated NK cells, and in ``obs``:

    * ``condition``: ``"control"`` or ``"stimulated"``
    * ``cell_type``: one of seven, called from canonical marker genes
    * ``n_counts``: library size over all 14,053 measured genes

    Raises
    ------
    ConnectionError
        If the full data set can't be downloaded; the message says what to fetch by hand and
        where to put it.
    ValueError
        If the file is not the full data set. One that was just downloaded is removed.

    Notes
    -----
    The host publishes no checksum of the full data set. Instead, its content is checked: about
    25,000 cells, most genes of the subset, a column of ``obs`` with two
    conditions, and raw counts in ``X``.

    From the Gene Expression Omnibus, which places no restrictions on the use of its data.

    References
    ----------
    Kang et al., *Nature Biotechnology* 36, 89 (2018), doi 10.1038/nbt.4042, GSE96583.
    """
    if full:
        return _full(Path(pooch.os_cache("trvae") if cache_dir is None else cache_dir))
    return _subset()


def _subset() -> AnnData:
    with as_file(files("trvae.datasets") / "kang18.h5ad") as path:
        return read_h5ad(path)


def _full(folder: Path) -> AnnData:
    """The full data set, which is downloaded unless it is in the folder."""
    path = folder / _FULL_NAME
    was_there = path.exists()
    try:
        # The host publishes no checksum, so the content is checked.
        pooch.retrieve(_URL, known_hash=None, fname=_FULL_NAME, path=folder, progressbar=True)
    except OSError as error:
        raise ConnectionError(
            f"The full Kang 2018 data could not be downloaded ({error}). Fetch {_URL} by hand and "
            f"put it at {path}, or use kang18() for the subset that needs no download."
        ) from error
    try:
        adata = read_h5ad(path)
        faults = _faults(adata)
    except (OSError, KeyError, ValueError, TypeError) as error:
        faults = [f"it can't be read: {error}"]
    if not faults:
        return adata
    if not was_there:
        path.unlink()
    raise ValueError(
        f"{path} is not the full Kang 2018 data: {'; '.join(faults)}. "
        + ("Remove it." if was_there else f"It came from {_URL} and was removed.")
    )


def _faults(adata: AnnData) -> list[str]:
    """What the full data set would not have."""
    faults = []
    low, high = _N_CELLS
    if not low <= adata.n_obs <= high:
        faults.append(f"it has {adata.n_obs} cells, not about 25,000")
    genes = _subset().var_names
    if genes.isin(adata.var_names).mean() < _SHARE_OF_GENES:
        faults.append("it lacks most genes of the subset that ships with the package")
    if not any(adata.obs[column].nunique() == 2 for column in adata.obs):
        faults.append("no column of obs has two conditions")
    if adata.X is None or not (is_nonnegative(adata.X) and is_counts(adata.X)):
        faults.append("X has no raw counts")
    return faults
