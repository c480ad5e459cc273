import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_model import NAMES, SLICES, model_data

from mtdml_jax.__main__ import main
from mtdml_jax.demo import page, page_html
from mtdml_jax.demo.page_session import (
    Session,
    choose_model,
    describe_models,
    enroll,
    nearest_faces,
    read_faces,
    start_session,
)
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.pixels import Preprocessing
from mtdml_jax.inference import find
from mtdml_jax.inference.answers import Gallery, Predictions
from mtdml_jax.inference.model import Model
from mtdml_jax.inference.verdicts import Verdict, slice_verdicts
from mtdml_jax.models.model_file import write_model

pytestmark = pytest.mark.usefixtures('resnet4')

SMALL, LARGE = (2, 3, 40, 30), (60, 10, 50, 70)


@pytest.fixture(scope='module')
def model(resnet4):
    return Model(model_data())


def encode(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', **options)
    return file.getvalue()


@pytest.fixture(scope='module')
def picture():
    return encode(np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8))


def read(model, detect, content):
    """Returns the session of a visitor who gives a picture to a page with one model."""
    models = {'small': model}
    return read_faces(models, detect, content, start_session(models))


@pytest.fixture(scope='module')
def session(model, picture):
    return read(model, lambda image: [SMALL, LARGE], picture)


def test_faces_come_largest_first_with_what_the_model_says_of_them(model, session, picture):
    assert session.boxes == (LARGE, SMALL)
    assert session.picture.size == (120, 100)
    expected = model.predict([picture] * 2, boxes=[LARGE, SMALL])
    np.testing.assert_allclose(session.predictions.probabilities, expected.probabilities, atol=1e-5)


def test_large_picture_is_shown_small_with_boxes_to_scale_but_faces_are_cut_from_the_large(model):
    pixels = np.random.default_rng(1).integers(0, 256, (4000, 5120), np.uint8)
    content = encode(pixels, compress_level=0)
    box = (1000, 2000, 64, 64)
    found = read(model, lambda image: [box], content)
    assert found.picture.size == (1280, 1000)
    assert found.boxes == ((250, 500, 16, 16),)
    expected = model.predict(pixels[2000:2064, 1000:1064])
    np.testing.assert_allclose(found.predictions.probabilities, expected.probabilities, atol=1e-5)


def test_picture_is_upright_for_the_detector_and_on_the_page(model):
    exif = Image.Exif()
    exif[274] = 6
    sizes = []
    content = encode(np.zeros((100, 120), np.uint8), exif=exif)
    found = read(model, lambda image: sizes.append(image.size) or [], content)
    assert sizes == [(100, 120)]
    assert found.picture.size == (100, 120)


def test_without_a_detector_the_picture_is_the_face(model, picture):
    found = read(model, None, picture)
    assert found.boxes == ((0, 0, 120, 100),)
    expected = model.predict(picture)
    np.testing.assert_allclose(found.predictions.probabilities, expected.probabilities, atol=1e-5)


def test_picture_without_a_face_has_no_predictions(model, picture):
    found = read(model, lambda image: [], picture)
    assert found.predictions is None
    assert found.picture.size == (120, 100)


def test_of_many_faces_the_24_largest_are_kept(model, picture):
    boxes = [(0, 0, 20 + i, 20) for i in range(30)]
    found = read(model, lambda image: boxes, picture)
    assert [box[2] for box in found.boxes] == list(range(49, 25, -1))
    assert len(found.predictions.labels) == 24


def test_file_that_is_no_picture_is_refused(model, picture):
    for content in (b'', b'no picture', picture[:-1000]):
        with pytest.raises(UserError, match='^image: it'):
            read(model, None, content)


def test_enrolled_face_is_found_again_and_the_model_and_other_sessions_do_not_know_it(
    model, session
):
    first = enroll(session, 1, ' new ', ' Ann ')
    both = enroll(first, 0, 'sad', '')
    near, far = nearest_faces(both, 1)
    assert near[:2] == ('new', 'Ann')
    assert far[:2] == ('sad', '')
    embeddings = session.predictions.embeddings
    np.testing.assert_allclose(near[2], 0, atol=1e-6)
    np.testing.assert_allclose(far[2], np.linalg.norm(embeddings[0] - embeddings[1]), rtol=1e-6)
    assert nearest_faces(both, 0)[0][:2] == ('sad', '')
    assert nearest_faces(session, 1) == []
    assert len(first.gallery.labels) == 1
    assert model.gallery.labels == ()


