"""Small data and a small trained model that the tests share."""

import os
import signal
from contextlib import nullcontext

if os.environ.get("TRVAE_TEST_DEVICE", "cpu") == "cpu":
    # Before anything looks for a GPU; processes that the tests start inherit it.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import scvi
import torch
from helpers import DEVICE, LONG, fit

import trvae


def pytest_configure():
    """Refuse a device that is unknown or not there, and make the GPU's arithmetic repeatable."""
    if DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"TRVAE_TEST_DEVICE must be 'cpu' or 'cuda', got {DEVICE!r}.")
    if DEVICE == "cuda":
        if not torch.cuda.is_available():
            raise pytest.UsageError("TRVAE_TEST_DEVICE is 'cuda', but PyTorch finds no GPU.")
        # Tests compare trainings bit by bit, and images to the last grey value.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False


@pytest.hookimpl(optionalhook=True)
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


@pytest.fixture(autouse=True)
def _same_draws_in_any_order(request):
    """What a test draws from its module's generator does not depend on the tests before it."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)


@pytest.fixture
def tensors_on_device():
    """Make the test's own tensors and layers on the device that the tests run on."""
    with nullcontext() if DEVICE == "cpu" else torch.device(DEVICE):
        yield


@pytest.fixture
def adata():
    """Raw counts of 3 cell types under 2 conditions, 240 cells x 60 genes."""
    return trvae.datasets.simulated(n_cells=40, n_genes=60)


@pytest.fixture(scope="session")
def trained():
    """A small model trained long enough to know the simulated effect. Not to be changed."""
    return fit(trvae.datasets.simulated(n_cells=100, n_genes=60), train=LONG)


@pytest.fixture(scope="session")
def held_out():
    """A model that has not seen type 0 under treatment, and all cells. Not to be changed."""
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60, n_cell_types=4)
    is_held_out = (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "treated")
    return fit(cells[~is_held_out], train=LONG), cells


@pytest.fixture
def control():
    """The control cells of one type, as a user would pass them."""
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    keep = (cells.obs["condition"] == "control") & (cells.obs["cell_type"] == "type_0")
    return cells[keep].copy()
