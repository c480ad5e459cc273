from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from small_model import NAMES, SLICES, faces, model_data

import mtdml_jax
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import load_pixels
from mtdml_jax.inference.model import Model
from mtdml_jax.models import forward

pytestmark = pytest.mark.usefixtures('resnet4')


@pytest.fixture(scope='module')
def shared(resnet4):
    """A model that no test changes."""
    return Model(model_data())


@pytest.fixture
def model(resnet4):
    return Model(model_data())


def expected_outputs(data, images, flip=False):
    """(unit slices [N, S, D], logits [N, S, C]) by the network itself."""
    pixels = np.stack([load_pixels(x, data.settings.preprocessing) for x in images])
    embedding, logits = data.network.apply(data.variables, pixels)
    slices = np.asarray(embedding).reshape(len(images), SLICES, -1)
    slices = slices / np.linalg.norm(slices, axis=2, keepdims=True)
    return slices, np.asarray(logits)


@pytest.mark.parametrize('count', [1, 2, 9, 70])
def test_probabilities_are_those_of_the_network_whatever_batches_are_filled_up_to(shared, count):
    images = faces(count)
    slices, logits = expected_outputs(shared._data, images)
    found = shared.predict(images)
    by_slice = softmax(logits, axis=2)
    np.testing.assert_allclose(found.slice_probabilities, by_slice, atol=1e-5)
    together = softmax(logits.mean(axis=1), axis=1)
    np.testing.assert_allclose(found.probabilities, together, atol=1e-5)
    np.testing.assert_array_equal(found.labels, together.argmax(axis=1))
    assert found.names == [NAMES[label] for label in found.labels]
    embeddings = slices.reshape(count, -1) / SLICES**0.5
    np.testing.assert_allclose(found.embeddings, embeddings, atol=1e-5)
    np.testing.assert_allclose(shared.embed(images), embeddings, atol=1e-5)


def test_large_model_whose_weights_are_no_constants_answers_the_same(shared, monkeypatch):
    monkeypatch.setattr(forward, 'MOST_CONSTANTS', 0)
    images = faces(2)
    np.testing.assert_allclose(Model(shared._data).embed(images), shared.embed(images), atol=1e-6)


def test_variables_are_those_of_the_file_and_not_the_folded_ones(shared):
    assert jax.tree.structure(shared.variables) == jax.tree.structure(shared._data.variables)
    jax.tree.map(np.testing.assert_array_equal, shared.variables, shared._data.variables)


def test_flip_averages_an_image_and_its_mirror_image():
    data = model_data(flip=True)
    images = faces(3)
    mirrored = [image[:, ::-1] for image in images]
    (slices, logits), (other, other_logits) = (
        expected_outputs(data, x) for x in (images, mirrored)
    )
    found = Model(data).predict(images)
    mean = (slices + other) / np.linalg.norm(slices + other, axis=2, keepdims=True)
    np.testing.assert_allclose(found.embeddings, mean.reshape(3, -1) / SLICES**0.5, atol=1e-5)
    together = softmax((logits + other_logits).mean(axis=1) / 2, axis=1)
    np.testing.assert_allclose(found.probabilities, together, atol=1e-5)


def test_one_image_is_a_list_of_one_and_an_array_of_images_is_many(shared):
    images = np.stack(faces(6)[::3])[..., None]
    two = shared.embed(images)
    assert two.shape == (2, 12)
    np.testing.assert_allclose(shared.embed(images[0]), two[:1], atol=1e-6)
    np.testing.assert_allclose(shared.embed(images[0, ..., 0]), two[:1], atol=1e-6)


def test_box_of_each_image_is_cut_out(shared):
    images, boxes = faces(2), [(1, 2, 9, 9), (4, 4, 12, 12)]
    cut = [images[0][2:11, 1:10], images[1][4:16, 4:16]]
    np.testing.assert_allclose(shared.embed(images, boxes=boxes), shared.embed(cut), atol=1e-6)


def test_iterator_is_read_no_further_than_a_batch_ahead(shared):
    images, read = faces(30), []

    def stream():
        for number, image in enumerate(images):
            read.append(number)
            yield image

    expected = shared.predict(images)
    found = shared.predict_stream(stream(), batch_size=4)
    assert read == []
    for row, one in enumerate(found):
        assert one.labels == expected.labels[row : row + 1]
        np.testing.assert_allclose(
            one.probabilities, expected.probabilities[row : row + 1], atol=1e-5
        )
        assert len(read) <= row + 8
    assert row == 29
    read.clear()
    next(shared.embed_stream(stream(), batch_size=1))
    assert read == [0]


def test_threads_get_what_one_thread_gets(shared):
    batches = [faces(5, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared.embed, batches))
    for embeddings, images in zip(found, batches, strict=True):
        np.testing.assert_array_equal(embeddings, shared.embed(images))


def test_centroid_is_the_nearest_mean_of_training_and_enrolled_faces(model):
    images = faces(12)
    centre = model._data.centres[0].copy()
    model.enroll(images[:5], ['sad', 'new', 'new', 'sad', 'other'])
    embeddings = model.embed(images)
    means = np.stack(
        [
            (4 * centre + embeddings[0] + embeddings[3]) / 6,
            (embeddings[1] + embeddings[2]) / 2,
            embeddings[4],
        ]
    )
    found = model.predict(images, by='centroid')
    assert found.class_names == ('sad', 'happy', 'new', 'other')
    # No face of 'happy' was trained on or enrolled.
    np.testing.assert_array_equal(found.probabilities[:, 1], 0)
    squares = np.sum((embeddings[:, None] - means) ** 2, axis=2)
    scale = float(model._data.variables['params']['scale'])
    expected = softmax(-scale * squares / 2, axis=1)
    np.testing.assert_allclose(found.probabilities[:, [0, 2, 3]], expected, atol=1e-5)
    assert found.names == [('sad', 'new', 'other')[i] for i in squares.argmin(axis=1)]
    slices, slice_means = (x.reshape(len(x), SLICES, -1) * SLICES**0.5 for x in (embeddings, means))
    squares = np.sum((slices[:, :, None] - slice_means.transpose(1, 0, 2)) ** 2, axis=3)
    # A slice is compared with its part of the mean.
    terms = -scale * squares / 2
    np.testing.assert_allclose(
        found.slice_probabilities[..., [0, 2, 3]], softmax(terms, axis=2), atol=1e-5
    )


