"""Errors that name our argument where users of related tools give theirs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function", bound="Callable")

SETUP = {
    "batch_key": "condition_key for the conditions to transfer between, and "
    "categorical_covariate_keys for batches",
    "cell_type_key": "labels_key",
    "covariate_keys": "categorical_covariate_keys",
    "perturbation_key": "condition_key",
}
MODEL = {
    "alpha": "plan_kwargs={'max_kl_weight': ...} of train",
    "architecture": "hidden_sizes, such as hidden_sizes=(256, 64)",
    "beta": "mmd_weight",
    "condition_key": "condition_key of setup_anndata",
    "dr_rate": "dropout_rate",
    "hidden_layer_sizes": "hidden_sizes, such as hidden_sizes=(256, 64)",
    "latent_dim": "n_latent",
    "mmd_on": "mmd_layer",
    "n_hidden": "hidden_sizes with one number a layer, such as hidden_sizes=(256, 64)",
    "n_layers": "hidden_sizes with one number a layer, such as hidden_sizes=(256, 64)",
    "recon_loss": "gene_likelihood",
    "use_batch_norm": "normalization='batch'",
    "use_bn": "normalization='batch'",
    "use_layer_norm": "normalization='layer'",
    "use_ln": "normalization='layer'",
    "use_mmd": "mmd_weight=0 for a model without MMD",
    "z_dimension": "n_latent",
}
TRAIN = {
    "alpha_epoch_anneal": "plan_kwargs={'n_epochs_kl_warmup': ...}",
    "early_stopping_kwargs": "early_stopping and early_stopping_patience",
    "epochs": "max_epochs",
    "learning_rate": "plan_kwargs={'lr': ...}",
    "lr": "plan_kwargs={'lr': ...}",
    "n_epochs": "max_epochs",
    "train_frac": "train_size",
    "use_early_stopping": "early_stopping",
    "use_gpu": "accelerator, such as accelerator='gpu'",
    "weight_decay": "plan_kwargs={'weight_decay': ...}",
}
MAPPING = {"freeze": "unfrozen=True to train all weights"}


def hinting(hints: dict[str, str]) -> Callable[[_Function], _Function]:
    """Raise a ``TypeError`` that says what to use in place of an argument of another tool."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def checked(*args, **kwargs):
            for name in hints.keys() & kwargs.keys():
                raise TypeError(f"there is no argument {name!r}. Use {hints[name]}.")
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate
