"""Calibration of the spread of predicted cells."""

from __future__ import annotations

import numpy as np


def coverage(predicted: np.ndarray, observed: np.ndarray, level: float = 0.9) -> float:
    """Share of observed values within the central interval of the predicted cells' values.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.
    level
        Nominal coverage: the interval reaches from the quantile ``(1 - level) / 2`` to
        ``(1 + level) / 2`` of a gene's predicted values.

    Returns
    -------
    Between 0 and 1, averaged over genes; ``level`` if the distributions agree. Where many predicted
    values are equal, such as zeros, a quantile can fall among them; an observed value equal to them
    then counts by the share of them within the interval.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Czado, Gneiting & Held, *Biometrics* 65, 1254 (2009), section 2: the nonrandomised probability
    integral transform of counts.
    """
    low, high = (1 - level) / 2, (1 + level) / 2
    shares = []
    for values, new in zip(np.sort(predicted, axis=0).T, observed.T, strict=True):
        below, up_to = (
            np.searchsorted(values, new, side) / len(values) for side in ("left", "right")
        )
        inside, tied = np.minimum(up_to, high) - np.maximum(below, low), up_to - below
        share = np.where(inside >= 0, 1.0, 0.0)
        np.divide(inside.clip(0), tied, out=share, where=tied > 0)
        shares.append(share.mean())
    return float(np.mean(shares))
