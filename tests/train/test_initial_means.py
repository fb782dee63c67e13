"""An untrained model starts from the mean of its first minibatch, any other model from its weights."""

import numpy as np
import pytest
import torch
from helpers import QUIET, fit
from lightning.pytorch import Callback

import trvae

KINDS = {
    "library sizes": ({}, {}),
    "size factors": ({"size_factor_key": "size"}, {}),
    "Poisson": ({}, {"gene_likelihood": "poisson"}),
    "paper's decoder": ({}, {"decoder": "conditional"}),
}


class Start(Callback):
    """Keep the first minibatch."""

    tensors = None

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        if self.tensors is None:
            self.tensors = {name: values.cpu() for name, values in batch.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_minibatch_is_given_its_mean(adata, kind):
    setup, model = KINDS[kind]
    adata.obs["size"] = np.random.default_rng(0).uniform(0.5, 2, adata.n_obs)
    start = Start()
    # A learning rate of 0 leaves everything as it was at the start.
    train = {"max_epochs": 1, "plan_kwargs": {"lr": 0.0}, "callbacks": [start], "batch_size": 64}
    fitted = fit(adata, setup=setup, train=train, **model)
    module = fitted.module.to("cpu").eval()
    # Apart from the bias, the network does nothing.
    decoder = module.decoder
    for weight in module.decoder.parameters():
        if weight is not getattr(decoder, "base", decoder).logits.bias:
            weight.data.zero_()
    inferred = module.inference(**module._get_inference_input(start.tensors))
    generated = module.generative(**module._get_generative_input(start.tensors, inferred))
    x = start.tensors["X"]
    # Each gene has one more count.
    expected = (x.sum(0) + 1) / len(x)
    mean = generated["px"].mean.mean(0)
    scale = 1.0 if kind == "size factors" else expected.sum() / mean.sum()
    torch.testing.assert_close(mean * scale, expected, rtol=1e-4, atol=1e-5)


def test_a_trained_model_goes_on_from_its_weights(adata):
    model = fit(adata)
    bias = model.module.decoder.bias.detach().cpu().clone()
    model.train(max_epochs=1, plan_kwargs={"lr": 0.0}, **QUIET)
    assert torch.equal(model.module.decoder.bias.cpu(), bias)


def test_a_query_keeps_the_means_of_its_reference(adata):
    reference = fit(adata)
    query = adata.copy()
    query.obs["condition"] = query.obs["condition"].astype(str).replace("treated", "new")
    mapped = trvae.TRVAE.load_query_data(query, reference, unfrozen=True)
    mapped.train(max_epochs=1, plan_kwargs={"lr": 0.0}, **QUIET)
    assert torch.equal(mapped.module.decoder.bias.cpu(), reference.module.decoder.bias.cpu())
