import math

import pytest

from mtdml_jax.evaluation.intervals import (
    Interval,
    markdown_table,
    mean_interval,
    paired_difference,
)


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


def test_paired_difference_takes_the_seeds_of_both_and_sees_through_their_luck():
    # Seeds differ by 0.3, cells by 0.01, 0.02 and 0.03: variance 1e-4, t of 2 degrees 4.302653.
    first = {0: 0.51, 1: 0.82, 2: 0.23, 7: 0.9}
    second = {2: 0.2, 0: 0.5, 1: 0.8, 9: 0.1}
    half = 4.302653 * 0.01 / math.sqrt(3)
    found = paired_difference(first, second)
    assert found == pytest.approx((0.02, 0.02 - half, 0.02 + half), abs=1e-7)
    assert str(found) == '2.00 +-2.48'


def test_markdown_table():
    table = markdown_table(('cell', 'kNN'), [('a', Interval(0.5, 0.49, 0.51)), ('b', '')])
    assert table == '| cell | kNN |\n| --- | --- |\n| a | 50.00 +-1.00 |\n| b |  |'
