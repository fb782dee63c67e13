"""What a model keeps of its training cells: a sample in latent space, and mean profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from trvae.counterfactual._label_response import GroupMeans, group_means_of_blocks
from trvae.counterfactual._support import balanced_sample
from trvae.module._base import FIRST_LAYER_KEY
from trvae.train._sampling import minibatches_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from scvi.data import AnnDataManager

    Sample = Mapping[str, np.ndarray]


_N_REFERENCE_CELLS = 5_000


def get_codes(manager: AnnDataManager) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of each cell's condition and label, each ``n_cells``."""
    keys = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
    condition, label = (np.asarray(manager.get_from_registry(key)).ravel() for key in keys)
    return condition, label


def choose_reference_cells(
    condition: np.ndarray, label: np.ndarray, seed: int, known: Sample | None = None
) -> np.ndarray:
    """Choose at most 5,000 cells, balanced over labels and conditions.

    Parameters
    ----------
    condition, label
        Codes of each cell, ``n_cells``.
    seed
        Seed of the choice.
    known
        Reference cells whose conditions are not sampled again.

    Returns
    -------
    Ascending positions.
    """
    candidates = np.arange(len(condition))
    if known is not None:
        candidates = candidates[~np.isin(condition, known["condition"])]
    # scvi-tools keeps codes as short integers.
    groups = condition[candidates].astype(np.int64) * (int(label.max()) + 1) + label[candidates]
    rng = np.random.default_rng(seed)
    return candidates[balanced_sample(groups, _N_REFERENCE_CELLS, rng)]


def first_reference_minibatches(datamodule: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield about 5,000 cells of a data module, which are in random order already."""
    n_cells = 0
    for minibatch in minibatches_of(datamodule):
        yield minibatch
        n_cells += len(minibatch[REGISTRY_KEYS.X_KEY])
        if n_cells >= _N_REFERENCE_CELLS:
            return


def encode_reference_cells(
    module: Any,
    minibatches: Iterable[dict[str, torch.Tensor]],
    seed: int,
    known: Sample | None = None,
) -> dict[str, np.ndarray]:
    """Encode and decode cells, for use without the expression itself.

    Parameters
    ----------
    module
        The trained module.
    minibatches
        The cells, as the module takes them.
    seed
        Seed of the draws of ``z``.
    known
        Reference cells to put before them.

    Returns
    -------
    Of each cell, the posterior mean of ``z`` (``z_mean``), a draw of ``z``, the first decoder
    layer at that draw, and the codes of its condition and label.
    """
    kept: dict[str, list] = {
        "z_mean": [],
        "z": [],
        FIRST_LAYER_KEY: [],
        "condition": [],
        "label": [],
    }
    module.eval()
    with torch.inference_mode(), module.latent_draws(seed):
        for tensors in minibatches:
            inferred, generated = module(tensors, compute_loss=False)
            values = (
                inferred["qz"].loc,
                inferred["z"],
                generated[FIRST_LAYER_KEY],
                tensors[REGISTRY_KEYS.BATCH_KEY].flatten(),
                tensors[REGISTRY_KEYS.LABELS_KEY].flatten(),
            )
            for blocks, block in zip(kept.values(), values, strict=True):
                blocks.append(block.cpu().numpy())
    before = {name: [] if known is None else [known[name]] for name in kept}
    return {name: np.concatenate([*before[name], *blocks]) for name, blocks in kept.items()}


def mean_profiles_of(datamodule: Any, shape: tuple[int, int], *, is_counts: bool) -> GroupMeans:
    """Average the cells of a data module by label and condition.

    Parameters
    ----------
    datamodule
        A :class:`~lightning.pytorch.core.LightningDataModule`.
    shape
        Number of labels and of conditions.
    is_counts
        Whether cells are scaled to sum to one.
    """
    keys = (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.LABELS_KEY, REGISTRY_KEYS.BATCH_KEY)
    minibatches = (
        [tensors[key].numpy() for key in keys] for tensors in minibatches_of(datamodule)
    )
    blocks = ((x, label.ravel(), condition.ravel(), None) for x, label, condition in minibatches)
    return group_means_of_blocks(blocks, shape, is_counts=is_counts)


def keep_known_profiles(means: GroupMeans, known: GroupMeans) -> GroupMeans:
    """Replace the averages of conditions that were averaged before.

    What a reference predicts stays the same when a query has more labels of its conditions.

    Parameters
    ----------
    means
        New averages, which are changed.
    known
        Averages of the reference, NaN for conditions that it doesn't have.
    """
    n_known = known.profile.shape[1] - int(np.isnan(known.profile).all((0, 2)).sum())
    for values, known_values in zip(means, known, strict=True):
        values[:, :n_known] = known_values[:, :n_known]
    return means


def enlarge_profiles(means: GroupMeans, shape: tuple[int, int]) -> GroupMeans:
    """Add labels and conditions that were not averaged, as NaN.

    Parameters
    ----------
    means
        Averages by label and condition.
    shape
        Number of labels and of conditions to return.
    """
    n_labels, n_conditions, n_genes = means.profile.shape
    enlarged = GroupMeans(
        np.full((*shape, n_genes), np.nan), np.full(shape, np.nan), np.zeros(shape)
    )
    for values, before in zip(enlarged, means, strict=True):
        values[:n_labels, :n_conditions] = before
    return enlarged
