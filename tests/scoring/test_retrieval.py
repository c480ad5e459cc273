"""Retrieval scores, against hand-made rankings and plain loops."""

import tracemalloc

import numpy as np
import pytest

from mtdml_jax.scoring.retrieval import retrieval_scores


def line(*points):
    return np.array(points, np.float32)[:, None]


def scores_by_loops(embeddings, labels):
    """The definitions of Musgrave et al., one query at a time."""
    found = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        others.sort(key=lambda j: np.linalg.norm(embeddings[i] - embeddings[j]))
        hits = [labels[j] == label for j in others]
        size = sum(hits)
        if size:
            precision = [sum(hits[: k + 1]) / (k + 1) for k in range(size)]
            average = sum(p for p, hit in zip(precision, hits, strict=False) if hit) / size
            found.append((precision[0], precision[-1], average))
    return np.mean(found, axis=0)


def test_scores_of_a_line_of_points_worked_out_by_hand():
    # Class 0 at 0, 1, 10 (R = 2), class 1 at 2.2, 2.6 (R = 1). Hits among the R nearest others:
    #   0: yes no    1: yes no    10: no no    2.2: yes    2.6: yes
    found = retrieval_scores(line(0, 1, 10, 2.2, 2.6), np.array([0, 0, 0, 1, 1]))
    assert found['precision_at_1'] == pytest.approx(4 / 5)
    assert found['r_precision'] == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)
    # Average precision over the whole ranking would give 0 and 1 a score of 3/4, 10 one of 5/12.
    assert found['map_at_r'] == pytest.approx((0.5 + 0.5 + 0 + 1 + 1) / 5)


def test_map_at_r_falls_where_the_hit_comes_late():
    # Query 0 finds class 1 before class 0: precision 1/2 at its only hit, over R = 2.
    found = retrieval_scores(line(0, 2, 9, 1), np.array([0, 0, 0, 1]))
    # 0: no yes; 2: no yes; 9: yes no. The face of class 1 has no other and asks nothing.
    assert found['precision_at_1'] == pytest.approx(1 / 3)
    assert found['r_precision'] == pytest.approx(1 / 2)
    assert found['map_at_r'] == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize('block', [1, 3, 256])
def test_scores_match_loops_for_uneven_classes_and_any_block(block):
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(5), (1, 2, 5, 11, 21)))
    embeddings = rng.normal(size=(40, 4)) + 0.7 * np.eye(5)[labels, :4]
    found = retrieval_scores(embeddings, labels, block=block)
    np.testing.assert_allclose(list(found.values()), scores_by_loops(embeddings, labels))


def test_face_is_not_its_own_neighbour():
    found = retrieval_scores(line(0, 1, 2.1, 3.3), np.array([0, 1, 0, 1]))
    assert found['precision_at_1'] == 0.0


def test_collapsed_embedding_scores_at_chance_though_sorted_by_class():
    labels = np.repeat(np.arange(7), 20)
    found = retrieval_scores(np.zeros((140, 8), np.float32), labels)
    assert all(score < 0.3 for score in found.values())


def test_classes_of_one_face_each_score_zero():
    found = retrieval_scores(line(0, 1, 2), np.arange(3))
    assert found == {'precision_at_1': 0.0, 'r_precision': 0.0, 'map_at_r': 0.0}


def test_memory_stays_far_below_all_pairs():
    count = 4000
    embeddings = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    labels = np.arange(count) % 40
    tracemalloc.start()
    retrieval_scores(embeddings, labels, block=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * count * 4 / 4


def test_queries_search_the_gallery_alone_and_never_themselves():
    # Class 0 at 0, 1, 3, 6, class 1 at 2 and 4.5; 0 and 2 only ask, 3 and 6 are only found.
    points, labels = line(0, 1, 3, 6, 2, 4.5), np.array([0, 0, 0, 0, 1, 1])
    is_query = np.array([1, 1, 0, 0, 1, 1], bool)
    is_gallery = np.array([0, 1, 1, 1, 0, 1], bool)
    found = retrieval_scores(points, labels, is_query=is_query, is_gallery=is_gallery)
    # Gallery: 1, 3, 6 of class 0 and 4.5 of class 1.
    #   0 finds 1, 3, 4.5 (R = 3): yes yes no.   1 finds 3, 4.5 (R = 2): yes no.
    #   2 finds 1 or 3 (R = 1): no.   4.5 has no other of its class to find.
    assert found['precision_at_1'] == pytest.approx(2 / 3)
    assert found['r_precision'] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found['map_at_r'] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
