"""Read a TRVAE of scArches, without scArches and without running code from its files."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from trvae._utils._arguments import check_arguments, choice, join_names
from trvae.data._cells import private_copy
from trvae.data._checks import check_categories
from trvae.io._reading import read_pickle, read_torch
from trvae.module._mmd import BANDWIDTHS

if TYPE_CHECKING:
    from anndata import AnnData

    from trvae.module._expression import TRVAEModule

_ATTRIBUTES, _WEIGHTS, _GENES = "attr.pkl", "model_params.pt", "var_names.csv"
# The attributes that are read, without the underscore that their names end with.
_SETTINGS: dict[str, Any] = {
    "beta": int | float,
    "condition_key": str | None,
    "conditions": list,
    "dr_rate": int | float,
    "hidden_layer_sizes": list,
    "input_dim": int,
    "is_trained": bool,
    "latent_dim": int,
    "mmd_boundary": int | None,
    "mmd_on": str,
    "recon_loss": str,
    "use_bn": bool,
    "use_ln": bool,
    "use_mmd": bool,
}
_ITEMS: dict[str, Any] = {"conditions": str | int | float, "hidden_layer_sizes": int}
_LIKELIHOODS = {"nb": "nb", "zinb": "zinb", "mse": "normal"}
# PyTorch's default, which scArches does not change.
_BATCH_NORM_EPS = 1e-5
_UNFIT = "The weights of the scArches model don't fit its settings"


class ScarchesModel(NamedTuple):
    """A TRVAE of scArches."""

    settings: dict[str, Any]
    """Attributes, without the underscore that their names end with."""
    weights: dict[str, torch.Tensor]
    """Weights, on the CPU."""
    var_names: np.ndarray
    """Genes, ``n_genes``."""

    def cells(self, adata: AnnData, condition_key: str, layer: str | None) -> AnnData:
        """Return a copy of the user's cells with the model's genes and order of conditions.

        Raises
        ------
        ValueError
            If a gene, the column or a condition is missing, or a condition is unknown.
        """
        check_categories(adata, "condition_key", condition_key)
        present, conditions = list(adata.obs[condition_key].unique()), self.settings["conditions"]
        if unknown := [name for name in present if name not in conditions]:
            raise ValueError(
                f"adata.obs[{condition_key!r}] has conditions that the scArches model does not "
                f"know: {join_names(unknown)}. It knows {join_names(conditions)}."
            )
        if absent := [name for name in conditions if name not in present]:
            raise ValueError(
                f"adata has no cells of the scArches model's conditions {join_names(absent)}: "
                f"adata.obs[{condition_key!r}] has only {join_names(present)}."
            )
        cells = private_copy(adata, self.var_names, layer)
        cells.obs[condition_key] = pd.Categorical(cells.obs[condition_key], conditions)
        return cells

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a :class:`~trvae.TRVAE` with this architecture and objective."""
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
            "mmd_reduction": "sum",
            # scArches' kernel is the sum over the bandwidths, ours the mean.
            "mmd_weight": settings["beta"] * len(BANDWIDTHS) if settings["use_mmd"] else 0.0,
            "mmd_layer": "latent" if settings["mmd_on"] == "z" else "decoder",
            "mmd_within_labels": False,
        }

    def copy_weights(self, module: TRVAEModule) -> None:
        """Copy the weights to a module made with :meth:`arguments`.

        Raises
        ------
        ValueError
            If a weight is missing or its shape doesn't fit the settings.
        """
        try:
            state = self._hidden_layers(module) | self._heads(module)
            module.load_state_dict(state)
        except (LookupError, RuntimeError, TypeError) as error:
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
                # The decoder's hidden layers have none.
                bias = theirs.get(f"{linear}.bias", weight.new_zeros(len(weight)))
                if i:
                    state |= {f"{ours}.map.weight": weight, f"{ours}.map.bias": bias}
                else:
                    state |= {
                        # The encoder's input layer has it transposed.
                        f"{ours}.map.linear.weight": weight.T if part == "encoder" else weight,
                        f"{ours}.map.linear.bias": bias,
                        f"{ours}.map.condition.weight": theirs[f"{block}.L{i}.cond_L.weight"].T,
                    }
                if isinstance(layer.norm, nn.BatchNorm1d):
                    norm = {n: theirs[f"{block}.N{i}.{n}"] for n in layer.norm.state_dict()}
                    variance = norm["running_var"].double()
                    # scArches and we add different constants to the variance.
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
            # Up to a constant, the squared error is the normal likelihood with variance 1/2.
            log_dispersion = torch.full((1, module.n_input), -0.5 * math.log(2))
        return {"log_dispersion.weight": log_dispersion} | {
            f"{ours}.{kind}": self.weights[f"{theirs}.{kind}"]
            for ours, theirs in heads.items()
            for kind in ("weight", "bias")
        }


