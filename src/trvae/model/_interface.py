"""The interface that the mixins rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from scvi.data import AnnDataManager

    from trvae.counterfactual._label_response import GroupMeans
    from trvae.data._registered import RegisteredData


class Model(Protocol):
    """A model as its mixins see it: what scvi-tools' base class and :class:`BaseTRVAE` provide."""

    # ----------------------------------------------------------- scvi-tools' base class
    module: Any
    trainer: Any
    history_: dict[str, pd.DataFrame] | None
    is_trained_: bool
    init_params_: dict[str, Any]
    summary_stats: Any

    @property
    def adata(self) -> AnnData | MuData | None:
        """Data that the model was set up with."""
        raise NotImplementedError

    @property
    def adata_manager(self) -> AnnDataManager:
        """Reads the registered data."""
        raise NotImplementedError

    @property
    def registry(self) -> dict[str, Any]:
        """What was registered of the data."""
        raise NotImplementedError

    @property
    def device(self) -> Any:
        """Where the network is."""
        raise NotImplementedError

    @property
    def minified_data_type(self) -> str | None:
        """How the data were minified, or ``None``."""
        raise NotImplementedError

    @classmethod
    def setup_mudata(cls, mdata: MuData, **kwargs: Any) -> None:
        """Register a MuData."""
        raise NotImplementedError

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Train the network."""
        raise NotImplementedError

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the model."""
        raise NotImplementedError

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model."""
        raise NotImplementedError

    @classmethod
    def load_query_data(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a model of a reference and new data."""
        raise NotImplementedError

    @classmethod
    def prepare_query_anndata(cls, *args: Any, **kwargs: Any) -> Any:
        """Give an AnnData the genes of a reference."""
        raise NotImplementedError

    @classmethod
    def prepare_query_mudata(cls, *args: Any, **kwargs: Any) -> Any:
        """Give a MuData the genes of a reference."""
        raise NotImplementedError

    def _check_if_trained(self, warn: bool = True) -> None:
        raise NotImplementedError

    def _make_data_loader(self, adata: AnnData, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------ BaseTRVAE
    seed: int | None
    mapping_: dict[str, Any] | None
    cells_digest_: str | None
    reference_cells_: dict[str, np.ndarray] | None
    training_: dict[str, Any] | None
    calibration_: dict[str, dict[str, Any]]
    linear_weight: float
    response_limit: float | None
    expression_is_nonnegative_: bool

    @property
    def _group_means(self) -> GroupMeans | None:
        """Mean profiles of the training cells by label and condition, if they are known."""
        raise NotImplementedError

    def _measured_means(self, datamodule: Any | None = None) -> GroupMeans:
        """Mean profiles of the model's own cells, or those of a data module."""
        raise NotImplementedError

    @property
    def registered_data(self) -> RegisteredData:
        """What the model was set up with."""
        raise NotImplementedError

    @property
    def conditions(self) -> list[Any]:
        """The conditions, in the order of their codes."""
        raise NotImplementedError

    @property
    def _is_frozen(self) -> bool:
        """Whether only the weights of a query's new conditions and categories are trained."""
        raise NotImplementedError

    def _check_values(self, values: Any, where: str) -> None:
        raise NotImplementedError

    def _check_library(
        self, adata: AnnData, positions: Any = slice(None), *, is_required: bool = False
    ) -> None:
        raise NotImplementedError

    def _check_data_unchanged(self) -> None:
        raise NotImplementedError

    def _check_columns_unchanged(
        self, positions: Any = slice(None), *, with_labels: bool = False
    ) -> None:
        raise NotImplementedError
