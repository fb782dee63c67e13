"""Saving and loading models."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pooch
from anndata import AnnData
from mudata import MuData
from pyro import get_param_store
from rich.pretty import pprint

from trvae._scvi import undone_on_error
from trvae._utils._seeds import seeded
from trvae.data._checks import check_data
from trvae.data._registered import RegisteredData
from trvae.io._atomic import annotate_os_errors, atomic_update
from trvae.io._hdf5 import check_room, write_h5ad
from trvae.io._saved import (
    SavedModel,
    check_prefix,
    digest_of_saved_cells,
    file_of_cells,
    history_as_arrays,
    model_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from trvae.model._interface import Model
else:
    Model = object


class SavingMixin(Model):
    """Save and load models."""

    history_: dict[str, pd.DataFrame] | None
    cells_digest_: str | None

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

        The file has scvi-tools' format and holds only tensors and plain data, so :meth:`load` need
        not trust it.

        Parameters
        ----------
        dir_path
            Folder to save the model in.
        prefix
            Prefix of the file names.
        overwrite
            Whether to replace a model that is saved there, once the new one is complete. Its cells
            are only replaced with ``save_anndata``; otherwise they stay, and are no longer loaded
            with the model unless they are its own.
        save_anndata
            Whether to save the data, too.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.save`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false, or ``prefix`` has a slash.
        OSError
            If the model can't be written, for instance because the disk is full. What was there
            before stays.
        """
        check_prefix(prefix)
        folder = Path(dir_path).absolute()
        if folder.exists() and not overwrite:
            raise ValueError(f"{dir_path} exists. Choose another folder, or pass overwrite=True.")
        with annotate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        digest = self._digest_of_cells() if save_anndata else self._digest_beside(folder, prefix)
        # scvi-tools saves Pyro's store, which other models of this process may have filled.
        with (
            get_param_store().scope(),
            self._as_saved(digest),
            atomic_update(folder, prefix or "") as unfinished,
        ):
            unfinished.mkdir(exist_ok=True)
            if save_anndata:
                is_mudata = isinstance(self.adata, MuData)
                path = unfinished / file_of_cells(prefix, is_mudata)
                if is_mudata or kwargs:
                    # scvi-tools writes these.
                    check_room(path, self.adata)
                else:
                    write_h5ad(path, self.adata)
                    save_anndata = False
            super().save(str(unfinished), prefix, True, save_anndata, *args, **kwargs)

    def _digest_of_cells(self) -> str:
        return self.registered_data.digest(self.adata)

    def _digest_beside(self, folder: Path, prefix: str | None) -> str | None:
        """Digest of the cells that were saved in a folder if they are this model's."""
        saved = digest_of_saved_cells(folder, prefix)
        if saved is None:
            return None
        own = self.cells_digest_ if self.adata is None else self._digest_of_cells()
        return saved if own == saved else None

    @contextmanager
    def _as_saved(self, cells_digest: str | None) -> Iterator[None]:
        """Have the attributes that differ in the file, of which the cells may be elsewhere."""
        before = self.history_, self.cells_digest_
        self.history_, self.cells_digest_ = history_as_arrays(self.history_), cells_digest
        try:
            yield
        finally:
            self.history_, self.cells_digest_ = before

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
        """Load a saved model without running code from its files.

        Parameters
        ----------
        dir_path
            Folder that the model was saved in.
        adata
            Cells with the columns that the model was set up with. Genes are matched by name; if
            they differ from the model's or its order, the model has a copy of the cells.
            ``None`` loads the cells saved with the model, ``False`` none.
        accelerator, device, prefix, backup_url, datamodule, allowed_classes_names_list
            See :meth:`scvi.model.base.BaseModelClass.load`: the device, and where the files are.
        trusted
            Whether to allow any Python object in the file, such as conditions that are dates.
            Loading such a file can run code: use it only if you trust who saved it.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            If no model is saved there, a file is damaged, holds anything but tensors and plain
            data, belongs to another class or a newer version, or the cells lack a column or a gene
            or belong to another model.
        """
        check_prefix(prefix)
        if adata is not False:
            check_data(adata)
        path = model_file(dir_path, prefix)
        if backup_url is not None and not path.exists():
            pooch.retrieve(backup_url, known_hash=None, fname=path.name, path=path.parent)
        saved = SavedModel.read(dir_path, prefix, trusted=trusted)
        saved.check_is_of(cls, allowed_classes_names_list)
        if adata is None:
            adata = saved.cells()
        if isinstance(adata, AnnData | MuData):
            adata = RegisteredData(saved.registry).with_genes(adata)
        # Weights are drawn, then replaced by the saved ones.
        with undone_on_error(cls, adata), saved.in_private_folder() as folder, seeded(0):
            model = super().load(
                folder,
                adata,
                accelerator,
                device,
                datamodule=datamodule,
                allowed_classes_names_list=allowed_classes_names_list,
            )
        model._prepare_mapped()
        return model

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict:
        """Return the registry of a saved model without loading the model.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`: where the model is saved.

        Raises
        ------
        ValueError
            If no model is saved there, or its file is damaged.
        """
        return SavedModel.read(dir_path, prefix).registry

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments that a saved model's cells were set up with.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`: where the model is saved.

        Raises
        ------
        ValueError
            If no model is saved there, or its file is damaged.
        """
        pprint(SavedModel.read(dir_path, prefix).registry["setup_args"])

    @classmethod
    def convert_legacy_save(cls, *args, **kwargs) -> None:
        """Raise an error: no such model was ever saved in the format before scvi-tools 0.15.

        Parameters
        ----------
        *args, **kwargs
            Arguments of scvi-tools' method, which would run code from the files.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(f"no {cls.__name__} was ever saved in the format before scvi-tools 0.15.")

    def _without_cells(self) -> Any:
        """Copy the model, on the CPU and without its cells."""
        with TemporaryDirectory() as folder:
            self.save(folder, overwrite=True)
            return self.load(folder, adata=False, accelerator="cpu")