def test_another_model_reads_the_same_faces_and_knows_only_those_that_were_enrolled_with_it(
    model, picture
):
    """The other model sees colours at another size, and has an enrolled face from the beginning."""
    other = Model(model_data(preprocessing=Preprocessing(20, 3, False, 0.1, (0.5,), (0.25,))))
    other.enroll(np.zeros((20, 20), np.uint8), 'happy')
    models, boxes = {'small': model, 'other': other}, [LARGE, SMALL]
    first = read_faces(models, lambda image: boxes, picture, start_session(models))
    assert first.chosen == 'small'
    first = enroll(first, 0, 'new', 'Ann')
    second = choose_model(models, first, 'other')
    expected = other.predict([picture] * 2, boxes=boxes)
    np.testing.assert_allclose(second.predictions.probabilities, expected.probabilities, atol=1e-5)
    assert [x[0] for x in nearest_faces(second, 0)] == ['happy']
    back = choose_model(models, enroll(second, 1, 'sad', ''), 'small')
    np.testing.assert_array_equal(back.predictions.embeddings, first.predictions.embeddings)
    assert [x[:2] for x in nearest_faces(back, 0)] == [('new', 'Ann')]
    # The next picture is read with the model that is chosen.
    assert read_faces(models, None, picture, second).chosen == 'other'


def test_model_may_be_chosen_before_there_is_a_picture(model):
    models = {'small': model, 'other': model}
    session = choose_model(models, start_session(models), 'other')
    assert (session.chosen, session.picture, session.captions) == ('other', None, [])


def test_choice_says_how_often_a_model_was_right(model):
    measured = {'num_examples': 3589, 'classifiers': {'softmax': {'accuracy': 0.66815}}}
    other = SimpleNamespace(settings=model.settings._replace(measured=measured))
    assert describe_models({'a': model, 'b': other}) == [
        ('a', 'a'),
        ('b: right for 66.8 % of 3,589 faces', 'b'),
    ]


def test_five_nearest_faces_are_found(model, session):
    for _ in range(7):
        session = enroll(session, 0, 'sad', '')
    assert len(nearest_faces(session, 0)) == 5


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (('  ', 'Ann'), 'needs the name of an expression'),
        (('x' * 61, ''), 'at most 60 letters'),
        (('sad', 'x' * 61), 'at most 60 letters'),
    ],
)
def test_names_that_cannot_be_are_refused(session, names, message):
    with pytest.raises(UserError, match=message):
        enroll(session, 0, *names)


def unit(*vector):
    return np.array(vector) / np.linalg.norm(vector)


@pytest.mark.parametrize('distance', ['euclidean', 'squared_euclidean'])
def test_slice_is_judged_by_the_distances_of_unit_slices(distance):
    """Centre of the trained class, nearest enrolled face of the other; 3 slices of 4."""
    model = Model(model_data(distance=distance))
    rng = np.random.default_rng(2)
    face, *enrolled = rng.normal(size=(4, 12)).astype(np.float32)
    gallery = Gallery(np.stack(enrolled), ('happy', 'new', 'happy'), ('', '', ''))
    shares = np.array([[[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]]], np.float32)
    predictions = Predictions(NAMES, np.array([0]), shares.mean(axis=1), shares, face[None])
    found = slice_verdicts(model, gallery, predictions, 0)
    assert len(found) == SLICES
    power = 2 if distance == 'squared_euclidean' else 1
    for s, verdict in enumerate(found):
        part = slice(4 * s, 4 * s + 4)
        to_sad, *to_enrolled = (
            np.linalg.norm(unit(*face[part]) - unit(*x[part])) ** power
            for x in (model._data.centres[0], *enrolled)
        )
        to_happy = min(to_enrolled[0], to_enrolled[2])
        own, other = (to_happy, to_sad) if s == 1 else (to_sad, to_happy)
        assert verdict[1] == ('happy' if s == 1 else 'sad')
        np.testing.assert_allclose(
            [verdict.threshold, verdict.probability, verdict.distance, verdict.rival_distance],
            [(0.2, 0.5, 0.8)[s], shares[0, s].max(), own, other],
            rtol=1e-5,
        )
        assert verdict.rival == ('sad' if s == 1 else 'happy')


def test_class_without_a_face_is_infinitely_far(model, session):
    """Of 'happy' no face was trained on, and none is enrolled."""
    for verdict in slice_verdicts(model, session.gallery, session.predictions, 0):
        known = verdict.label == 'sad'
        assert np.isfinite(verdict.distance) == known
        assert np.isfinite(verdict.rival_distance) != known


