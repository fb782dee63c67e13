import pytest
import torch
from helpers import DEVICE
from torch.nn.functional import linear, one_hot

from trvae.module._covariates import CovariateLinear, Covariates, CovariateSizes
from trvae.module._decoders import AdditiveDecoder, ConditionalDecoder
from trvae.module._layers import Encoder

pytestmark = pytest.mark.usefixtures("tensors_on_device")
SIZES = CovariateSizes(n_conditions=3, n_cats_per_cov=(4, 2), n_continuous_cov=2)
DECODERS = {
    "conditional": lambda: ConditionalDecoder(4, 6, [5, 7], SIZES, normalization="layer"),
    "additive": lambda: AdditiveDecoder(
        4, 6, [5, 7], SIZES, effect_sizes=[3], normalization="layer"
    ),
}


@pytest.fixture
def covariates():
    g = torch.Generator(DEVICE).manual_seed(0)
    codes = [torch.randint(0, n, (8,), generator=g) for n in (3, 4, 2)]
    continuous = torch.randn(8, 2, generator=g)
    return Covariates(codes[0], torch.stack(codes[1:], dim=1), continuous)


def under(covariates, condition):
    return covariates._replace(condition=torch.full_like(covariates.condition, condition))


def test_covariate_linear_equals_a_linear_layer_of_one_hot_encodings(covariates):
    layer, x = CovariateLinear(5, 7, SIZES), torch.randn(8, 5)
    tables = [table.weight for table in layer.category_tables()]
    assert [tuple(table.shape) for table in tables] == [(3, 7), (4, 7), (2, 7)]
    weight = [layer.linear.weight, *(table.T for table in tables), layer.continuous.weight]
    codes = [covariates.condition, *covariates.categorical.T]
    encoded = [one_hot(code, len(table)) for code, table in zip(codes, tables, strict=True)]
    encoded = torch.cat([x, *encoded, covariates.continuous], dim=1)
    expected = linear(encoded, torch.cat(weight, dim=1), layer.linear.bias)
    torch.testing.assert_close(layer(x, covariates), expected)


@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_sizes_of_the_paper_which_are_not_changed(normalization, covariates):
    sizes = [800, 800, 128]
    encoder = Encoder(50, 20, sizes, SIZES, normalization, 0.1)
    decoder = ConditionalDecoder(20, 50, sizes[::-1], SIZES, normalization=normalization)
    assert sizes == [800, 800, 128]
    shapes = {name: tuple(weight.shape) for name, weight in encoder.named_parameters()}
    assert shapes["hidden.layers.0.map.linear.weight"] == (50, 800)
    assert shapes["hidden.layers.2.map.weight"] == (128, 800)
    mean, scale = encoder(torch.rand(8, 50), covariates)
    assert mean.shape == scale.shape == (8, 20)
    assert (scale > 0).all()
    decoded = decoder(mean, covariates)
    assert decoded.first_layer.shape == (8, 128)
    assert decoded.logits.shape == (8, 50)


@pytest.mark.parametrize(
    ("name", "entered"),
    [
        ("conditional", "hidden.layers.0.map.condition.weight"),
        ("additive", "effect.layers.0.map.condition.weight"),
    ],
)
def test_where_the_condition_enters(name, entered, covariates):
    decoder, z = DECODERS[name]().eval(), torch.randn(8, 4)
    one, other = (decoder(z, under(covariates, c)) for c in (0, 1))
    assert [n for n, _ in decoder.named_parameters() if ".condition." in n] == [entered]
    assert not torch.allclose(one.logits, other.logits)
    # The MMD is taken at the first layer: of the additive decoder, it must not see the condition.
    assert torch.equal(one.first_layer, other.first_layer) == (name == "additive")


def test_other_covariates_reach_the_base_only(covariates):
    decoder, z = DECODERS["additive"]().eval(), torch.randn(8, 4)
    changed = covariates._replace(continuous=covariates.continuous + 1)
    difference = [
        decoder(z, under(covariates, c)).logits - decoder(z, under(changed, c)).logits
        for c in (0, 1)
    ]
    assert difference[0].abs().max() > 0
    torch.testing.assert_close(*difference)


@pytest.mark.parametrize("name", DECODERS)
def test_a_known_base_is_not_decoded_again(name, covariates):
    decoder, z = DECODERS[name]().eval(), torch.randn(8, 4)
    expected = decoder(z, under(covariates, 1))
    base = decoder(z, under(covariates, 0)).base
    torch.testing.assert_close(decoder(z, under(covariates, 1), base).logits, expected.logits)
    if base is not None:
        assert decoder(torch.zeros(8, 4), covariates, base).base is base


@pytest.mark.parametrize("name", DECODERS)
def test_several_draws_are_decoded_like_each_alone(name, covariates):
    decoder, z = DECODERS[name]().eval(), torch.randn(3, 8, 4)
    together = decoder(z, covariates).logits
    alone = [decoder(draw, covariates).logits for draw in z]
    torch.testing.assert_close(together, torch.stack(alone))
