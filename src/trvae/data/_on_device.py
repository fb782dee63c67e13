"""Cells kept as tensors on the device that computes, from which minibatches are gathered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS, settings

from trvae._utils._matrices import is_in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager

logger = logging.getLogger(__name__)

# The rest is for weights, gradients, minibatches and whoever else uses the GPU.
_MAX_SHARE_OF_FREE_MEMORY = 0.5


class CellsOnDevice:
    """What is registered of the cells of an AnnData, as tensors on one device.

    Parameters
    ----------
    manager
        Manager of an AnnData in memory.
    device
        Where to keep them.
    positions
        Positions of the cells, by default all.
    """

    def __init__(
        self,
        manager: AnnDataManager,
        device: torch.device,
        positions: np.ndarray | None = None,
    ):
        self.device = device
        others = (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.MINIFY_TYPE_KEY)
        keys = [key for key in manager.data_registry if key not in others]
        chosen = slice(None) if positions is None else positions
        columns = manager.create_torch_dataset(data_and_attributes=keys)[chosen]
        self._columns = {
            key: torch.as_tensor(values).to(device) for key, values in columns.items()
        }
        self._rows = None
        if REGISTRY_KEYS.X_KEY in manager.data_registry:
            matrix = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
            rows = _SparseRows if _is_smaller_sparse(matrix) else _DenseRows
            # SciPy copies a whole matrix, too.
            self._rows = rows(matrix if positions is None else matrix[positions], device)

    def __len__(self) -> int:
        return len(self._columns[REGISTRY_KEYS.BATCH_KEY])

    def gather(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a minibatch as scvi-tools' loaders do, with ``X`` dense.

        Parameters
        ----------
        positions
            Positions among these cells, on the device, ``n_cells``. All shapes follow from this
            number.
        """
        minibatch = {key: values[positions] for key, values in self._columns.items()}
        if self._rows is not None:
            minibatch[REGISTRY_KEYS.X_KEY] = self._rows.gather(positions)
        return minibatch

    def release(self) -> None:
        """Free the memory, whoever still refers to the cells."""
        self._columns, self._rows = {}, None


class MinibatchOnDevice(NamedTuple):
    """A minibatch that is not gathered yet."""

    cells: CellsOnDevice
    positions: torch.Tensor
    """On the device, ``n_cells``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Gather it."""
        return self.cells.gather(self.positions)

    def to(self, *args: Any, **kwargs: Any) -> MinibatchOnDevice:
        """Return itself: Lightning would move it to the device, where it is."""
        return self


def gathered(minibatch: MinibatchOnDevice | dict[str, Any]) -> dict[str, Any]:
    """Gather a minibatch unless it is so already."""
    return minibatch.tensors() if isinstance(minibatch, MinibatchOnDevice) else minibatch


class LoaderOnDevice:
    """Minibatches of :class:`CellsOnDevice`, whose positions go to the device once an epoch.

    Parameters
    ----------
    cells
        The cells.
    dataset
        Positions of those to use, ``n``.
    minibatches
        Positions among these, of each minibatch; iterated anew in each epoch.
    """

    def __init__(self, cells: CellsOnDevice, dataset: np.ndarray, minibatches: Any):
        self.cells = cells
        self.dataset = dataset
        self.minibatches = minibatches

    @classmethod
    def in_order(
        cls, cells: CellsOnDevice, batch_size: int | None, dataset: np.ndarray | None = None
    ) -> LoaderOnDevice:
        """Take cells, by default all, one after the other."""
        batch_size = settings.batch_size if batch_size is None else batch_size
        dataset = np.arange(len(cells)) if dataset is None else dataset
        bounds = range(batch_size, len(dataset), batch_size)
        return cls(cells, dataset, np.split(np.arange(len(dataset)), bounds))

    def __len__(self) -> int:
        return len(self.minibatches)

    def __iter__(self) -> Iterator[Any]:
        # As PyTorch's loaders do, so that noise is the same as if the cells were streamed.
        torch.empty((), dtype=torch.int64).random_()
        minibatches = list(self.minibatches)
        order = self.dataset[np.concatenate(minibatches)].astype(np.int64)
        sizes = list(map(len, minibatches))
        for positions in torch.from_numpy(order).to(self.cells.device).split(sizes):
            yield MinibatchOnDevice(self.cells, positions)


