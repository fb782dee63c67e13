"""Methods that can be evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from anndata import AnnData

from trvae.model._trvae import TRVAE
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from trvae.model._base import BaseTRVAE


class TransferMethod(Protocol):
    """What :func:`evaluate` asks of a method."""

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
        """Learn from cells, among which some of one label under one condition are missing.

        Parameters
        ----------
        adata
            The cells, which may be changed.
        condition_key, labels_key
            Columns of ``adata.obs``.
        layer
            Layer with the counts or log-normalised values, ``X`` if ``None``.
        library_key
            Column of ``adata.obs`` with each cell's library size over all genes, if there is one.
        seed
            Seed of everything that is drawn.
        """

    def transfer(self, adata: AnnData, target_condition: Any, *, seed: int) -> AnnData:
        """Return the cells as predicted under another condition, on the scale of the data.

        A method that can only predict log-normalised values from counts tells by
        ``uns["log1p"]["target_sum"]`` which library size they are scaled to.

        Parameters
        ----------
        adata
            Cells of the missing label under the source condition.
        target_condition
            The condition to predict.
        seed
            Seed of everything that is drawn.
        """


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
        Passed to the model's ``setup_anndata`` beside what :func:`evaluate` tells, such as
        ``categorical_covariate_keys`` or ``image_shape``.
    model_cls
        The model.
    """

    model_kwargs: dict = field(default_factory=dict)
    train_kwargs: dict = field(default_factory=dict)
    transfer_kwargs: dict = field(default_factory=dict)
    setup_kwargs: dict = field(default_factory=dict)
    model_cls: type[BaseTRVAE] = TRVAE
    _model: BaseTRVAE | None = field(default=None, init=False)

    @property
    def model(self) -> BaseTRVAE:
        """The model that :meth:`fit` trained.

        Raises
        ------
        RuntimeError
            If none was trained.
        """
        if self._model is None:
            raise RuntimeError("There is no model yet: call fit first.")
        return self._model

    def fit(self, adata, *, seed, **keys) -> None:
        """As :meth:`TransferMethod.fit`.

        Raises
        ------
        ValueError, RuntimeError
            As the model's ``setup_anndata``, the model and :meth:`trvae.TRVAE.train`.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM end the training.
        """
        given = {key: value for key, value in keys.items() if value is not None}
        self.model_cls.setup_anndata(adata, **given, **self.setup_kwargs)
        self._model = self.model_cls(adata, seed=seed, **self.model_kwargs)
        self._model.train(**self.train_kwargs)
        end_if_interrupted(self._model)

    def transfer(self, adata, target_condition, *, seed) -> AnnData:
        """As :meth:`TransferMethod.transfer`.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.transfer`.
        RuntimeError
            If there is no model yet.
        """
        return self.model.transfer(adata, target_condition, seed=seed, **self.transfer_kwargs)
