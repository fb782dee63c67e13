"""What scArches 0.6.1 leaves to its user: decoding cells under another condition."""

from __future__ import annotations

import numpy as np
import torch
from interface import draw_counts


def predict(model, x: np.ndarray, source: np.ndarray, target: str, seed: int) -> np.ndarray:
    """Encode under the source, decode under the target, and draw if the model is one of counts.

    Parameters
    ----------
    model
        A TRVAE.
    x
        Dense counts or log-normalised values, ``n_cells x n_genes``.
    source
        Condition of each cell, ``n_cells``.
    target
        Condition to decode under.
    seed
        Seed of the draws.

    Returns
    -------
    Counts drawn with the cells' library sizes, or decoded means, ``n_cells x n_genes``.
    """
    network, encoder = model.model.eval(), model.model.condition_encoder
    device = next(network.parameters()).device
    z = model.get_latent(x, source, mean=True)
    code = torch.full((len(x),), encoder[target], device=device)
    with torch.no_grad():
        decoded = network.decoder(torch.as_tensor(z, device=device), code)[0].cpu().numpy()
        if network.recon_loss != "nb":
            return decoded
        theta = network.theta[:, encoder[target]].exp().cpu().numpy()
    return draw_counts(decoded * x.sum(1, keepdims=True), theta, seed)
