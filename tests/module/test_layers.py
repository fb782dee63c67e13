import pytest
import torch
from torch.nn.functional import one_hot

from trvae.module._layers import (
    AdditiveDecoder,
    ConditionalDecoder,
    CovariateLinear,
    Covariates,
    CovariateSizes,
    Dropout,
    Encoder,
)

SIZES = CovariateSizes(n_conditions=3, n_cats_per_cov=(4, 2), n_continuous_cov=2)


@pytest.fixture
def covariates():
    g = torch.Generator().manual_seed(0)
    categorical = torch.stack(
        [torch.randint(0, n, (8,), generator=g) for n in SIZES.n_cats_per_cov], dim=1
    )
    return Covariates(
        torch.randint(0, 3, (8,), generator=g), categorical, torch.randn(8, 2, generator=g)
    )


def additive_decoder():
    return AdditiveDecoder(4, 6, [5, 7], SIZES, effect_sizes=[3], normalization="layer")


def under(covariates, condition):
    return covariates._replace(condition=torch.full_like(covariates.condition, condition))


def test_covariate_linear_equals_a_linear_layer_of_one_hot_encodings(covariates):
    layer = CovariateLinear(5, 7, SIZES)
    x = torch.randn(8, 5)
    weight = torch.cat(
        [layer.linear.weight, *(t.weight.T for t in layer.category_tables())]
        + [layer.continuous.weight],
        dim=1,
    )
    encoded = torch.cat(
        [
            x,
            one_hot(covariates.condition, 3),
            one_hot(covariates.categorical[:, 0], 4),
            one_hot(covariates.categorical[:, 1], 2),
            covariates.continuous,
        ],
        dim=1,
    )
    expected = torch.nn.functional.linear(encoded, weight, layer.linear.bias)
    torch.testing.assert_close(layer(x, covariates), expected)


def test_covariates_have_separate_weights(covariates):
    layer = CovariateLinear(5, 7, SIZES)
    assert [tuple(t.weight.shape) for t in layer.category_tables()] == [(3, 7), (4, 7), (2, 7)]


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_paper_sizes_can_be_built(normalization):
    encoder = Encoder(50, 20, [800, 800, 128], SIZES, normalization, 0.1)
    decoder = ConditionalDecoder(20, 50, [128, 800, 800], SIZES, normalization=normalization)
    assert encoder.hidden.layers[0].map.linear.weight.shape == (50, 800)
    assert [layer.map.out_features for layer in encoder.hidden.layers[1:]] == [800, 128]
    assert decoder.hidden.layers[0].map.linear.out_features == 128
    assert decoder.logits.in_features == 800


def test_condition_enters_the_first_layer_of_the_conditional_decoder_only(covariates):
    decoder = ConditionalDecoder(4, 6, [5, 7], SIZES, normalization="layer").eval()
    z = torch.randn(8, 4)
    first = [decoder(z, under(covariates, c)).first_layer for c in (0, 1)]
    assert not torch.allclose(*first)
    later = [name for name, _ in decoder.named_parameters() if "condition" in name]
    assert later == ["hidden.layers.0.map.condition.weight"]


def test_condition_does_not_reach_the_base_of_the_additive_decoder(covariates):
    decoder = additive_decoder().eval()
    z = torch.randn(8, 4)
    one, other = (decoder(z, under(covariates, c)) for c in (0, 1))
    torch.testing.assert_close(one.first_layer, other.first_layer, rtol=0, atol=0)
    assert not torch.allclose(one.logits, other.logits)
    names = [name for name, _ in decoder.named_parameters() if ".condition." in name]
    assert names == ["effect.layers.0.map.condition.weight"]


def test_other_covariates_reach_the_base_only(covariates):
    decoder = additive_decoder().eval()
    z = torch.randn(8, 4)
    changed = covariates._replace(continuous=covariates.continuous + 1)
    difference = {
        c: decoder(z, under(covariates, c)).logits - decoder(z, under(changed, c)).logits
        for c in (0, 1)
    }
    assert difference[0].abs().max() > 0
    torch.testing.assert_close(difference[0], difference[1])


def test_a_known_base_is_not_decoded_again(covariates):
    z = torch.randn(8, 4)
    conditional = ConditionalDecoder(4, 6, [5, 7], SIZES, normalization="layer")
    for decoder in (additive_decoder().eval(), conditional.eval()):
        expected = decoder(z, under(covariates, 1))
        base = decoder(z, under(covariates, 0)).base
        torch.testing.assert_close(decoder(z, under(covariates, 1), base).logits, expected.logits)
    decoder = additive_decoder().eval()
    base = decoder(z, covariates).base
    torch.testing.assert_close(decoder(torch.zeros(8, 4), covariates, base).base, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_expectation(dtype):
    x = torch.ones(400, 500, dtype=dtype, requires_grad=True)
    kept = Dropout(0.1)(x)
    kept.sum().backward()
    torch.testing.assert_close(x.grad, kept.detach())
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.9, dtype=dtype).item()}
    # Standard deviation: 0.0007.
    assert abs((kept > 0).double().mean() - 0.9) < 0.003
    assert (Dropout(1.0)(x) == 0).all()
    torch.testing.assert_close(Dropout(0.1).eval()(x), x)


def test_several_draws_are_decoded_as_each_alone(covariates):
    decoder = additive_decoder().eval()
    z = torch.randn(3, 8, 4)
    together = decoder(z, covariates)
    for i in range(3):
        torch.testing.assert_close(together.logits[i], decoder(z[i], covariates).logits)


def test_sizes_given_are_not_changed():
    sizes = [5, 7]
    ConditionalDecoder(4, 6, sizes, SIZES, normalization="layer")
    Encoder(6, 4, sizes, SIZES, "batch", 0.1)
    assert sizes == [5, 7]
