"""Small data and a small trained model that the tests share."""

import os
import resource
import signal
from contextlib import contextmanager

import pytest
import scvi

import trvae

# The loss sums over genes, and there are few of them: the default weight would be too much.
SMALL = {"hidden_sizes": (32, 16), "n_latent": 4, "effect_sizes": (16,), "mmd_weight": 10.0}
LONG = {"max_epochs": 100, "batch_size": 64, "plan_kwargs": {"lr": 3e-3}}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def pytest_xdist_setupnodes():
    """Give each process that runs tests one core; set here, its libraries find it when they load."""
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")


@pytest.fixture(autouse=True)
def _handlers_of_a_script():
    """What Python itself does, whoever runs the tests: Ray leaves handlers of its own."""
    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGTERM, signal.signal(signal.SIGTERM, signal.SIG_DFL)),
    ]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_global_seed():
    """Seeds are given explicitly, so that none leaks from test to test."""
    scvi.settings.seed = None


@pytest.fixture
def adata():
    """Raw counts of 3 cell types under 2 conditions, 240 cells x 60 genes."""
    return trvae.datasets.simulated(n_cells=40, n_genes=60)


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


@pytest.fixture(scope="session")
def trained():
    """A small model trained long enough to know the simulated effect. Not to be changed."""
    adata = trvae.datasets.simulated(n_cells=100, n_genes=60)
    return fit(adata, train=LONG)


@pytest.fixture
def control(trained):
    """The control cells of one type, as a user would pass them."""
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    keep = (cells.obs["condition"] == "control") & (cells.obs["cell_type"] == "type_0")
    return cells[keep].copy()
