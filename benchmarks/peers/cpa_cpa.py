"""CPA 0.8.8 with the settings of its tutorial on these cells (Kang et al.).

Its ``predict`` needs the cells with the source's expression and the target as their condition,
and gives the mean of the negative binomial, from which counts are drawn.
"""

import anndata as ad
import cpa
import numpy as np
import pandas as pd
from interface import draw_counts, read_task, write_prediction

task = read_task()
rng = np.random.default_rng(task.seed)
cells = ad.concat({"train": task.train, "ood": task.control}, label="split", index_unique="-")
is_ood = (cells.obs["split"] == "ood").to_numpy()
split = np.where(is_ood, "ood", np.where(rng.random(cells.n_obs) < 0.1, "valid", "train"))
condition = np.where(is_ood, task.target, cells.obs["condition"].astype(str))
cells.obs = pd.DataFrame(
    {
        "split": split,
        "condition": condition,
        "label": cells.obs["label"].astype(str).to_numpy(),
        "dose": "1.0",
    },
    index=cells.obs_names,
)
cpa.CPA.setup_anndata(
    cells,
    perturbation_key="condition",
    control_group=task.source,
    dosage_key="dose",
    categorical_covariate_keys=["label"],
    is_count_data=True,
    max_comb_len=1,
)
model = cpa.CPA(
    adata=cells,
    split_key="split",
    train_split="train",
    valid_split="valid",
    test_split="ood",
    n_latent=64,
    recon_loss="nb",
    doser_type="linear",
    n_hidden_encoder=128,
    n_layers_encoder=2,
    n_hidden_decoder=512,
    n_layers_decoder=2,
    use_batch_norm_encoder=True,
    use_layer_norm_encoder=False,
    use_batch_norm_decoder=False,
    use_layer_norm_decoder=True,
    dropout_rate_encoder=0.0,
    dropout_rate_decoder=0.1,
    variational=False,
    seed=task.seed,
)
model.train(
    max_epochs=2000,
    use_gpu=False,
    batch_size=512,
    early_stopping_patience=5,
    check_val_every_n_epoch=5,
    save_path=str(task.folder / "cpa"),
    plan_kwargs={
        "n_epochs_kl_warmup": None,
        "n_epochs_pretrain_ae": 30,
        "n_epochs_adv_warmup": 50,
        "n_epochs_mixup_warmup": 0,
        "mixup_alpha": 0.0,
        "adv_steps": None,
        "n_hidden_adv": 64,
        "n_layers_adv": 3,
        "use_batch_norm_adv": True,
        "use_layer_norm_adv": False,
        "dropout_rate_adv": 0.3,
        "reg_adv": 20.0,
        "pen_adv": 5.0,
        "lr": 0.0003,
        "wd": 4e-07,
        "adv_lr": 0.0003,
        "adv_wd": 4e-07,
        "adv_loss": "cce",
        "doser_lr": 0.0003,
        "doser_wd": 4e-07,
        "do_clip_grad": True,
        "gradient_clip_value": 1.0,
        "step_size_lr": 10,
    },
)
model.predict(cells, batch_size=1024)
mean = np.asarray(cells.obsm["CPA_pred"])[is_ood]
theta = model.module.px_r.exp().detach().cpu().numpy()
write_prediction(task, draw_counts(mean, theta, task.seed))
