"""No public call leaves anything outside of its own models and files other than it was."""

import inspect
import logging
import os
import pickle
import random
import re
import warnings
from pathlib import Path

import anndata
import matplotlib as mpl
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pytest
import scvi
import torch
from fuzz_load import SCARCHES
from helpers import QUIET, SMALL, fit
from PIL import Image

import trvae

KEYS = {"condition_key": "condition", "labels_key": "cell_type"}


def state():
    """What all code of a process shares."""
    return {
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "numpy's generator": pickle.dumps(np.random.get_state()),
        "python's generator": random.getstate(),
        "default type": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "floating point": np.geterr(),
        "scvi-tools": {name: str(value) for name, value in vars(scvi.settings).items()},
        "warnings": list(warnings.filters),
        "logging": {
            name: logging.getLogger(name).level
            for name in ("", "anndata", "lightning", "lightning.pytorch", "matplotlib", "scvi")
        },
        "matplotlib": dict(mpl.rcParams),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


@pytest.fixture(scope="module")
def cells():
    return trvae.datasets.simulated(n_cells=20, n_genes=20)


@pytest.fixture(scope="module")
def model(cells):
    return fit(cells, train={"max_epochs": 1})


@pytest.fixture(scope="module")
def mudata_model(cells):
    mdata = mudata.MuData({"rna": cells.copy(), "other": cells[:, :3].copy()})
    trvae.TRVAE.setup_mudata(mdata, **KEYS, modalities=dict.fromkeys(KEYS, "rna"))
    model = trvae.TRVAE(mdata, seed=0, **SMALL)
    model.train(max_epochs=1, **QUIET)
    return model


@pytest.fixture
def mdata(cells):
    """MuData that lacks a gene of the model's, and has its others in another order."""
    return mudata.MuData({"rna": cells[:, :0:-1].copy()})


@pytest.fixture(scope="module")
def images():
    adata = anndata.AnnData(np.random.default_rng(0).random((24, 36), np.float32))
    adata.obs["condition"] = np.resize(["thin", "thick"], 24)
    return adata


@pytest.fixture(scope="module")
def image_model(images):
    registered = images.copy()
    trvae.ImageTRVAE.setup_anndata(registered, condition_key="condition", image_shape=(6, 6))
    model = trvae.ImageTRVAE(registered, n_latent=1, channels=(2,), seed=0)
    model.train(max_epochs=1, **QUIET)
    return model


@pytest.fixture(scope="module")
def ensemble(cells):
    registered = cells.copy()
    trvae.TRVAE.setup_anndata(registered, **KEYS)
    ensemble = trvae.TRVAEEnsemble(registered, n_models=2, seed=0, **SMALL)
    ensemble.train(max_epochs=1, **QUIET)
    return ensemble


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, mudata_model, image_model, ensemble):
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "TRVAE", save_anndata=True)
    mudata_model.save(folder / "mudata", save_anndata=True)
    image_model.save(folder / "ImageTRVAE", save_anndata=True)
    ensemble.save(folder / "TRVAEEnsemble")
    for number in range(4):
        path = folder / "images" / "treated" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(path)
        path = folder / "celeba" / "img_align_celeba" / f"00000{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)).save(path)
    table = "4\nSmiling Male\n" + "".join(f"00000{i}.jpg {(-1) ** i} 1\n" for i in range(4))
    (folder / "celeba" / "list_attr_celeba.txt").write_text(table)
    return folder


@pytest.fixture
def given(request, tmp_path):
    """All that calls are given, by name, made when it is asked for."""

    class Given:
        out = tmp_path

        def __getattr__(self, name):
            return request.getfixturevalue(name)

        @property
        def groups(self):
            treated = self.cells.obs["condition"] == "treated"
            return self.cells[treated].copy(), self.cells[treated].copy(), self.cells[~treated]

        @property
        def new(self):
            cells = self.cells[:40].copy()
            cells.obs["condition"] = "new"
            return cells

    return Given()


