"""What many tests share: settings, a small fit, a disk that is full."""

import resource
from contextlib import contextmanager
from pathlib import Path

import trvae

FIXTURES = Path(__file__).parent / "fixtures"
# The loss sums over genes, and there are few of them: the default weight would be too much.
SMALL = {"hidden_sizes": (32, 16), "n_latent": 4, "effect_sizes": (16,), "mmd_weight": 10.0}
LONG = {"max_epochs": 100, "batch_size": 64, "plan_kwargs": {"lr": 3e-3}}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def fit(adata, *, setup=None, train=None, **kwargs):
    """Register a copy of the data and train a small model on it."""
    setup = {"condition_key": "condition", "labels_key": "cell_type"} | (setup or {})
    registered = adata.copy()
    trvae.TRVAE.setup_anndata(registered, **setup)
    model = trvae.TRVAE(registered, **({"seed": 0} | SMALL | kwargs))
    model.train(**({"max_epochs": 3} | QUIET | (train or {})))
    return model


@contextmanager
def full_disk(n_bytes=20_000):
    """No file can become larger than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