def test_knn_counts_the_votes_of_the_nearest_enrolled_faces(model):
    images, labels = faces(9), ['new', 'sad', 'new', 'happy', 'sad', 'new', 'sad', 'sad', 'happy']
    model.enroll(images, labels)
    queries = faces(4, seed=1)
    found = model.predict(queries, by='knn', k=3)
    embeddings, gallery = model.embed(queries), model.gallery.embeddings
    for row, query in enumerate(embeddings):
        nearest = np.argsort(np.linalg.norm(gallery - query, axis=1))[:3]
        votes = [sum(labels[i] == name for i in nearest) / 3 for name in ('sad', 'happy', 'new')]
        np.testing.assert_allclose(found.probabilities[row], votes, atol=1e-6)
        for s in range(SLICES):
            part = slice(4 * s, 4 * s + 4)
            distances = np.linalg.norm(gallery[:, part] - query[part], axis=1)
            votes = [labels[i] for i in np.argsort(distances)[:3]]
            share = [votes.count(name) / 3 for name in ('sad', 'happy', 'new')]
            np.testing.assert_allclose(found.slice_probabilities[row, s], share, atol=1e-6)


def test_nearest_faces_come_in_order_with_their_names(model):
    images = faces(6)
    model.enroll(images[:2], 'happy', names=['Ann', 'Bea'])
    model.enroll(images[2:], ['a', 'b', 'c', 'd'])
    found = model.nearest([images[1], images[4]], k=4)
    assert found.rows[:, 0].tolist() == [1, 4]
    assert found.labels[0][0] == 'happy'
    assert found.names[0][0] == 'Bea'
    assert found.labels[1][0] == 'c'
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=1e-6)
    embeddings = model.embed(images)
    expected = np.sort(np.linalg.norm(embeddings - embeddings[4], axis=1))[:4]
    np.testing.assert_allclose(found.distances[1], expected, atol=1e-6)
    assert model.nearest(images[0], k=99).rows.shape == (1, 6)


def test_saved_model_keeps_what_was_enrolled(model, tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(faces(1)[0]).save(path)
    model.enroll(path, 'new')
    model.save(tmp_path / 'm.safetensors')
    loaded = mtdml_jax.load(str(tmp_path / 'm.safetensors'))
    assert loaded.gallery.names == (str(path),)
    images = faces(3, seed=2)
    for by in ('softmax', 'centroid', 'knn'):
        before, after = model.predict(images, by=by), loaded.predict(images, by=by)
        assert after.class_names == before.class_names
        np.testing.assert_array_equal(after.probabilities, before.probabilities)
    loaded.enroll(images, 'other')
    assert len(loaded.gallery.labels) == 4
    assert len(model.gallery.labels) == 1


def test_model_without_classifiers_goes_by_centroids():
    model = Model(model_data(has_head=False))
    images = faces(2)
    found, expected = model.predict(images), model.predict(images, by='centroid')
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    with pytest.raises(UserError, match="by='softmax': this model has no classifiers"):
        model.predict(images, by='softmax')


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda m: m.predict([]), 'expected at least one image'),
        (
            lambda m: m.predict(faces(2), boxes=[(0, 0, 1, 1)]),
            'expected 2, one for each image, found 1',
        ),
        (lambda m: m.predict(faces(1), by='svm'), "by: expected one of .*, found 'svm'"),
        (lambda m: m.predict(faces(1), by='knn'), 'no face is enrolled'),
        (lambda m: m.predict(faces(1), batch_size=0), 'batch_size: expected at least 1'),
        (lambda m: m.nearest(faces(1)), 'no face is enrolled'),
        (lambda m: m.enroll(faces(2), ['a']), 'labels: expected 2 strings'),
        (lambda m: m.enroll(faces(1), [3]), 'labels: expected 1 strings'),
        (lambda m: m.enroll(faces(1), 'a', names=[]), 'names: expected 1 strings'),
        (lambda m: m.predict(iter(faces(1))), 'found an iterator; predict_stream'),
        (lambda m: m.embed({'a.png'}), 'expected ordered images, found a set'),
        (lambda m: m.embed(['a.png', 'b.png']), 'a.png: it cannot be read'),
        (lambda m: m.save('/nowhere/m.safetensors'), 'it cannot be written'),
        (lambda m: m.save('m.safetensors', dtype='int8'), "of float32, .*, found 'int8'"),
    ],
)
def test_wrong_argument_is_refused(shared, call, message):
    with pytest.raises(UserError, match=message):
        call(shared)
    assert shared.gallery.labels == ()


def test_folder_that_is_no_evaluated_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'no model.safetensors .* evaluate --workdir='):
        mtdml_jax.load(tmp_path)
    for fold in ('fold_00', 'fold_01'):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / 'model.safetensors').touch()
    with pytest.raises(UserError, match='cross-validation .* name one of fold_00, fold_01 in it'):
        mtdml_jax.load(tmp_path)
