import numpy as np
import pytest
from scipy.special import softmax
from small_model import faces, model_data

import mtdml_jax
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.model import Model
from mtdml_jax.models.choose_slices import choose_slices, take_slices

pytestmark = pytest.mark.usefixtures('resnet4')


@pytest.mark.parametrize('flip', [False, True])
def test_slices_that_are_kept_say_what_they_said(flip):
    data = model_data(flip=flip)
    whole = Model(data)
    whole.enroll(faces(4, seed=1), ['sad', 'new', 'new', 'sad'])
    part = Model(take_slices(_with_gallery(data, whole), [2, 0]))
    images = faces(5)
    before, after = whole.predict(images), part.predict(images)
    np.testing.assert_allclose(
        after.slice_probabilities, before.slice_probabilities[:, [2, 0]], atol=1e-5
    )
    slices = before.embeddings.reshape(5, 3, 4)[:, [2, 0]]
    expected = slices / np.linalg.norm(slices[:, :1], axis=2, keepdims=True) / 2**0.5
    np.testing.assert_allclose(after.embeddings, expected.reshape(5, 8), atol=1e-5)
    assert part.settings.thresholds == (0.8, 0.2)
    for by in ('centroid', 'knn'):
        before, after = whole.predict(images, by=by), part.predict(images, by=by)
        np.testing.assert_allclose(
            after.slice_probabilities, before.slice_probabilities[:, [2, 0]], atol=1e-5
        )


def _with_gallery(data, model):
    gallery = model.gallery
    settings = data.settings._replace(gallery_labels=gallery.labels, gallery_names=gallery.names)
    return data._replace(settings=settings, gallery=gallery.embeddings)


def test_model_of_fewer_slices_is_saved_and_loaded(tmp_path):
    part = Model(take_slices(model_data(), [1]))
    part.save(tmp_path / 'm.safetensors')
    loaded = mtdml_jax.load(tmp_path / 'm.safetensors')
    np.testing.assert_array_equal(loaded.embed(faces(2)), part.embed(faces(2)))


def test_greedy_choice_takes_the_slice_that_helps_those_chosen_before():
    # Slice 1 is right on rows 0 to 3; slices 0 and 2 alone on 3 of them, but 2 is surely right on the
    # rows 4 and 5, where slice 1 is nearly undecided.
    labels = np.array([0, 0, 1, 1, 0, 1])
    right = np.where(labels == 0, 1, -1)
    margins = np.array(
        [
            [2, 2, 2, -1, -2, -2],
            [2, 2, 2, 2, -1, -1],
            [1, 1, -1, 1, 3, 3],
        ]
    )
    margins[2, 2] = -1
    scores = np.stack([margins * right, -margins * right], axis=-1).transpose(1, 0, 2)
    assert choose_slices(scores, labels, 1) == [2]  # 5 of 6.
    assert choose_slices(scores, labels, 2) == [1, 2]  # All; with slice 0 only 5.
    assert choose_slices(scores, labels, 3) == [0, 1, 2]


def test_of_equally_accurate_slices_the_one_surer_of_the_truth_is_chosen():
    labels = np.array([0, 1])
    scores = np.array([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    assert softmax(scores, axis=2)[0, 1, 0] > softmax(scores, axis=2)[0, 0, 0]
    assert choose_slices(scores, labels, 1) == [1]


@pytest.mark.parametrize('chosen', [[], [0, 0], [3], [-1]])
def test_slices_that_the_model_does_not_have_are_refused(chosen):
    with pytest.raises(UserError, match='expected some of 0 to 2, each once, found'):
        take_slices(model_data(), chosen)


@pytest.mark.parametrize('count', [0, 4])
def test_more_slices_than_there_are_cannot_be_chosen(count):
    with pytest.raises(UserError, match=f'expected 1 to 3 of them, found {count}'):
        choose_slices(np.zeros((2, 3, 2)), np.zeros(2, int), count)
