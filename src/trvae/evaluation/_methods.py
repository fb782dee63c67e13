"""Methods that can be evaluated: their protocol, and trVAE's models as such a method."""

from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from joblib.hashing import NumpyHasher

from trvae._utils._matrices import digest
from trvae.model._trvae import TRVAE
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from trvae.model._base import BaseTRVAE


class TransferMethod(Protocol):
    """Methods that :func:`evaluate` can compare."""

    def fit(
        self,
        adata: AnnData,
        *,
        condition_key: str,
        labels_key: str,
        layer: str | None,
        library_key: str | None,
        seed: int,
    ) -> Any:
        """Learn from cells, without those of one label under one condition.

        Parameters
        ----------
        adata
            Cells to learn from; may be modified.
        condition_key, labels_key
            Columns of ``adata.obs`` with the conditions and the labels.
        layer
            Layer with the counts or log-normalised values; ``None`` for ``X``.
        library_key
            Column of ``adata.obs`` with each cell's library size over all genes, or ``None``.
        seed
            Random seed.
        """

    def transfer(self, adata: AnnData, target_condition: Any, *, seed: int) -> AnnData:
        """Return the cells as predicted under another condition, on the scale of the data.

        A method that predicts log-normalised values from counts states in
        ``uns["log1p"]["target_sum"]`` which library size they are scaled to.

        Parameters
        ----------
        adata
            Cells of the held-out label under the source condition.
        target_condition
            Condition to predict.
        seed
            Random seed.
        """


def settings_of(method: Callable[[], TransferMethod], adata: AnnData) -> str | None:
    """Describe what a method's results depend on, if that can be known."""
    made = method()
    if not isinstance(made, TRVAEMethod):
        return None
    columns = [
        name
        for names in made.setup_kwargs.values()
        for name in np.atleast_1d(names)
        if name in adata.obs
    ]
    hashes = [f"{name} {digest(adata.obs[name].to_numpy(dtype=str))}" for name in columns]
    settings = {name: value for name, value in vars(made).items() if name != "_model"}
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    if " at 0x" in shown or "..." in shown:
        # Callbacks only show their address, which is another in each process, and arrays their ends.
        shown = f"{re.sub(' at 0x[0-9a-fA-F]+', '', shown)}, hash={_hash_of(settings)}"
    return ", ".join([f"{type(made).__qualname__}({shown})", *hashes])


class _Hasher(NumpyHasher):
    """Hashes tensors by their values, too; as pickled, they have an address."""

    def save(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = value.double().numpy(force=True)
        super().save(value)


def _hash_of(settings: dict[str, Any]) -> str | None:
    try:
        return _Hasher("md5").hash(settings)
    except (pickle.PicklingError, AttributeError, TypeError):
        # Lambdas and the like can't be told from others.
        return None


@dataclass
class TRVAEMethod:
    """:class:`~trvae.TRVAE` or :class:`~trvae.ImageTRVAE` as a method for :func:`evaluate`.

    Parameters
    ----------
    model_kwargs
        Passed to the model.
    train_kwargs
        Passed to :meth:`trvae.TRVAE.train`.
    transfer_kwargs
        Passed to :meth:`trvae.TRVAE.transfer`.
    setup_kwargs
        Passed to the model's ``setup_anndata`` in addition to the columns that :func:`evaluate`
        names, such as ``categorical_covariate_keys`` or ``image_shape``.
    model_cls
        Class of the model.
    calibrate_kwargs
        Passed to :meth:`trvae.TRVAE.calibrate`, before cells are transferred. ``None`` does not calibrate.

    Raises
    ------
    TypeError
        If the model's ``transfer`` or ``calibrate`` lacks an argument, or is given it already.
    """

    model_kwargs: dict = field(default_factory=dict)
    train_kwargs: dict = field(default_factory=dict)
    transfer_kwargs: dict = field(default_factory=dict)
    setup_kwargs: dict = field(default_factory=dict)
    model_cls: type[BaseTRVAE] = TRVAE
    calibrate_kwargs: dict | None = None
    _model: BaseTRVAE | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        # What is wrong with these should not take a training to find out.
        cls, cells, target = self.model_cls, None, None
        inspect.signature(cls.transfer).bind(self, cells, target, seed=0, **self.transfer_kwargs)
        if (given := self.calibrate_kwargs) is not None:
            inspect.signature(cls.calibrate).bind(self, target, source_condition=None, **given)

    @property
    def model(self) -> BaseTRVAE:
        """The model that :meth:`fit` trained.

        Raises
        ------
        RuntimeError
            If :meth:`fit` was not called.
        """
        if self._model is None:
            raise RuntimeError("There is no model yet: call fit first.")
        return self._model

    def fit(self, adata, *, seed, **keys) -> None:
        """Train a model. See :meth:`TransferMethod.fit`: cells to learn from, columns and seed.

        Raises
        ------
        ValueError, RuntimeError
            If the model can't be set up with the cells or trained.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM interrupts the training.
        """
        given = {key: value for key, value in keys.items() if value is not None}
        self.model_cls.setup_anndata(adata, **given, **self.setup_kwargs)
        self._model = self.model_cls(adata, seed=seed, **self.model_kwargs)
        self._model.train(**self.train_kwargs)
        end_if_interrupted(self._model)

    def transfer(self, adata, target_condition, *, seed) -> AnnData:
        """Predict cells. See :meth:`TransferMethod.transfer`: cells, condition and seed.

        Raises
        ------
        ValueError
            If the model can't transfer the cells, see :meth:`trvae.TRVAE.transfer`.
        RuntimeError
            If :meth:`fit` was not called.
        """
        if self.calibrate_kwargs is not None:
            (source,) = adata.obs[self.model.registered_data.condition_key].unique()
            self.model.calibrate(
                target_condition, source_condition=source, **self.calibrate_kwargs
            )
        return self.model.transfer(adata, target_condition, seed=seed, **self.transfer_kwargs)
