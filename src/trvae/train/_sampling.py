"""Minibatches in which every condition has cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from trvae._utils._arguments import join_names
from trvae.data._checks import check_workers
from trvae.data._on_device import LoaderOnDevice, MinibatchOnDevice, cells_on_device
from trvae.module._distributed import ALONE, Processes, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager

    from trvae.data._on_device import CellsOnDevice


_FEWEST_CELLS, _LEAST_SHARE = 8, 1 / 16
_DEFAULT_TRAIN_SIZE = 0.9


# Attributes of scvi-tools' splitter: positions of the cells of each set.
_SPLIT = ("train_idx", "val_idx", "test_idx")


def min_cells_per_condition(batch_size: int) -> int:
    """Cells of each condition in a balanced minibatch, if there are not too many conditions for that.

    A sixteenth of them, but at least 8.

    Parameters
    ----------
    batch_size
        Number of cells in a minibatch.
    """
    return max(_FEWEST_CELLS, int(_LEAST_SHARE * batch_size))


class ConditionBalancedSampler(Sampler[list[int]]):
    """Minibatches with at least a few cells of every condition.

    An epoch visits every cell once, in random order. Cells of conditions that are too rare for
    that are repeated, so that each minibatch has ``min_per_condition`` of them. All minibatches
    have the same size, up to one cell of each condition, and none has a single cell.

    Parameters
    ----------
    condition
        Code of each cell's condition, ``n_cells``.
    batch_size
        Number of cells in a minibatch, not counting repeated cells of rare conditions.
    min_per_condition
        Smallest number of cells of each condition in a minibatch, by default a sixteenth of
        ``batch_size``, but at least 8; lowered to ``batch_size // n_conditions`` if there are many
        conditions. 0 leaves the composition to chance.
    processes
        The processes that share every minibatch. This one yields its part of each; all of them
        must have the same seed.

    Raises
    ------
    ValueError
        If the data or a minibatch have fewer than two cells for each process.
    """

    def __init__(
        self,
        condition: np.ndarray,
        batch_size: int,
        min_per_condition: int | None = None,
        processes: Processes = ALONE,
    ):
        least = 2 * processes.number
        if len(condition) < least:
            raise ValueError(
                f"Training needs at least {least} cells or images besides those for validation, "
                f"got {len(condition)}."
            )
        if batch_size < least:
            raise ValueError(f"batch_size={batch_size} is too small, use at least {least}.")
        n_minibatches = -(-len(condition) // batch_size)
        self.n_minibatches = min(n_minibatches, len(condition) // least)
        self.processes = processes
        # The processes share its seed, while they draw differently from the global generator.
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        conditions = np.unique(condition)
        if min_per_condition is None:
            min_per_condition = min_cells_per_condition(batch_size)
        self.min_per_condition = min(min_per_condition, batch_size // len(conditions))
        if self.min_per_condition > 0:
            self.strata = [np.flatnonzero(condition == c) for c in conditions]
        else:
            self.strata = [np.arange(len(condition))]

    def __len__(self) -> int:
        return self.n_minibatches

    def __iter__(self) -> Iterator[list[int]]:
        parts = [self._split(stratum) for stratum in self.strata]
        for minibatch in zip(*parts, strict=True):
            rank, number = self.processes
            yield np.concatenate(minibatch)[rank::number].tolist()

    def _split(self, cells: np.ndarray) -> list[np.ndarray]:
        """Divide cells among the minibatches in random order, repeating rare ones."""
        n_needed = max(len(cells), self.min_per_condition * self.n_minibatches)
        n_rounds = -(-n_needed // len(cells))
        order = np.concatenate(
            [torch.randperm(len(cells), generator=self.generator) for _ in range(n_rounds)]
        )
        return np.array_split(cells[order[:n_needed]], self.n_minibatches)


class ConditionBalancedDataSplitter(DataSplitter):
    """scvi-tools' splitter with minibatches from :class:`~trvae.train.ConditionBalancedSampler`.

    Its ``state_dict`` has the split and the state of the sampler, so that Lightning resumes
    with the minibatches that would have come next.

    Parameters
    ----------
    adata_manager, *args, **kwargs
        Passed to :class:`~scvi.dataloaders.DataSplitter`.
    condition_balanced
        Whether every training minibatch has cells of every condition. By default, if chance
        alone would leave the rarest condition with less than a sixteenth of a minibatch, or fewer
        than 8 cells.
    data_on_device
        See :meth:`trvae.TRVAE.train`: whether the cells are kept on the device.

    Raises
    ------
    ValueError
        If ``external_indexing`` is not made of positions of cells, workers can't read a file, or as
        :class:`~scvi.dataloaders.DataSplitter` and :class:`~trvae.train.ConditionBalancedSampler`.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        *args,
        condition_balanced: bool | None = None,
        data_on_device: bool | None = None,
        **kwargs,
    ):
        _check_split(kwargs.get("external_indexing"), adata_manager.adata.n_obs)
        check_workers(
            adata_manager.adata, kwargs.get("num_workers"), kwargs.get("multiprocessing_context")
        )
        super().__init__(adata_manager, *args, **kwargs)
        self.condition_balanced = condition_balanced
        self.data_on_device = data_on_device
        self._cells: CellsOnDevice | None = None
        self._sampler: ConditionBalancedSampler | None = None
        self._generator_state: torch.Tensor | None = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the split and the state of the sampler's generator."""
        state = {name: torch.from_numpy(getattr(self, name)) for name in _SPLIT}
        if self._sampler is not None:
            state["generator"] = self._sampler.generator.get_state()
        return state

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Take over a split and the state of its sampler.

        Parameters
        ----------
        state_dict
            What :meth:`state_dict` returned. Lightning loads it before it asks for minibatches.
        """
        for name in _SPLIT:
            setattr(self, name, state_dict[name].numpy())
        self._generator_state = state_dict.get("generator")

    def setup(self, stage: str | None = None) -> None:
        """Split the cells, and move them to the device if they should be there."""
        super().setup(stage)
        if self.trainer is None:
            return
        device = self.trainer.strategy.root_device
        if processes() == ALONE and not self.load_sparse_tensor:
            self._cells = cells_on_device(self.adata_manager, device, self.data_on_device)
        # Copies from pinned memory don't hold up the process.
        if device.type == "cuda":
            self.pin_memory = True

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Gather a minibatch on the device, unless captured steps do so."""
        if isinstance(batch, MinibatchOnDevice):
            return batch if self.trainer.lightning_module.is_captured else batch.tensors()
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Free the memory of the device."""
        if self._cells is not None:
            self._cells.release()

    def train_dataloader(self) -> DataLoader | LoaderOnDevice:
        """Return the training minibatches."""
        loader_kwargs = dict(self.data_loader_kwargs)
        batch_size = loader_kwargs.pop("batch_size", settings.batch_size)
        sharing = processes() if loader_kwargs.pop("distributed_sampler", False) else ALONE
        batch_size *= sharing.number

        codes = self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        condition = np.asarray(codes).ravel()[self.train_idx]
        balanced = self.condition_balanced
        if balanced is None and len(condition) > 0:
            rarest = np.unique(condition, return_counts=True)[1].min() / len(condition)
            balanced = rarest * batch_size < min_cells_per_condition(batch_size)
        self._sampler = ConditionBalancedSampler(
            condition, batch_size, None if balanced else 0, sharing
        )
        if self._generator_state is not None:
            self._sampler.generator.set_state(self._generator_state)
            self._generator_state = None
        if self._cells is not None:
            return LoaderOnDevice(self._cells, self.train_idx, self._sampler)
        dataset = self.adata_manager.create_torch_dataset(
            indices=self.train_idx, load_sparse_tensor=self.load_sparse_tensor
        )
        loader_kwargs.setdefault("num_workers", settings.dl_num_workers)
        loader_kwargs.setdefault("persistent_workers", settings.dl_persistent_workers)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=self._sampler,
            pin_memory=self.pin_memory,
            **loader_kwargs,
        )

    def val_dataloader(self) -> DataLoader | LoaderOnDevice | list:
        """Return the validation minibatches, none if all cells are trained on."""
        if len(self.val_idx) == 0:
            return []
        if self._cells is None:
            return super().val_dataloader()
        batch_size = self.data_loader_kwargs.get("batch_size", settings.batch_size)
        return LoaderOnDevice.in_order(self._cells, batch_size, self.val_idx)


def minibatches_of(datamodule: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the training and validation minibatches of a data module as a module takes them.

    Parameters
    ----------
    datamodule
        A :class:`~lightning.pytorch.core.LightningDataModule`. Like Lightning, this asks for no
        validation minibatches if it does not define them.
    """
    loaders = [datamodule.train_dataloader()]
    if is_overridden("val_dataloader", datamodule):
        loaders.append(datamodule.val_dataloader())
    for loader in loaders:
        for minibatch in loader or []:
            tensors = datamodule.on_before_batch_transfer(minibatch, 0)
            if _lacks(tensors, REGISTRY_KEYS.LABELS_KEY):
                # Without labels, scvi-tools' data modules put something else there.
                labels = torch.zeros(len(tensors[REGISTRY_KEYS.X_KEY]), 1)
                tensors = {**tensors, REGISTRY_KEYS.LABELS_KEY: labels}
            yield tensors


