"""The valid range of triplet-loss thresholds on the unit sphere, and thresholds sampled from it."""

import jax
import numpy as np

from mtdml_jax.loss.arguments import as_array
from mtdml_jax.loss.distances import DistanceName, check_distance, from_squares


def threshold_range(
    num_classes: int, slice_dim: int | None = None, distance: DistanceName = 'euclidean'
) -> tuple[float, float]:
    """Returns the range of thresholds that unit vectors of all classes can satisfy at once.

    A threshold asks every negative to be that much farther away than the farthest positive. So no
    embedding meets a threshold above the largest common distance of C class centres on the sphere:

        C <= d + 1:  D^2_max = 2C / (C - 1)   (regular simplex, attained)
        C >  d + 1:  D^2_max = 2              (Rankin's upper bound, attained up to C = 2d)

    The paper samples thresholds "over the valid range"; this geometric reading of it is ours.

    Args:
      num_classes: number of classes C, at least 2.
      slice_dim: dimension d of a slice; None if it is large enough for the simplex.
      distance: a name in `DISTANCES`; the thresholds are in its units.

    Returns:
      (low, high) in units of the distance; low is 0.

    Raises:
      ValueError: there are fewer than 2 classes, the dimension is below 1, or the distance is unknown.

    Examples:
      Two classes can lie at opposite poles. More classes must come closer:

      >>> import mtdml_jax as mt
      >>> mt.threshold_range(2)
      (0.0, 2.0)
      >>> low, high = mt.threshold_range(7, slice_dim=64)
      >>> round(high, 2)
      1.53

    References:
      R. A. Rankin, "The closest packing of spherical caps in n dimensions", Glasgow Math. J. 2, 1955.
      Yang et al., Pattern Recognition 156, 110711, 2024.
    """
    check_distance(distance)
    if num_classes < 2:
        raise ValueError(f'expected num_classes of at least 2, found {num_classes}')
    if slice_dim is not None and slice_dim < 1:
        raise ValueError(f'expected slice_dim of at least 1, found {slice_dim}')
    fits_simplex = slice_dim is None or num_classes <= slice_dim + 1
    squared_high = 2.0 * num_classes / (num_classes - 1) if fits_simplex else 2.0
    return 0.0, float(from_squares(squared_high, distance))


def sample_thresholds(num_slices: int, low: float, high: float) -> jax.Array:
    """Returns the midpoints of `num_slices` equal bins of [low, high], ascending.

    Args:
      num_slices: number of slices S, at least 1.
      low: lower end of the range.
      high: upper end of the range.

    Returns:
      Thresholds, shape [S], float32.

    Raises:
      ValueError: there is no slice, or the range is empty.

    Examples:
      >>> import mtdml_jax as mt
      >>> low, high = mt.threshold_range(num_classes=2)
      >>> low, high
      (0.0, 2.0)
      >>> mt.sample_thresholds(4, low, high).tolist()
      [0.25, 0.75, 1.25, 1.75]
    """
    if num_slices < 1:
        raise ValueError(f'expected num_slices of at least 1, found {num_slices}')
    if not low < high:
        raise ValueError(f'expected low < high, found low={low}, high={high}')
    low, high = float(low), float(high)
    bins = np.arange(num_slices, dtype=np.float32) + 0.5
    return as_array(low + (high - low) * bins / num_slices, 'thresholds')