def read_scarches(path_or_model: Any) -> ScarchesModel:
    """Read a model from a folder that scArches saved it in, or from memory.

    Parameters
    ----------
    path_or_model
        The folder, or a TRVAE of scArches.

    Raises
    ------
    ValueError
        If it is neither, the model is not trained, or :class:`~trvae.TRVAE` has no counterpart of
        it.
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
    settings = {name: _without_numpy(attributes[f"{name}_"]) for name in _SETTINGS}
    _check_settings(settings, len(var_names))
    widths = (settings["input_dim"], *settings["hidden_layer_sizes"], settings["latent_dim"])
    needed = sum(before * after for before, after in pairwise(widths))
    # Forged settings must not allocate memory.
    if needed > (n_weights := sum(weight.numel() for weight in weights.values())):
        raise ValueError(f"{_UNFIT}: its encoder needs {needed} weights, but it has {n_weights}.")
    return ScarchesModel(settings, weights, var_names)


def _read_folder(folder: Path) -> tuple[dict, dict[str, torch.Tensor], np.ndarray]:
    files = [_ATTRIBUTES, _WEIGHTS, _GENES]
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} is not a folder of a model saved by scArches: it has no "
            f"{join_names(missing)}."
        )
    attributes, weights = read_pickle(folder / _ATTRIBUTES), read_torch(folder / _WEIGHTS)
    are_weights = isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))
    if not isinstance(attributes, dict) or not are_weights:
        raise ValueError(f"{folder} does not hold the attributes and the weights of a model.")
    # As numpy.savetxt writes it.
    genes = (folder / _GENES).read_text("latin1").rstrip("\n").split("\n")
    return attributes, weights, np.array(genes, dtype=object)


def _read_live(model: Any) -> tuple[dict, dict[str, torch.Tensor], np.ndarray]:
    network, adata = getattr(model, "model", None), getattr(model, "adata", None)
    if not isinstance(network, nn.Module) or adata is None:
        raise ValueError(
            f"Expected a folder or a TRVAE of scArches, got an object of type "
            f"{type(model).__name__}."
        )
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return vars(model), weights, adata.var_names.to_numpy(dtype=object)


def _without_numpy(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_numpy(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_settings(settings: dict[str, Any], n_genes: int) -> None:
    wrong = [name for name, kind in _SETTINGS.items() if not isinstance(settings[name], kind)]
    wrong = wrong or [
        name
        for name, kind in _ITEMS.items()
        if not all(isinstance(item, kind) for item in settings[name])
    ]
    if wrong:
        raise ValueError(
            f"The scArches model has attributes of a wrong type: {join_names(wrong)}."
        )
    if not settings["is_trained"]:
        raise ValueError("The scArches model is not trained.")
    if settings["condition_key"] is None or len(settings["conditions"]) < 2:
        raise ValueError(
            f"The scArches model has conditions={settings['conditions']!r}; a transfer needs at "
            "least two."
        )
    check_arguments(settings, {"recon_loss": choice(*_LIKELIHOODS)})
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
