"""Minibatches in which every condition has cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from trvae._utils._arguments import join_names
from trvae.module._distributed import ALONE, Processes, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager


# Cells of each condition in a minibatch, below which minibatches are balanced.
MIN_CELLS_PER_CONDITION = 8


# Where a splitter has the positions of its cells.
SPLIT = ("train_idx", "val_idx", "test_idx")


def _check_split(split: Any, n_cells: int) -> None:
    """Raise a ``ValueError`` if any position of a split is not a cell's; scvi-tools checks more."""
    for part in split if isinstance(split, list) else []:
        wrong = np.asarray([] if part is None else part).ravel()
        if wrong.dtype.kind in "iu":
            wrong = wrong[(wrong < 0) | (wrong >= n_cells)]
        if len(wrong) > 0:
            raise ValueError(
                "datasplitter_kwargs['external_indexing'] is not of positions from 0 to "
                f"{n_cells - 1}, of {n_cells} cells or images: it has {join_names(wrong)}."
            )


class ConditionBalancedSampler(Sampler[list[int]]):
    """Minibatches with at least a few cells of every condition.

    In an epoch every cell is seen once; cells of a condition that is too rare for that are seen
    repeatedly, so that each minibatch has ``min_per_condition`` of them. Minibatches are about
    equally large: none is left with a single cell.

    Parameters
    ----------
    condition
        Code of each cell's condition, ``n_cells``.
    batch_size
        Number of cells in a minibatch, without the repeated ones of rare conditions.
    min_per_condition
        Smallest number of cells of each condition in a minibatch. It is lowered to
        ``batch_size // n_conditions`` if there are many; 0 leaves the composition to chance.
    processes
        Which share every minibatch. This one gets its part, if all have the same seed.

    Raises
    ------
    ValueError
        If there are fewer than two cells for each process, or a minibatch would have fewer.
    """

    def __init__(
        self,
        condition: np.ndarray,
        batch_size: int,
        min_per_condition: int = MIN_CELLS_PER_CONDITION,
        processes: Processes = ALONE,
    ):
        least = 2 * processes.number
        if len(condition) < least:
            raise ValueError(
                f"Training needs at least {least} cells or images beside those to validate on, got "
                f"{len(condition)}."
            )
        if batch_size < least:
            raise ValueError(f"batch_size={batch_size} is too small: {least} or more.")
        self.n_minibatches = max(1, -(-len(condition) // batch_size))
        if len(condition) < least * self.n_minibatches:
            self.n_minibatches = len(condition) // least
        self.processes = processes
        # Of its own, as processes draw differently from the global one once they train.
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        conditions = np.unique(condition)
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
        """Divide cells in random order among the minibatches, repeating rare ones."""
        n_needed = max(len(cells), self.min_per_condition * self.n_minibatches)
        n_rounds = -(-n_needed // len(cells))
        order = np.concatenate(
            [torch.randperm(len(cells), generator=self.generator) for _ in range(n_rounds)]
        )
        return np.array_split(cells[order[:n_needed]], self.n_minibatches)


class ConditionBalancedDataSplitter(DataSplitter):
    """scvi-tools' splitter with :class:`ConditionBalancedSampler` for the training set.

    Parameters
    ----------
    adata_manager, *args, **kwargs
        Passed to :class:`~scvi.dataloaders.DataSplitter`.
    condition_balanced
        Whether every minibatch shall have cells of every condition. ``None``: if chance alone
        would leave the rarest condition with too few.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        *args,
        condition_balanced: bool | None = None,
        **kwargs,
    ):
        _check_split(kwargs.get("external_indexing"), adata_manager.adata.n_obs)
        super().__init__(adata_manager, *args, **kwargs)
        self.condition_balanced = condition_balanced
        self._sampler: ConditionBalancedSampler | None = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The split, and where in their random order the minibatches are."""
        state = {name: torch.from_numpy(getattr(self, name)) for name in SPLIT}
        if self._sampler is not None:
            state["generator"] = self._sampler.generator.get_state()
        return state

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Let the minibatches go on in the order in which they would have come."""
        if self._sampler is not None:
            self._sampler.generator.set_state(state_dict["generator"])

    def val_dataloader(self) -> DataLoader | list:
        """Validation minibatches, none if all cells are trained on."""
        return super().val_dataloader() if len(self.val_idx) > 0 else []

    def train_dataloader(self) -> DataLoader:
        """Training minibatches."""
        loader_kwargs = dict(self.data_loader_kwargs)
        batch_size = loader_kwargs.pop("batch_size", settings.batch_size)
        sharing = processes() if loader_kwargs.pop("distributed_sampler", False) else ALONE
        batch_size *= sharing.number

        condition = np.asarray(
            self.adata_manager.get_from_registry(REGISTRY_KEYS.BATCH_KEY)
        ).ravel()[self.train_idx]
        balanced = self.condition_balanced
        if balanced is None and len(condition) > 0:
            rarest = np.unique(condition, return_counts=True)[1].min() / len(condition)
            balanced = rarest * batch_size < MIN_CELLS_PER_CONDITION
        self._sampler = ConditionBalancedSampler(
            condition, batch_size, MIN_CELLS_PER_CONDITION if balanced else 0, sharing
        )
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


def minibatches_of(datamodule: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield what a data module has to train and to validate on, as a module takes it.

    Parameters
    ----------
    datamodule
        One of Lightning's.
    """
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        for minibatch in loader or []:
            yield datamodule.on_before_batch_transfer(minibatch, 0)
