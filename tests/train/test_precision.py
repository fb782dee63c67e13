import numpy as np
import pytest
import torch
from helpers import QUIET, SMALL, cpu_only, dense, fit
from lightning.pytorch.callbacks import Callback
from test_bad_input import images

import trvae


class Failing(Callback):
    def on_train_epoch_end(self, trainer, plan):
        raise ZeroDivisionError


def trained(kind, **train):
    train = {"max_epochs": 2, **train}
    if kind == "images":
        data = images()
        shape = {"image_shape": (6, 6, 1)}
        trvae.ImageTRVAE.setup_anndata(data, condition_key="condition", **shape)
        model = trvae.ImageTRVAE(data, seed=0)
        model.train(**train, **QUIET)
        return model
    data = trvae.datasets.simulated(n_cells=20, n_genes=30)
    data.obs["size"] = np.linspace(0.5, 2, data.n_obs)
    setup = {"size_factor_key": "size"} if kind == "size factors" else {}
    if kind == "normal":
        data.X = data.X.log1p().toarray()
    setup["continuous_covariate_keys"] = ["size"]
    likelihood = "nb" if kind == "size factors" else kind
    return fit(data, setup=setup, train=train, gene_likelihood=likelihood)


@cpu_only("Apple's GPUs have no float64, and others capture steps")
@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson", "normal", "size factors", "images"])
def test_training_in_float64_gives_a_model_of_float32(kind, on_device, tmp_path):
    model = trained(kind, precision="64-true", data_on_device=on_device)
    assert {weight.dtype for weight in model.module.parameters()} == {torch.float32}
    single = trained(kind)
    # Draws in float64 are others.
    losses = (m.history["train_loss"].to_numpy(float) for m in (model, single))
    np.testing.assert_allclose(*losses, rtol=0.1)
    target = {"target_condition": model.conditions[-1]}
    predicted = dense(model.transfer(**target).X)
    assert predicted.dtype == dense(single.transfer(**target).X).dtype
    model.save(tmp_path / "model", save_anndata=True)
    saved = type(model).load(tmp_path / "model", accelerator=QUIET["accelerator"])
    np.testing.assert_array_equal(dense(saved.transfer(**target).X), predicted)
    # In float32 again.
    model.train(1, **QUIET)
    assert len(model.history["train_loss"]) == 3


@cpu_only("Apple's GPUs have no float64")
def test_a_reference_mapped_in_float64_stays_as_it_was():
    reference = trained("nb")
    query = trvae.datasets.simulated(n_cells=20, n_genes=30)
    query.obs["size"] = 1.0
    query.obs["condition"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, reference, match_reference=True)
    mapped.train(1, precision="64-true", **QUIET)
    n_rows = {name: len(weight) for name, weight in reference.module.named_parameters()}
    for name, weight in mapped.module.named_parameters():
        before = dict(reference.module.named_parameters())[name]
        assert torch.equal(weight[: n_rows[name]], before)


@cpu_only("Apple's GPUs have no float64")
def test_interrupted_by_an_error_in_float64_the_model_is_as_before():
    model = trained("nb")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        model.train(1, precision="64-true", callbacks=[Failing()], **QUIET)
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {value.dtype for value in after.values()} == {v.dtype for v in before.values()}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "double"])
def test_precisions_that_lose_counts_are_refused_at_once(precision):
    data = trvae.datasets.simulated(n_cells=20, n_genes=30)
    trvae.TRVAE.setup_anndata(data, condition_key="condition")
    model = trvae.TRVAE(data, **SMALL)
    with pytest.raises(ValueError, match=f"precision must be .*'64-true'.*got '{precision}'"):
        model.train(1, precision=precision, **QUIET)
    assert not model.is_trained_
