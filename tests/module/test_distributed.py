import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trvae

SCRIPT = Path(__file__).with_name("ddp_training.py")


def weights_after_training(n_processes, out):
    subprocess.run(
        [sys.executable, SCRIPT, str(n_processes), out],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return torch.load(out)


# Draws are off in the script, as processes draw independently.
def test_two_processes_train_as_one_without_draws(tmp_path):
    one, two = (weights_after_training(n, tmp_path / f"{n}.pt") for n in (1, 2))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_processes_need_a_seed(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="need the same seed"):
        trvae.TRVAE(adata).train(max_epochs=1, strategy="ddp", devices=2, accelerator="cpu")
