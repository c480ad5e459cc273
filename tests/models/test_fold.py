"""BatchNorm is folded where that keeps the values, and nowhere else."""

import jax
import numpy as np
import pytest
from backbone_files import model_section
from flax import linen as nn
from flax.traverse_util import flatten_dict

from mtdml_jax.models import make_network
from mtdml_jax.models.fold import fold_norms
from mtdml_jax.models.layers import DepthwiseConv, make_norm

SIDE = 16
# Not the default of Flax: a fold with another epsilon would be seen.
EPSILON = 0.3


def random_variables(network, channels=3, seed=0):
    """Random variables, in which also BatchNorm's statistics differ from 0 and 1; and a few images."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, SIDE, SIDE, channels)).astype(np.float32)

    def draw(path, x):
        name = path[-1].key
        if name == 'kernel':
            return (rng.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5).astype(np.float32)
        low = 0.05 if name in ('var', 'scale') else -1
        return rng.uniform(low, 1, x.shape).astype(np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes), images


def compare(network, variables, images):
    """Checks that folding keeps the values; returns the paths of the folded variables."""
    apply, folded = fold_norms(network, variables, images)
    expected = jax.jit(network.apply)(variables, images)
    found = jax.jit(apply)(folded, images)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    return {'/'.join(path) for path in flatten_dict(folded)}


@pytest.mark.parametrize(
    ('backbone', 'stem', 'norms_left'),
    [
        ('resnet10', 'imagenet', 0),
        pytest.param('resnet50', 'small', 0, marks=pytest.mark.slow),
        pytest.param('mobilenet_v3_small', 'small', 0, marks=pytest.mark.slow),
        pytest.param('dlib_resnet', 'small', 0, marks=pytest.mark.slow),
        # The first BatchNorm of each unit has no convolution before it.
        pytest.param('ir50', 'small', 24, marks=pytest.mark.slow),
    ],
)
def test_folded_backbone_computes_the_same(backbone, stem, norms_left):
    model = model_section(backbone, stem)
    model.embedding_norm = 'batch'
    network = make_network(model, 7)
    names = compare(network, *random_variables(network))
    assert sum(name.endswith('var') for name in names) == norms_left
    assert 'params/BatchNorm_0/bias' in names


class Case(nn.Module):
    """Calls a function with a convolution and a BatchNorm."""

    function: object
    make: object = None
    norm: object = None

    @nn.compact
    def __call__(self, x):
        layer = self.make() if self.make else nn.Conv(4, (3, 3), name='conv')
        norm = self.norm or make_norm(False, np.float32, None, EPSILON)
        return self.function(x, layer, norm(name='norm'))


@pytest.mark.parametrize(
    'make',
    [
        None,
        lambda: nn.Conv(6, (3, 3), strides=2, feature_group_count=3, use_bias=False),
        lambda: nn.Dense(5),
        lambda: DepthwiseConv(3, 2, np.float32),
    ],
    ids=['convolution with bias', 'groups', 'dense', 'depthwise'],
)
def test_layer_before_a_norm_is_folded(make):
    network = Case(lambda x, layer, norm: nn.relu(norm(layer(x))), make)
    names = compare(network, *random_variables(network))
    assert not any(name.startswith('batch_stats') for name in names)


class Centred(nn.Conv):
    """A convolution that is not linear in its kernel."""

    def __call__(self, x):
        kernel = self.scope.get_variable('params', 'kernel')
        return super().__call__(x) if kernel is None else super().__call__(x) * kernel.max()


def twice(x, layer, norm):
    return layer(nn.relu(norm(layer(x))))


@pytest.mark.parametrize(
    ('function', 'make', 'norm'),
    [
        (lambda x, layer, norm: norm(nn.relu(layer(x))), None, None),
        (lambda x, layer, norm: layer(norm(x)), None, None),
        (lambda x, layer, norm: norm(-layer(x)), None, None),
        (lambda x, layer, norm: [norm(y := layer(x)), y], None, None),
        (lambda x, layer, norm: norm(y := layer(x)) * y, None, None),
        (lambda x, layer, norm: norm(layer(x)) + norm(x), None, None),
        (twice, lambda: nn.Conv(4, (3, 3)), None),
        (lambda x, layer, norm: norm(layer(x)), lambda: Centred(4, (3, 3)), None),
        (
            lambda x, layer, norm: norm(layer(x)),
            None,
            lambda name: nn.BatchNorm(use_running_average=True, axis=1, name=name),
        ),
        (
            lambda x, layer, norm: norm(layer(x), use_running_average=True),
            None,
            nn.BatchNorm,
        ),
    ],
    ids=[
        'after a ReLU',
        'before the convolution',
        'after a sign',
        'whose input is an output',
        'whose input is used again',
        'called twice',
        'of a convolution called twice',
        'of a subclass',
        'of another axis',
        'told by the call',
    ],
)
def test_norm_stays(function, make, norm):
    network = Case(function, make, norm)
    variables, images = random_variables(network, 4)
    assert compare(network, variables, images) == {'/'.join(x) for x in flatten_dict(variables)}


def test_bfloat16_stays_as_it_is():
    model = model_section('resnet10', 'small')
    model.dtype = 'bfloat16'
    network = make_network(model, 7)
    variables, images = random_variables(network)
    assert compare(network, variables, images) == {'/'.join(x) for x in flatten_dict(variables)}
