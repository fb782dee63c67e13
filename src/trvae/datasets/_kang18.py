"""PBMCs with and without interferon-beta (Kang et al. 2018)."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pooch
from anndata import AnnData, read_h5ad

_URL = "https://scverse-exampledata.s3.eu-west-1.amazonaws.com/pertpy/kang_2018.h5ad"
_FULL_NAME = "kang_2018.h5ad"


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

    Notes
    -----
    From the Gene Expression Omnibus, which places no restrictions on the use of its data.

    References
    ----------
    Kang et al., *Nature Biotechnology* 36, 89 (2018), doi 10.1038/nbt.4042, GSE96583.
    """
    if full:
        return read_h5ad(_download(cache_dir))
    with as_file(files("trvae.datasets") / "kang18.h5ad") as path:
        return read_h5ad(path)


def _download(cache_dir: str | Path | None) -> str:
    """Path of the full data set, which is downloaded unless it is there."""
    folder = Path(cache_dir) if cache_dir is not None else pooch.os_cache("trvae")
    try:
        # The host publishes no checksum.
        return pooch.retrieve(
            _URL, known_hash=None, fname=_FULL_NAME, path=folder, progressbar=True
        )
    except OSError as error:
        raise ConnectionError(
            f"The full Kang 2018 data could not be downloaded ({error}). Fetch {_URL} by hand and "
            f"put it at {folder / _FULL_NAME}, or use kang18() for the subset that needs no "
            "download."
        ) from error
