"""Models saved by scArches 0.6.1, with what they represent and decode, for the tests.

Run in scArches' environment, which ``benchmarks/peers/environments.sh`` makes:

    python tests/data/scarches/make.py
"""

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch

# Gone from anndata since this release, which imports it.
anndata.read = anndata.read_h5ad
import scarches  # noqa: E402

FOLDER = Path(__file__).parent
CONDITIONS = ["b", "a", "c"]
N_CELLS, N_GENES = 30, 12
MODELS = {
    "nb": {"hidden_layer_sizes": [16, 8], "use_ln": True, "mmd_on": "z", "beta": 2},
    "zinb": {"hidden_layer_sizes": [8], "use_bn": True, "mmd_on": "y", "dr_rate": 0.0},
    "mse": {"hidden_layer_sizes": [16, 12, 8], "use_ln": False, "use_mmd": False},
}


def simulate(recon_loss: str) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    condition = np.resize(CONDITIONS, N_CELLS)
    # Some genes are rare, so that a decoder that is cut off at 0 is so somewhere.
    rates = rng.gamma(0.7, 4.0, (3, N_GENES))[np.searchsorted(["a", "b", "c"], condition)]
    x = rng.poisson(rates * rng.gamma(5.0, 0.2, (N_CELLS, 1))).astype(np.float32)
    return anndata.AnnData(
        np.log1p(x) if recon_loss == "mse" else x,
        obs=pd.DataFrame({"study": condition}, index=[f"cell_{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)]),
    )


def expected_of(model, cells: anndata.AnnData) -> dict[str, np.ndarray]:
    """Of the posterior mean: all cells decoded under each condition, and the first layer."""
    network = model.model.eval()
    latent = model.get_latent(cells.X, cells.obs["study"], mean=True)
    own = torch.tensor([CONDITIONS.index(c) for c in cells.obs["study"]])
    size = cells.X.sum(1, keepdims=True) if network.recon_loss != "mse" else 1
    with torch.no_grad():
        z = torch.as_tensor(latent)
        decoded = [network.decoder(z, torch.full((N_CELLS,), c)) for c in range(len(CONDITIONS))]
        first_layer = network.decoder(z, own)[-1]
    expected = {
        "latent": latent,
        "first_layer": first_layer.numpy(),
        "decoded": np.stack([d[0].numpy() * size for d in decoded]),
    }
    if network.recon_loss != "mse":
        expected["theta"] = network.theta.detach().exp().numpy()
    if network.recon_loss == "zinb":
        expected["dropout_logits"] = np.stack([d[1].numpy() for d in decoded])
    return expected


for recon_loss, settings in MODELS.items():
    cells = simulate(recon_loss)
    model = scarches.models.TRVAE(
        adata=cells,
        condition_key="study",
        conditions=CONDITIONS,
        recon_loss=recon_loss,
        latent_dim=4,
        **settings,
    )
    model.train(n_epochs=30, lr=0.01, batch_size=16, use_early_stopping=False, monitor=False)
    shutil.rmtree(FOLDER / recon_loss, ignore_errors=True)
    model.save(str(FOLDER / recon_loss))
    np.savez_compressed(
        FOLDER / recon_loss / "expected.npz",
        x=cells.X,
        study=cells.obs["study"].to_numpy(dtype=str),
        conditions=np.array(CONDITIONS),
        genes=cells.var_names.to_numpy(dtype=str),
        **expected_of(model, cells),
    )