def first_values_of(datamodule: Any, *, has_labels: bool) -> torch.Tensor:
    """Return the first minibatch's expression; a ``ValueError`` if there is none or it lacks a tensor.

    Parameters
    ----------
    datamodule
        A :class:`~lightning.pytorch.core.LightningDataModule`.
    has_labels
        Whether there must be labels, too.
    """
    needed = [REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY]
    needed += [REGISTRY_KEYS.LABELS_KEY] if has_labels else []
    for minibatch in datamodule.train_dataloader():
        tensors = datamodule.on_before_batch_transfer(minibatch, 0)
        if isinstance(tensors, dict) and not any(_lacks(tensors, key) for key in needed):
            return tensors[REGISTRY_KEYS.X_KEY]
        break
    raise ValueError(
        f"The datamodule must give dictionaries with the tensors {join_names(needed)}, each with a "
        "row per cell, as minibatches to train on."
    )


def _lacks(tensors: dict[str, Any], key: str) -> bool:
    """Whether there is no tensor with a row per cell."""
    x, values = tensors.get(REGISTRY_KEYS.X_KEY), tensors.get(key)
    if not isinstance(x, torch.Tensor) or not isinstance(values, torch.Tensor):
        return True
    return len(x) != len(values)


def check_split_sizes(train_size: float | None, validation_size: float | None) -> None:
    """Raise a ``ValueError`` if the shares of the cells sum to more than 1."""
    train_size = _DEFAULT_TRAIN_SIZE if train_size is None else train_size
    if validation_size is not None and train_size + validation_size > 1:
        raise ValueError(
            f"train_size={train_size} and validation_size={validation_size} sum to more than 1."
        )


def _check_split(split: Any, n_cells: int) -> None:
    """Raise a ``ValueError`` unless a split consists of positions; scvi-tools checks the rest."""
    for part in split if isinstance(split, list) else []:
        wrong = np.asarray([] if part is None else part).ravel()
        if wrong.dtype.kind in "iu":
            wrong = wrong[(wrong < 0) | (wrong >= n_cells)]
        if len(wrong) > 0:
            raise ValueError(
                "datasplitter_kwargs['external_indexing'] must have positions from 0 to "
                f"{n_cells - 1}, got {join_names(wrong)}."
            )
