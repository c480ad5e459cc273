"""What the analyses in experiments/ compute by themselves."""

import numpy as np
import pytest
import slices


def test_best_slices_are_chosen_on_one_half_and_measured_on_the_other():
    # Slice 0 is right on even queries only, slice 1 on odd ones only, slice 2 on one query of each.
    alone = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    # Chosen on the even ones: slice 0, which gets no odd one right; and the other way round.
    assert slices.best_of(alone, 1, lambda chosen: alone[chosen].any(axis=0)) == 0
    # Two: 0 and 2 by the even ones, right on 1 of 2 odd ones; 1 and 2 by the odd ones, on 1 of 2.
    assert slices.best_of(alone, 2, lambda chosen: alone[chosen].any(axis=0)) == pytest.approx(0.5)
