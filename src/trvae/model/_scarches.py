"""Reading a TRVAE of scArches, without scArches and without running code from its files."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from trvae._utils._arguments import (
    check_choice,
    is_integer,
    is_list_of,
    is_number,
    is_positive_integer,
    join_names,
)
from trvae.data._cells import private_copy
from trvae.data._checks import check_categories
from trvae.io._plain import DAMAGE, read_pickle, read_torch
from trvae.module._mmd import BANDWIDTHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from trvae.module._expression import TRVAEModule


_ATTRIBUTES, _WEIGHTS, _GENES = "attr.pkl", "model_params.pt", "var_names.csv"


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int | float | np.generic)


# What is read of a model, and whether it is of the kind that scArches has there.
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "beta": is_number,
    "condition_key": lambda value: value is None or isinstance(value, str),
    "conditions": lambda value: isinstance(value, list) and all(map(_is_name, value)),
    "dr_rate": is_number,
    "hidden_layer_sizes": lambda value: is_list_of(value, is_positive_integer),
    "input_dim": is_positive_integer,
    "is_trained": _is_flag,
    "latent_dim": is_positive_integer,
    "mmd_boundary": lambda value: value is None or is_integer(value),
    "mmd_on": lambda value: isinstance(value, str),
    "recon_loss": lambda value: isinstance(value, str),
    "use_bn": _is_flag,
    "use_ln": _is_flag,
    "use_mmd": _is_flag,
}


_LIKELIHOODS = {"nb": "nb", "zinb": "zinb", "mse": "normal"}


# PyTorch's default, which scArches leaves as it is.
_BATCH_NORM_EPS = 1e-5


_UNFIT = "The weights of the scArches model don't fit its settings"


class ScarchesModel(NamedTuple):
    """What there is to know of a TRVAE of scArches."""

    settings: dict[str, Any]
    """Its attributes without the underscore that their names end with."""
    weights: dict[str, torch.Tensor]
    """State of its network, on the CPU."""
    var_names: np.ndarray
    """Its genes, ``n_genes``."""

    def cells(self, adata: AnnData, condition_key: str, layer: str | None) -> AnnData:
        """Return a copy of the user's cells, of the model's genes and with its conditions' order.

        Raises
        ------
        ValueError
            If a gene, the column or one of the conditions is missing, or cells are of others.
        """
        check_categories(adata, "condition_key", condition_key)
        found, conditions = list(adata.obs[condition_key].unique()), self.settings["conditions"]
        if unknown := [name for name in found if name not in conditions]:
            raise ValueError(
                f"adata.obs[{condition_key!r}] has conditions that the scArches model does not "
                f"know: {join_names(unknown)}. It knows {join_names(conditions)}."
            )
        if absent := [name for name in conditions if name not in found]:
            raise ValueError(
                f"adata has no cells of the scArches model's conditions {join_names(absent)}: "
                f"adata.obs[{condition_key!r}] has only {join_names(found)}."
            )
        cells = private_copy(adata, self.var_names, layer)
        cells.obs[condition_key] = pd.Categorical(cells.obs[condition_key], conditions)
        return cells

    def arguments(self) -> dict[str, Any]:
        """Return what makes a :class:`~trvae.TRVAE` of its architecture and objective."""
        settings = self.settings
        is_normal = settings["recon_loss"] == "mse"
        without_batch_norm = "layer" if settings["use_ln"] else "none"
        return {
            "n_latent": settings["latent_dim"],
            "hidden_sizes": settings["hidden_layer_sizes"],
            "dropout_rate": settings["dr_rate"],
            "gene_likelihood": _LIKELIHOODS[settings["recon_loss"]],
            "nonnegative_mean": is_normal,
            "dispersion": "gene" if is_normal else "gene-condition",
            "decoder": "conditional",
            "normalization": "batch" if settings["use_bn"] else without_batch_norm,
            # Its kernel is the sum over the bandwidths, ours the mean.
            "mmd_weight": settings["beta"] * len(BANDWIDTHS) if settings["use_mmd"] else 0.0,
            "mmd_layer": "latent" if settings["mmd_on"] == "z" else "decoder",
            "mmd_within_labels": False,
        }

    def copy_weights(self, module: TRVAEModule) -> None:
        """Give a module made with :meth:`arguments` the weights.

        Raises
        ------
        ValueError
            If a weight is missing or of another shape than the settings tell.
        """
        try:
            state = self._hidden_layers(module) | self._heads(module)
            module.load_state_dict(state)
        except DAMAGE as error:
            raise ValueError(f"{_UNFIT}: {error}") from error

    def _hidden_layers(self, module: TRVAEModule) -> dict[str, torch.Tensor]:
        theirs = self.weights
        state: dict[str, torch.Tensor] = {}
        for part, first, later in (("encoder", "FC", "FC"), ("decoder", "FirstL", "HiddenL")):
            layers: Any = module.get_submodule(f"{part}.hidden.layers")
            for i, layer in enumerate(layers):
                block, ours = f"{part}.{later if i else first}", f"{part}.hidden.layers.{i}"
                linear = f"{block}.L{i}" if i else f"{block}.L{i}.expr_L"
                weight = theirs[f"{linear}.weight"]
                # Hidden layers of the decoder have none.
                bias = theirs.get(f"{linear}.bias", weight.new_zeros(len(weight)))
                if i:
                    state |= {f"{ours}.map.weight": weight, f"{ours}.map.bias": bias}
                else:
                    state |= {
                        f"{ours}.map.linear.weight": weight,
                        f"{ours}.map.linear.bias": bias,
                        f"{ours}.map.condition.weight": theirs[f"{block}.L{i}.cond_L.weight"].T,
                    }
                if isinstance(layer.norm, nn.BatchNorm1d):
                    norm = {n: theirs[f"{block}.N{i}.{n}"] for n in layer.norm.state_dict()}
                    variance = norm["running_var"].double()
                    # The variance is kept from 0 by different constants.
                    ratio = (variance + layer.norm.eps) / (variance + _BATCH_NORM_EPS)
                    norm["weight"] = norm["weight"] * ratio.sqrt()
                    state |= {f"{ours}.norm.{name}": value for name, value in norm.items()}
        return state

    def _heads(self, module: TRVAEModule) -> dict[str, torch.Tensor]:
        heads = {
            "encoder.mean": "encoder.mean_encoder",
            "encoder.log_variance": "encoder.log_var_encoder",
            "decoder.logits": "decoder.mean_decoder.0",
        }
        if module.gene_likelihood == "zinb":
            heads["decoder.dropout_logits"] = "decoder.dropout_decoder"
        if module.is_count_model:
            log_dispersion = self.weights["theta"].T
        else:
            heads["decoder.logits"] = "decoder.recon_decoder.0"
            # The squared error is, up to a constant, the normal likelihood of a variance of 1/2.
            log_dispersion = torch.full((1, module.n_input), -0.5 * math.log(2))
        return {"log_dispersion.weight": log_dispersion} | {
            f"{ours}.{kind}": self.weights[f"{theirs}.{kind}"]
            for ours, theirs in heads.items()
            for kind in ("weight", "bias")
        }


def read_scarches(path_or_model: Any) -> ScarchesModel:
    """Read what scArches has saved, or a model of it.

    Parameters
    ----------
    path_or_model
        Folder, or a TRVAE of scArches.

    Raises
    ------
    ValueError
        If it is neither, or not trained, or made with what :class:`~trvae.TRVAE` doesn't have.
    """
    if isinstance(path_or_model, str | Path):
        attributes, weights, var_names = _read_folder(Path(path_or_model))
    else:
        attributes, weights, var_names = _read_live(path_or_model)
    if missing := [f"{name}_" for name in _SETTINGS if f"{name}_" not in attributes]:
        raise ValueError(
            f"This is not a TRVAE of scArches 0.6, whose attributes {join_names(missing)} it "
            "doesn't have."
        )
    settings = {name: attributes[f"{name}_"] for name in _SETTINGS}
    if wrong := [
        f"{name}_" for name, is_right in _SETTINGS.items() if not is_right(settings[name])
    ]:
        raise ValueError(
            f"The scArches model has attributes of a wrong kind: {join_names(wrong)}."
        )
    _check_settings(settings, len(var_names))
    widths = (settings["input_dim"], *settings["hidden_layer_sizes"], settings["latent_dim"])
    needed = sum(before * after for before, after in pairwise(widths))
    # Before memory is taken for them.
    if needed > (found := sum(weight.numel() for weight in weights.values())):
        raise ValueError(
            f"{_UNFIT}: the encoder would need {needed} of them, and {found} are there."
        )
    return ScarchesModel(settings, weights, var_names)


def _check_settings(settings: dict[str, Any], n_genes: int) -> None:
    if not settings["is_trained"]:
        raise ValueError("The scArches model is not trained.")
    if settings["condition_key"] is None or len(settings["conditions"]) < 2:
        raise ValueError(
            f"The scArches model has conditions={settings['conditions']!r}; a transfer needs at "
            "least two."
        )
    check_choice("The scArches model's recon_loss", settings["recon_loss"], list(_LIKELIHOODS))
    if settings["use_mmd"] and settings["mmd_boundary"] is not None:
        raise ValueError(
            f"The scArches model has mmd_boundary={settings['mmd_boundary']!r}. Here the MMD is "
            "between all pairs of conditions, which is mmd_boundary=None."
        )
    if settings["input_dim"] != n_genes:
        raise ValueError(
            f"The scArches model has input_dim={settings['input_dim']!r}, but names of "
            f"{n_genes} genes."
        )


def _read_folder(folder: Path) -> tuple[dict, dict[str, torch.Tensor], np.ndarray]:
    files = [_ATTRIBUTES, _WEIGHTS, _GENES]
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} is no folder of a model saved by scArches: it has no {join_names(missing)}."
        )
    attributes, weights = read_pickle(folder / _ATTRIBUTES), read_torch(folder / _WEIGHTS)
    if not isinstance(attributes, dict) or not _are_tensors(weights):
        raise ValueError(f"{folder} does not hold the attributes and the weights of a model.")
    # As numpy.savetxt writes it.
    genes = (folder / _GENES).read_text("latin1").rstrip("\n").split("\n")
    return attributes, weights, np.array(genes, dtype=object)


def _read_live(model: Any) -> tuple[dict, dict[str, torch.Tensor], np.ndarray]:
    network, adata = getattr(model, "model", None), getattr(model, "adata", None)
    if not isinstance(network, nn.Module) or adata is None:
        raise ValueError(
            f"An object of type {type(model).__name__} is neither a folder nor a TRVAE of scArches."
        )
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return vars(model), weights, adata.var_names.to_numpy(dtype=object)


def _are_tensors(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    )