def mapped(model_class, cells, reference):
    query = model_class.load_query_data(cells, reference)
    query.train(max_epochs=1, **QUIET)


def minified(given, model_class, name):
    model = model_class.load(given.folder / name)
    moments = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = moments
    model.minify_adata()


def from_scarches():
    expected = np.load(SCARCHES / "nb" / "expected.npz")
    cells = anndata.AnnData(expected["x"])
    cells.obs["study"], cells.var_names = expected["study"], expected["genes"]
    trvae.TRVAE.from_scarches(SCARCHES / "nb", cells)


def trained_anew(model_class, cells, **setup):
    cells = cells.copy()
    model_class.setup_anndata(cells, condition_key="condition", **setup)
    model_class(cells, seed=1).train(max_epochs=1, **QUIET)


def converted(folder):
    with pytest.raises(ValueError, match="before scvi-tools 0.15"):
        trvae.TRVAE.convert_legacy_save(folder, folder)


def evaluated(cells):
    method = lambda: trvae.TRVAEMethod(SMALL, {"max_epochs": 1, **QUIET})  # noqa: E731
    trvae.evaluate(
        cells, **KEYS, source_condition="control", labels=["type_0"], seeds=[0],
        methods={"trVAE": method}, progress_bar=False,
    )  # fmt: skip


# Of several models alike.
SHARED = {
    "transfer": lambda model, to, given: model.transfer(target_condition=to),
    "get_transferred_expression": lambda model, to, given: model.get_transferred_expression(
        target_condition=to, n_samples=2
    ),
    "assess_transfer": lambda model, to, given: model.assess_transfer(None, to, n_samples=2),
    "get_transfer_support": lambda model, to, given: model.get_transfer_support(None, to),
    "save": lambda model, to, given: model.save(given.out / "model", save_anndata=True),
}
REPRESENTED = {
    "get_latent_representation": lambda model, to, given: model.get_latent_representation(),
    "get_mmd_representation": lambda model, to, given: model.get_mmd_representation(),
    "conditions": lambda model, to, given: model.conditions,
    "get_elbo": lambda model, to, given: model.get_elbo(),
    "get_marginal_ll": lambda model, to, given: model.get_marginal_ll(n_mc_samples=2),
    "get_reconstruction_error": lambda model, to, given: model.get_reconstruction_error(),
    "get_aggregated_posterior": lambda model, to, given: model.get_aggregated_posterior(),
    "get_var_names": lambda model, to, given: model.get_var_names(),
}
OF_GENES = {
    "get_transferred_means": lambda model, to, given: model.get_transferred_means(None, to),
    "rank_transferred_genes": lambda model, to, given: model.rank_transferred_genes(None, to),
}
OF_TRVAE = {
    "get_normalized_expression": lambda model, to, given: model.get_normalized_expression(
        n_samples=2
    ),
    "differential_expression": lambda model, to, given: model.differential_expression(
        groupby="condition", group1=to, silent=True
    ),
    "get_likelihood_parameters": lambda model, to, given: model.get_likelihood_parameters(),
    "get_feature_correlation_matrix": lambda model, to, given: (
        model.get_feature_correlation_matrix()
    ),
    "posterior_predictive_sample": lambda model, to, given: model.posterior_predictive_sample(),
}


def of(name, to, calls):
    return {
        f"{model_class}.{method}": lambda given, call=call: call(getattr(given, name), to, given)
        for model_class, methods in calls.items()
        for method, call in methods.items()
    }


