"""What many tests share: settings, a small fit, a disk that is full."""

import os
import re
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from mudata import MuData
from scipy import sparse

import trvae

# The device that the tests run on: "cpu" or "cuda". conftest.py checks it.
DEVICE = os.environ.get("TRVAE_TEST_DEVICE", "cpu")
ACCELERATOR = {"cuda": "gpu"}.get(DEVICE, DEVICE)
FIXTURES = Path(__file__).parent / "fixtures"
REFERENCE = Path(__file__).parents[1] / "docs" / "api"
# The loss sums over genes, and there are few of them: the default weight would be too much.
SMALL = {"hidden_sizes": (32, 16), "n_latent": 4, "effect_sizes": (16,), "mmd_weight": 10.0}
# Long enough to learn a simulated effect from a few hundred cells.
LONG = {
    "max_epochs": 40,
    "batch_size": 128,
    "plan_kwargs": {"lr": 1e-2},
    "check_val_every_n_epoch": 10,
}
QUIET = {"enable_progress_bar": False, "accelerator": ACCELERATOR}


def cpu_only(reason):
    """Mark a test of what is only there, or only true, on the CPU."""
    return pytest.mark.skipif(DEVICE != "cpu", reason=f"CPU only: {reason}")


def reference():
    """Return the text of all pages of the API reference."""
    return "\n".join(page.read_text() for page in sorted(REFERENCE.glob("*.md")))


def members_in_reference(class_name):
    """Return the members of a class that have a page in the API reference, the inherited ones last."""
    return re.findall(rf"^    ~{class_name}\.(\w+)$", reference(), re.MULTILINE)


def on_device(values):
    """Move a tensor, or all tensors of a minibatch, to the device that the tests run on."""
    return move_data_to_device(values, torch.device(DEVICE))


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
    """Let no file become larger than ``n_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class At(Callback):
    """Do something when an epoch (from 0) starts, and keep the weights after each epoch.

    ``spoiled`` is an epoch that makes all weights worse.
    """

    def __init__(self, epoch, action, spoiled=None):
        self.epoch, self.action, self.spoiled, self.weights = epoch, action, spoiled, []

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        if trainer.current_epoch == self.spoiled:
            for weight in plan.module.parameters():
                weight.data.mul_(1.5)
        if trainer.current_epoch == self.epoch and batch_idx == 0:
            self.action(plan)

    def on_train_epoch_end(self, trainer, plan):
        self.weights.append(copied(plan.module))


def sending(*numbers):
    """An action that sends signals to this process."""
    return lambda plan: [signal.raise_signal(number) for number in numbers]


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(module, weights):
    state = module.state_dict()
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        # A model that was not trained, or was just loaded, may be on another device.
        assert torch.equal(state[name].cpu(), value.cpu()), name


def is_group(adata, condition="treated", label="type_0"):
    """Mask of the simulated cells of a label under a condition."""
    return ((adata.obs["condition"] == condition) & (adata.obs["cell_type"] == label)).to_numpy()


class Unchanged:
    """A method that predicts no change."""

    def fit(self, adata, **kwargs):
        self.key = kwargs["condition_key"]

    def transfer(self, adata, target_condition, *, seed):
        adata.obs[self.key] = target_condition
        return adata


def untrained(adata, **kwargs):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    model = trvae.TRVAE(adata, **({"seed": 0} | SMALL | kwargs))
    model.to_device(DEVICE)
    return model


def bars(n=20, size=10, n_channels=1, kind="integers", seed=0):
    """Noisy images of bars, upright or level, dark or bright depending on the condition."""
    rng = np.random.default_rng(seed)
    images, rows = [], []
    for condition, brightness in {"dark": 0.3, "bright": 0.8}.items():
        for shape in ("upright", "level"):
            for _ in range(n):
                image = np.zeros((size, size, n_channels))
                start = rng.integers(1, size - 4)
                image[1:-1, start : start + 3] = brightness
                image = image if shape == "upright" else image.swapaxes(0, 1)
                images.append((image + rng.normal(0, 0.02, image.shape)).clip(0, 1))
                rows.append((condition, shape))
    pixels = np.stack(images).reshape(len(images), -1)
    pixels = (255 * pixels).astype(np.uint8) if kind == "integers" else pixels.astype(np.float32)
    return anndata.AnnData(
        sparse.csr_matrix(pixels) if kind == "sparse" else pixels,
        obs=pd.DataFrame(rows, columns=["condition", "shape"], index=map(str, range(len(rows)))),
        uns={"image_shape": np.array([size, size, n_channels])},
    )


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def of_matrix(make):
    """Change the dense matrix of an AnnData."""

    def change(adata):
        return anndata.AnnData(make(dense(adata.X)), adata.obs, adata.var)

    return change


def content(data):
    """All that a user's data hold, except what scvi-tools registers."""
    if isinstance(data, MuData):
        modalities = {name: content(cells) for name, cells in data.mod.items()}
        return modalities | {"obs": of_user(data.obs)}
    if not isinstance(data, anndata.AnnData):
        return {}
    layers = {name: matrix for name, matrix in data.layers.items() if name is not None}
    matrices = {"X": data.X} | layers
    values = {
        name: None if matrix is None else (type(matrix), repr(dense(matrix).tolist()))
        for name, matrix in matrices.items()
    }
    uns = {key for key in data.uns if not key.startswith("_scvi_")}
    return values | {"obs": of_user(data.obs), "var": of_user(data.var), "uns": uns}


def of_user(frame):
    own = frame[[name for name in frame if not str(name).startswith("_scvi_")]]
    columns = [(name, own.iloc[:, i]) for i, name in enumerate(own)]
    return [list(own.index), *((name, str(c.dtype), repr(c.tolist())) for name, c in columns)]


def assert_unchanged(data, before):
    """The data hold what they held, see :func:`content`."""
    assert content(data) == before