@pytest.mark.parametrize(
    ('rival_distance', 'keeps', 'lead'),
    [(1.0, True, '✓ 0.50'), (0.9, False, '✗ 0.40'), (0.25, False, '✗ −0.25')],
)
def test_slice_is_sure_where_the_next_class_is_farther_by_the_threshold(
    rival_distance, keeps, lead
):
    verdict = Verdict(0.5, 'sad', 0.8, 0.5, 'happy', rival_distance)
    assert verdict.keeps_threshold == keeps
    html = page_html.show_verdicts([verdict], 'euclidean')
    assert lead in html
    assert f'Slices: {int(keeps)} of 1' in html
    # Of the line from 0 to 2: the bar begins at the distance and is as long as the threshold.
    assert 'class="reach" style="left:25.0%;width:25.0%"' in html
    assert f'class="rival" style="left:{50 * rival_distance:.1f}%"' in html


def test_slice_without_known_distances_says_so():
    html = page_html.show_verdicts([Verdict(0.5, 'sad', 0.8, np.inf, 'happy', np.inf)], 'euclidean')
    assert 'nothing is known of it' in html
    assert 'inf' not in html
    assert 'nan' not in html


def test_bar_ends_where_the_line_ends():
    html = page_html.show_verdicts(
        [Verdict(2, 'sad', 0.8, 3, 'happy', np.inf)], 'squared_euclidean'
    )
    assert 'left:75.0%;width:25.0%' in html


def test_classes_stand_in_the_order_of_their_probabilities():
    shares = np.array([[0.2, 0.8]], np.float32)
    html = page_html.show_probabilities(Predictions(NAMES, [1], shares, shares, shares), 0)
    assert html.index('happy') < html.index('80 %') < html.index('sad') < html.index('20 %')


def test_names_are_text_and_never_html():
    name = '<img src=x onerror=alert(1)>"\''
    shares = np.array([[1.0]], np.float32)
    settings = model_data().settings._replace(class_names=(name,))
    for html in (
        page_html.show_header(settings),
        page_html.show_message(name),
        page_html.show_picture(Image.new('RGB', (9, 9)), [name]),
        page_html.show_probabilities(Predictions((name,), [0], shares, shares, shares), 0),
        page_html.show_nearest([(name, name, 0.5)]),
        page_html.show_verdicts([Verdict(0.5, name, 0.8, 0.5, name, 1.0)], 'euclidean'),
    ):
        assert name not in html
        assert '&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;' in html


def test_upload_is_deleted_with_its_folder_when_it_is_read(tmp_path):
    path = tmp_path / 'uploads' / '1f' / 'a.png'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'content')
    assert page._take({'path': str(path)}) == b'content'
    assert list((tmp_path / 'uploads').iterdir()) == []
    with pytest.raises(UserError, match='it is gone'):
        page._take({'path': str(path)})


def test_captions_number_faces_only_if_there_are_several(session):
    name = session.predictions.names[0]
    share = f'{session.predictions.probabilities[0].max():.0%}'[:-1]
    assert session.captions[0] == f'1 {name} {share} %'
    one = session._replace(boxes=session.boxes[:1])
    assert one.captions[0] == f'{name} {share} %'
    assert Session(session.chosen, session.galleries).captions == []


@pytest.mark.parametrize(
    ('arguments', 'offered'),
    [([], ['better', 'good', 'unknown']), (['--model=good'], ['good'])],
)
def test_command_offers_the_models_of_the_package_the_best_first_or_those_that_are_named(
    model, tmp_path, monkeypatch, arguments, offered
):
    scores = {'good': 0.5, 'better': 0.75, 'unknown': None}
    for name, accuracy in scores.items():
        measured = {'classifiers': {'softmax': {'accuracy': accuracy}}} if accuracy else {}
        write_model(tmp_path / f'{name}.safetensors', model_data(measured=measured))
    monkeypatch.setattr(find, 'SHIPPED', tmp_path)
    seen = []
    monkeypatch.setattr(page, 'serve', lambda models, *_: seen.extend(models))
    assert main(['demo', *arguments]) == 0
    assert seen == offered


def test_missing_gradio_is_named_with_what_installs_it(model, monkeypatch):
    monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', '')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match=r"needs Gradio: pip install 'mtdml_jax\[demo\]'"):
        page.make_page({'small': model})
