import math

import pytest

from mtdml_jax.scoring.intervals import Interval, markdown_table, mean_interval


def test_interval_of_five_values_by_hand():
    # Variance 10 / 4, standard error sqrt(2.5 / 5), t of 4 degrees of freedom 2.776445.
    half = 2.776445 * math.sqrt(0.5)
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half), abs=1e-6)


def test_single_value_has_no_bounds_and_none_is_refused():
    found = mean_interval([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert str(found) == '50.00'
    with pytest.raises(ValueError, match='at least one value'):
        mean_interval([])


def test_markdown_table():
    table = markdown_table(('cell', 'kNN'), [('a', Interval(0.5, 0.49, 0.51)), ('b', '')])
    assert table == '| cell | kNN |\n| --- | --- |\n| a | 50.00 +-1.00 |\n| b |  |'
