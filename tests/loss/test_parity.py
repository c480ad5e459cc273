"""Mining, loss and gradient on 200 random float64 batches against plain loops."""

import functools

import numpy as np
import pytest
import reference
from parity_cases import CASES, compute_in_jax, pairs_of


@functools.cache
def compute_in_loops(number, dual):
    case = CASES[number]
    return reference.loss_terms(
        case.embeddings, case.labels, case.thresholds, case.shape.distance, dual
    )


@pytest.mark.parametrize(
    'number', [pytest.param(number, id=case.name) for number, case in enumerate(CASES)]
)
def test_triplets_loss_and_gradient_match_loops(number):
    case = CASES[number]
    _, _, _, distance, reduction = case.shape
    for dual, found in zip((False, True), compute_in_jax(case), strict=True):
        terms = compute_in_loops(number, dual)
        for s, slice_terms in enumerate(terms):
            assert pairs_of(found.triplets, s) == slice_terms.triplets, f'slice {s}'
        loss = reference.reduce(terms, reduction, len(case.labels))
        np.testing.assert_allclose(found.loss, loss, rtol=0, atol=1e-12)
        gradient = reference.loss_gradient(
            case.embeddings, terms, case.thresholds, distance, dual, reduction
        )
        np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=1e-10)


def has_duplicates(case, within):
    """Whether two rows of any length are equal and of one class (`within`) or of two."""
    rows, labels = case.embeddings, case.labels
    equal = np.all(rows[:, None] == rows, axis=2) & np.any(rows != 0, axis=1)
    same_class = labels[:, None] == labels
    return np.any(equal & ~np.eye(len(rows), dtype=bool) & (same_class == within))


def test_cases_have_what_implementations_differ_on():
    class_sizes = [np.unique(case.labels, return_counts=True)[1] for case in CASES]
    found = {
        'cases': len(CASES),
        'one class': sum(len(sizes) == 1 for sizes in class_sizes),
        'a class for each row': sum(len(s) > 1 and max(s) == 1 for s in class_sizes),
        'a singleton': sum(len(s) > 1 and min(s) == 1 < max(s) for s in class_sizes),
        'duplicates within': sum(has_duplicates(case, within=True) for case in CASES),
        'duplicates across': sum(has_duplicates(case, within=False) for case in CASES),
        'zero rows': sum(np.any(np.all(case.embeddings == 0, axis=1)) for case in CASES),
    }
    least = dict(zip(found, (200, 20, 15, 90, 80, 80, 15), strict=True))
    assert all(found[name] >= least[name] for name in found), found
    terms = [s for number in range(len(CASES)) for s in compute_in_loops(number, False)]
    active = [term.active for slice_terms in terms for term in slice_terms.terms]
    assert len(active) > 7000
    assert 300 < sum(not a for a in active) < 7000
