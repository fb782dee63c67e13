"""Saving and loading models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anndata import AnnData
from mudata import MuData
from pyro import get_param_store
from rich.pretty import pprint
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS

from trvae._utils._seeds import seeded
from trvae.data._checks import (
    check_data,
)
from trvae.data._mudata import expression_modality
from trvae.data._registration import (
    registered_genes,
    with_genes_of_model,
)
from trvae.io._atomic import annotate_os_errors, atomic_update
from trvae.io._hdf5 import check_room, write_h5ad
from trvae.io._saved import (
    SavedModel,
    check_prefix,
    file_of_cells,
    history_as_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import pandas as pd


if TYPE_CHECKING:
    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


class SavingMixin(_Model):
    """Save and load models."""

    history_: dict[str, pd.DataFrame] | None

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        *args,
        **kwargs,
    ) -> None:
        """Save the model.

        What is written are tensors and plain data, in scvi-tools' format, so that :meth:`load`
        needs no trust in the file.

        Parameters
        ----------
        dir_path
            Folder to save it in.
        prefix
            Of the files' names.
        overwrite
            Whether a model that is saved there may be replaced. It is, once the new one is
            complete.
        save_anndata
            Whether to save the data beside it.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.save`.

        Raises
        ------
        ValueError
            If the folder is there already, and not to be overwritten, or ``prefix`` has a slash.
        OSError
            If it can't be written, as the disk is full. What was there before is still there.
        """
        check_prefix(prefix)
        folder = Path(dir_path).absolute()
        if folder.exists() and not overwrite:
            raise ValueError(f"{dir_path} is there already. Name another, or give overwrite=True.")
        with annotate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        # scvi-tools saves what any model of this process has left in Pyro's store.
        with (
            get_param_store().scope(),
            self._with_plain_history(),
            atomic_update(folder) as unfinished,
        ):
            unfinished.mkdir(exist_ok=True)
            if save_anndata:
                is_mudata = isinstance(self.adata, MuData)
                path = unfinished / file_of_cells(prefix, is_mudata)
                if is_mudata or kwargs:
                    # Their own methods write these.
                    check_room(path, self.adata)
                else:
                    write_h5ad(path, self.adata)
                    save_anndata = False
            super().save(str(unfinished), prefix, True, save_anndata, *args, **kwargs)

    @contextmanager
    def _with_plain_history(self) -> Iterator[None]:
        history = self.history_
        self.history_ = history_as_arrays(history)
        try:
            yield
        finally:
            self.history_ = history

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: Any | None = None,
        allowed_classes_names_list: list[str] | None = None,
        *,
        trusted: bool = False,
    ) -> Any:
        """Load a saved model.

        Nothing that its files might hold beside tensors and plain data is run.

        Parameters
        ----------
        dir_path
            Folder that the model was saved in.
        adata
            Cells with the columns that the model was set up with. Genes are matched by name:
            unless they are the model's in its order, the model has a copy of the cells in which
            they are. ``None`` takes the cells saved with the model, ``False`` none.
        accelerator, device, prefix, backup_url, datamodule, allowed_classes_names_list
            As in :meth:`scvi.model.base.BaseModelClass.load`.
        trusted
            Whether the file comes from someone who may run code here. Then it can hold any object
            of Python, such as conditions that are neither numbers nor strings.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            If nothing is saved there, a file is damaged, holds other things than tensors and plain
            data, is of another class or of a newer version, or a column or a gene is missing; if
            ``adata`` is no AnnData, or the cells saved there are another model's.
        """
        check_prefix(prefix)
        if adata is not False:
            check_data(adata)
        _download(backup_url, str(dir_path), f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
        saved = SavedModel.read(dir_path, prefix, trusted=trusted)
        saved.check_is_of(cls, allowed_classes_names_list)
        try:
            if adata is None:
                adata = saved.cells()
            if isinstance(adata, AnnData | MuData):
                modality = expression_modality(saved.registry["setup_args"])
                adata = with_genes_of_model(
                    adata, registered_genes(saved.registry), modality, cls._GENES
                )
            # Weights are drawn before those that are saved take their place.
            with saved.in_private_folder() as folder, seeded(0):
                model = super().load(
                    folder,
                    adata,
                    accelerator,
                    device,
                    datamodule=datamodule,
                    allowed_classes_names_list=allowed_classes_names_list,
                )
            model._train_as_mapped()
            return model
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{saved.path} does not fit the cells: {error!r}") from error

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict:
        """What is registered of the cells that a saved model is of, without loading the model.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Raises
        ------
        ValueError
            As :meth:`load`.
        """
        return SavedModel.read(dir_path, prefix).registry

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print what a saved model's cells were set up with.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Raises
        ------
        ValueError
            As :meth:`load`.
        """
        pprint(SavedModel.read(dir_path, prefix).registry["setup_args"])

    @classmethod
    def convert_legacy_save(cls, *args, **kwargs) -> None:
        """Raise an error, as there are no such models in the format before scvi-tools 0.15.

        Parameters
        ----------
        *args, **kwargs
            Those of scvi-tools' method, which would run code in the files.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(f"No {cls.__name__} was ever saved in the format before scvi-tools 0.15.")

    def _without_cells(self) -> Any:
        """The model as it would come from disk, on the CPU and without an AnnData."""
        with TemporaryDirectory() as folder:
            self.save(folder, overwrite=True)
            return self.load(folder, adata=False, accelerator="cpu")
