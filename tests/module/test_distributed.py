import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trvae

SCRIPT = Path(__file__).with_name("ddp_training.py")


def test_two_processes_train_as_one_without_draws(tmp_path):
    weights = []
    for n_processes in (1, 2):
        out = tmp_path / f"{n_processes}.pt"
        command = [sys.executable, SCRIPT, str(n_processes), out]
        # On the CPU: it needs no GPU for each process.
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, timeout=300, env=env)
        weights.append(torch.load(out))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


def test_processes_need_a_seed(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="need the same seed"):
        trvae.TRVAE(adata).train(max_epochs=1, strategy="ddp", devices=2, accelerator="cpu")