CALLS = {
    **of("model", "treated", {"TRVAE": SHARED | REPRESENTED | OF_GENES | OF_TRVAE}),
    **of("image_model", "thick", {"ImageTRVAE": SHARED | REPRESENTED}),
    **of("ensemble", "treated", {"TRVAEEnsemble": SHARED | OF_GENES}),
    "TRVAE.setup_anndata": lambda given: trvae.TRVAE.setup_anndata(given.cells.copy(), **KEYS),
    "TRVAE.setup_mudata": lambda given: trvae.TRVAE.setup_mudata(
        given.mdata, **KEYS, modalities=dict.fromkeys(KEYS, "rna")
    ),
    "TRVAE.transfer of MuData": lambda given: given.mudata_model.transfer(
        target_condition="treated"
    ),
    "TRVAE.load of MuData": lambda given: trvae.TRVAE.load(given.folder / "mudata"),
    "TRVAE.train": lambda given: trained_anew(trvae.TRVAE, given.cells),
    "TRVAE.transfer to a file": lambda given: given.model.transfer(
        given.cells, "treated", out=given.out / "out.h5ad", chunk_size=50, progress_bar=False
    ),
    "TRVAE.load": lambda given: trvae.TRVAE.load(given.folder / "TRVAE"),
    "TRVAE.load_query_data": lambda given: mapped(trvae.TRVAE, given.new, given.folder / "TRVAE"),
    "TRVAE.load_registry": lambda given: trvae.TRVAE.load_registry(given.folder / "TRVAE"),
    "TRVAE.view_setup_args": lambda given: trvae.TRVAE.view_setup_args(given.folder / "TRVAE"),
    "TRVAE.convert_legacy_save": lambda given: converted(given.folder),
    "TRVAE.prepare_query_anndata": lambda given: trvae.TRVAE.prepare_query_anndata(
        given.cells[:, 1:].copy(), given.folder / "TRVAE"
    ),
    "TRVAE.prepare_query_mudata": lambda given: trvae.TRVAE.prepare_query_mudata(
        given.mdata, given.mudata_model
    ),
    "TRVAE.from_scarches": lambda given: from_scarches(),
    "TRVAE.minify_adata": lambda given: minified(given, trvae.TRVAE, "TRVAE"),
    "ImageTRVAE.minify_adata": lambda given: minified(given, trvae.ImageTRVAE, "ImageTRVAE"),
    "ImageTRVAE.setup_anndata": lambda given: trvae.ImageTRVAE.setup_anndata(
        given.images.copy(), condition_key="condition", image_shape=(6, 6)
    ),
    "ImageTRVAE.train": lambda given: trained_anew(
        trvae.ImageTRVAE, given.images, image_shape=(6, 6)
    ),
    "ImageTRVAE.get_images": lambda given: given.image_model.get_images(given.images),
    "ImageTRVAE.get_interpolated_images": lambda given: given.image_model.get_interpolated_images(
        given.images, "thick"
    ),
    "ImageTRVAE.get_transferred_images": lambda given: given.image_model.get_transferred_images(
        target_condition="thick"
    ),
    "ImageTRVAE.load": lambda given: trvae.ImageTRVAE.load(given.folder / "ImageTRVAE"),
    "ImageTRVAE.load_registry": lambda given: trvae.ImageTRVAE.load_registry(
        given.folder / "ImageTRVAE"
    ),
    "ImageTRVAE.prepare_query_anndata": lambda given: trvae.ImageTRVAE.prepare_query_anndata(
        given.images.copy(), given.folder / "ImageTRVAE"
    ),
    "ImageTRVAE.load_query_data": lambda given: trvae.ImageTRVAE.load_query_data(
        given.images, given.folder / "ImageTRVAE"
    ),
    "ImageTRVAE.image_shape": lambda given: given.image_model.image_shape,
    "TRVAEEnsemble.train": lambda given: trvae.TRVAEEnsemble(
        given.ensemble.models[0].adata, n_models=2, **SMALL
    ).train(max_epochs=1, **QUIET),
    "TRVAEEnsemble.load": lambda given: trvae.TRVAEEnsemble.load(
        given.folder / "TRVAEEnsemble", adata=False
    ),
    "evaluate": lambda given: evaluated(given.cells),
    "pl.mean_scatter": lambda given: trvae.pl.mean_scatter(*given.groups, show=False),
    "pl.response": lambda given: trvae.pl.response(*given.groups, show=False),
    "pl.response_by_label": lambda given: trvae.pl.response_by_label(
        *given.groups, labels_key="cell_type", show=False
    ),
    "pl.transferred_images": lambda given: trvae.pl.transferred_images(
        given.image_model, target_condition="thick", source_condition="thin", show=False
    ),
    "pl.interpolated_images": lambda given: trvae.pl.interpolated_images(
        given.image_model, target_condition="thick", source_condition="thin", show=False
    ),
    "pl.umap": lambda given: trvae.pl.umap(given.model, n_neighbors=5, show=False),
    "pl.history": lambda given: trvae.pl.history(given.model, show=False),
    "metrics.transfer_metrics": lambda given: trvae.metrics.transfer_metrics(*given.groups),
    "metrics.log_normalized": lambda given: trvae.metrics.log_normalized(
        given.cells, target_sum=100.0
    ),
    "datasets.simulated": lambda given: trvae.datasets.simulated(n_cells=5),
    "datasets.kang18": lambda given: trvae.datasets.kang18(),
    "datasets.stroke_digits": lambda given: trvae.datasets.stroke_digits(),
    "datasets.image_folder": lambda given: trvae.datasets.image_folder(given.folder / "images"),
    "datasets.celeba": lambda given: trvae.datasets.celeba(
        given.folder / "celeba", size=8, progress_bar=False
    ),
}
# Of arrays.
X = np.random.default_rng(0).gamma(2.0, 1.0, (3, 20, 10))
T = trvae.metrics.welch_t(X[0], X[1])
CALLS |= {
    f"metrics.{name}": lambda given, name=name, arguments=arguments: getattr(trvae.metrics, name)(
        *arguments
    )
    for name, arguments in {
        "coverage": X[:2],
        "de_direction": (T, T, 3),
        "de_overlap": (T, T, 3),
        "de_rank_correlation": (T, T),
        "energy_distance": X[:2],
        "frechet_distance": X[:2],
        "maximum_mean_discrepancy": X[:2],
        "median_library_size": (trvae.datasets.simulated(n_cells=3),),
        "pearson_of_change": X,
        "r2_of_means": X[:2],
        "r2_of_variances": X[:2],
        "rank_changed_genes": X[:2],
        "rmse_of_means": X[:2],
        "stroke_thickness": (np.eye(9)[None].repeat(3, 1),),
        "welch_t": X[:2],
    }.items()
}


# scvi-tools' own, that compute nothing.
NOTHING_COMPUTED = {
    "convert_legacy_save", "deregister_manager", "get_anndata_manager", "get_setup_arg",
    "to_device", "view_anndata_setup", "view_setup_args",
}  # fmt: skip


def computes(class_name, member):
    static = inspect.getattr_static(getattr(trvae, class_name), member)
    return not isinstance(static, property) and member not in NOTHING_COMPUTED


def test_every_public_call_is_there():
    api = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    public = {
        f"{name}.{member}"
        for name, members in re.findall(r"autoclass:: (\w+)\n    :members: (.+)", api)
        if not name.endswith("Module")
        for member in members.split(", ")
        if computes(name, member)
    }
    for namespace in (trvae.datasets, trvae.metrics, trvae.pl):
        public |= {f"{namespace.__name__.split('.')[-1]}.{name}" for name in namespace.__all__}
    assert public - set(CALLS) == set()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_shared_is_changed(given, name):
    call = CALLS[name]
    # What others load when they are first needed, they may set as they like.
    call(given)
    for path in given.out.glob("*"):
        path.rename(f"{path}.before")
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    before = state()
    call(given)
    after = state()
    plt.close("all")
    assert [key for key in before if before[key] != after[key]] == []
