"""Means with 95 % t intervals, and the Markdown tables that show them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scipy import stats


class Interval(NamedTuple):
    """A mean and its 95 % interval; the bounds for a single value are NaN."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Formats mean and half-width in per cent."""
        half = 100 * (self.high - self.low) / 2
        return f'{100 * self.mean:.2f}' + ('' if math.isnan(half) else f' +-{half:.2f}')


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of n values, and its 95 % interval by Student's t with n - 1 degrees of freedom.

    Raises:
      ValueError: there are no values.
    """
    if not values:
        raise ValueError('expected at least one value, found none')
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a Markdown table for a page of docs/."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