class GatheringLoader(LoaderOnDevice):
    """A loader on a device that yields what scvi-tools' loaders do."""

    def __iter__(self) -> Iterator[Any]:
        for minibatch in super().__iter__():
            yield minibatch.tensors()


def cells_on_device(
    manager: AnnDataManager,
    device: torch.device,
    wanted: bool | None = None,
    positions: np.ndarray | None = None,
) -> CellsOnDevice | None:
    """Move cells to a device if they should be there.

    Parameters
    ----------
    manager
        Manager of the AnnData.
    device
        The device.
    wanted
        Whether they should. By default, if the device is a GPU and they take at most half of its
        free memory.
    positions
        Positions of the cells, by default all.

    Raises
    ------
    ValueError
        If they should, but are not in memory.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return None
    n_bytes = _n_bytes(manager)
    if n_bytes is None:
        if wanted:
            raise ValueError(
                "data_on_device=True needs cells in memory, but the AnnData is backed or lazy."
            )
        return None
    if positions is not None:
        n_bytes *= len(positions) / manager.adata.n_obs
        if np.array_equal(positions, np.arange(manager.adata.n_obs)):
            positions = None
    if wanted is None:
        free, _ = torch.cuda.mem_get_info(device)
        if n_bytes > _MAX_SHARE_OF_FREE_MEMORY * free:
            logger.info(
                f"The cells are streamed to {device}: they would take {n_bytes / 1e9:.1f} GB of "
                f"{free / 1e9:.1f} GB that are free."
            )
            return None
    logger.info(f"The cells are kept on {device}, in {n_bytes / 1e9:.2f} GB.")
    return CellsOnDevice(manager, device, positions)


class _DenseRows:
    def __init__(self, matrix: Any, device: torch.device):
        values = matrix.toarray() if sparse.issparse(matrix) else matrix
        self._values = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

    def gather(self, positions: torch.Tensor) -> torch.Tensor:
        return self._values[positions]


class _SparseRows:
    """A CSR matrix. Rows are gathered with the width of the longest, so that shapes are fixed."""

    def __init__(self, matrix: Any, device: torch.device):
        matrix = sparse.csr_matrix(matrix)
        lengths = np.diff(matrix.indptr)

        def to_device(values: np.ndarray, dtype: type) -> torch.Tensor:
            return torch.from_numpy(values.astype(dtype, copy=False)).to(device)

        self._n_columns = matrix.shape[1]
        self._start = to_device(matrix.indptr[:-1], np.int64)
        self._length = to_device(lengths, np.int64)
        self._column = to_device(matrix.indices, np.int32)
        self._value = to_device(matrix.data, np.float32)
        self._within_row = torch.arange(int(lengths.max()), device=device)

    def gather(self, positions: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(len(positions), self._n_columns, device=positions.device)
        if len(self._value) == 0:
            return rows
        is_entry = self._within_row < self._length[positions][:, None]
        entry = self._start[positions][:, None] + self._within_row
        entry = entry.clamp(max=len(self._value) - 1)
        # What lies past the end of a row adds 0.
        values = self._value[entry] * is_entry
        return rows.scatter_add_(1, self._column[entry].long(), values)


def _is_smaller_sparse(matrix: Any) -> bool:
    # A sparse entry has a column and a value, of four bytes each.
    return sparse.issparse(matrix) and 2 * matrix.nnz < np.prod(matrix.shape)


def _n_bytes(manager: AnnDataManager) -> float | None:
    """Memory that the expression takes on a device; ``None`` if it is not in memory here."""
    if manager.adata.isbacked:
        return None
    if REGISTRY_KEYS.X_KEY not in manager.data_registry:
        return 0
    matrix = manager.get_from_registry(REGISTRY_KEYS.X_KEY)
    if _is_smaller_sparse(matrix):
        return 8 * matrix.nnz
    return 4 * float(np.prod(matrix.shape)) if is_in_memory(matrix) else None
