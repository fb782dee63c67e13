"""biolord 0.0.3 with the settings of its tutorial on perturbations, and at most 100 epochs."""

import biolord
import numpy as np
from interface import read_task, write_prediction

task = read_task()
rng = np.random.default_rng(task.seed)
cells = task.train
cells.obs["split"] = np.where(rng.random(cells.n_obs) < 0.1, "valid", "train")
(label,) = task.control.obs["label"].unique()
biolord.Biolord.setup_anndata(cells, categorical_attributes_keys=["label", "condition"])
model = biolord.Biolord(
    cells,
    n_latent=256,
    model_name="kang",
    module_params={
        "decoder_width": 1024,
        "decoder_depth": 4,
        "attribute_nn_width": 512,
        "attribute_nn_depth": 2,
        "n_latent_attribute_categorical": 4,
        "gene_likelihood": "normal",
        "reconstruction_penalty": 1e2,
        "unknown_attribute_penalty": 1e1,
        "unknown_attribute_noise_param": 1e-1,
        "attribute_dropout_rate": 0.1,
        "use_batch_norm": False,
        "use_layer_norm": False,
        "seed": task.seed,
    },
    train_classifiers=False,
    split_key="split",
    train_split="train",
    valid_split="valid",
    test_split="none",
)
model.train(
    max_epochs=100,
    batch_size=128,
    plan_kwargs={
        "n_epochs_warmup": 0,
        "latent_lr": 1e-4,
        "latent_wd": 1e-4,
        "decoder_lr": 1e-4,
        "decoder_wd": 1e-4,
        "attribute_nn_lr": 1e-2,
        "attribute_nn_wd": 4e-8,
        "step_size_lr": 45,
        "cosine_scheduler": True,
        "scheduler_final_lr": 1e-5,
    },
    early_stopping=True,
    early_stopping_patience=20,
    check_val_every_n_epoch=5,
    enable_checkpointing=False,
)
own = (cells.obs["label"] == label) & (cells.obs["condition"] == task.source)
source = cells[own.to_numpy()].copy()
predicted = model.compute_prediction_adata(cells, source, target_attributes=["condition"])
predicted = predicted[(predicted.obs["condition"] == task.target).to_numpy()].copy()
predicted.obs_names = source.obs_names
write_prediction(task, predicted[task.control.obs_names].X)
