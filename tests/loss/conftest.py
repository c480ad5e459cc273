"""The method computes without implicit promotion of shapes and types, in all of its tests."""

import jax
import pytest


@pytest.fixture(autouse=True, scope='module')
def strict_promotion():
    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
        yield
