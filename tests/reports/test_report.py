"""The report: self-contained, escaped, complete, and patient with missing pieces."""

import io
import json
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mtdml_jax.reports import figures
from mtdml_jax.reports.report import write_report
from mtdml_jax.scoring.classify import classification_scores, predict_classes

CLASS_NAMES = ['<b>angry</b>', 'calm & $x^$', '愉快 "glad"']
SECTIONS = {'run', 'results', 'training', 'classes', 'slices', 'mistakes', 'config'}
VOID = {'meta', 'img', 'br', 'hr'}


class Faces(NamedTuple):
    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


class Page(HTMLParser):
    """Ids, tags, attributes and text of a page; refuses tags that are closed out of turn."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.ids, self.sources, self.text, self.classes = [], set(), [], '', []
        self._open = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids.add(attrs.get('id'))
        self.classes += (attrs.get('class') or '').split()
        self.sources += [value for key, value in attrs.items() if key in ('src', 'href', 'srcset')]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ['style']:
            self.text += data


def encode(seed, size=(8, 8), kind='PNG'):
    pixels = np.random.default_rng(seed).integers(0, 255, size, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def random_faces(count, seed):
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    embeddings = rng.normal(size=(count, 4)).astype(np.float32)
    embeddings[:, :3] += 2 * np.eye(3)[labels]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Faces(embeddings, 4 * embeddings[:, :3], labels)


def inputs(count=30, num_slices=2, **changed):
    """Arguments of write_report for a small run; `changed` replaces some of them."""
    queries, gallery = random_faces(count, 0), random_faces(45, 1)
    queries = changed.pop('queries', queries)
    predictions = predict_classes(gallery, queries, num_neighbors=5)
    slices = [
        {
            'threshold': 0.4 * (s + 1),
            'knn_accuracy': 0.5,
            'knn_accuracy_first': 0.6,
            'active_share': 1.0,
            'positive_distance': 0.8,
            'negative_distance': 0.3,
            'spread': 0.7,
            'collapse': 0.4,
        }
        for s in range(num_slices)
    ]
    evaluation = {
        'split': 'test',
        'gallery_split': 'train',
        'num_examples': count,
        'class_names': CLASS_NAMES,
        'classifiers': {
            name: classification_scores(queries.labels, predicted, 3)
            for name, predicted in predictions.items()
        },
        'retrieval': {'precision_at_1': 0.7, 'r_precision': 0.5, 'map_at_r': 0.4},
        'slices': slices,
        'run': {'command': 'train --workdir=<here>', 'workdir': 'runs/a<i>', 'seconds': 3725.2},
    }
    arguments = {
        'config': {'seed': 3, 'data': {'name': '<fer>', 'dir': '</pre>'}},
        'history': [metrics(step, num_slices) for step in range(10, 60, 10)],
        'evaluation': evaluation | changed.pop('evaluation', {}),
        'queries': queries,
        'gallery': gallery,
        'query_image': encode,
        'gallery_image': lambda row: encode(100 + row),
        'predictions': predictions,
        'query_names': [f'<script>{i}.png' for i in range(count)],
    }
    return arguments | changed


def metrics(step, num_slices):
    line = {'step': step, 'train/loss': 1.0, 'train/metric_loss': 0.5, 'train/accuracy': 0.6}
    line |= {'train/slice_active_share': [1.0] * num_slices, 'validation/knn_accuracy': 0.5}
    return line | {'train/slice_negative_distance': [0.3] * num_slices}


def report(folder, **changed):
    path = folder / 'report.html'
    write_report(path, **inputs(**changed))
    return path.read_text('utf-8')


@pytest.fixture(scope='module')
def content(tmp_path_factory):
    return report(tmp_path_factory.mktemp('report'))


def test_report_needs_nothing_from_outside(content):
    page = Page(content)
    assert all(source.startswith('data:image/') for source in page.sources)
    assert not {'script', 'link', 'iframe', 'object'} & set(page.tags)
    assert not any(word in content for word in ('http:', 'https:', '@import', 'url('))


def test_report_has_all_sections_and_figures(content):
    page = Page(content)
    assert page.ids >= SECTIONS
    assert page.tags.count('figure') == 10
    assert 'Nothing to draw' not in page.text


def test_verdict_names_classifier_accuracy_split_and_size(content):
    classifiers = inputs()['evaluation']['classifiers']
    best = max(scores['accuracy'] for scores in classifiers.values())
    start = Page(content).text.split('What was run')[0]
    assert f'{100 * best:.1f} % of the 30 images of split test (95 % interval' in start
    assert 'most frequent class would be right on 33.3 %' in start


def test_names_from_outside_are_text_and_never_tags(content):
    text = Page(content).text
    for name in (*CLASS_NAMES, 'train --workdir=<here>', 'a<i>', '<fer>', '</pre>'):
        assert name in text
    assert '<script>' in text


def test_confusion_figure_has_true_classes_as_rows_and_names_as_they_are(monkeypatch):
    confusion = np.array([[6, 2, 0], [1, 2, 1], [0, 0, 0]])
    assert figures.confusion_figure(confusion, CLASS_NAMES).startswith('data:image/svg+xml;base64,')
    figure = Figure()
    axes = figure.subplots()
    monkeypatch.setattr(figures, '_draw', lambda paint, *_: paint(figure, axes))
    figures.confusion_figure(confusion, [*CLASS_NAMES[:2], 'x' * 80])
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[:2] == CLASS_NAMES[:2]
    assert len(names[2]) < 80
    assert names == [text.get_text() for text in axes.get_xticklabels()]
    assert axes.get_ylabel() == 'True class'
    cells = [text.get_text() for text in axes.texts if text.get_position() in [(1, 0), (1, 0.08)]]
    # Of 8 faces of the first class 2 are taken for the second.
    assert cells == ['25', '2']


def test_long_training_time_is_shown_in_hours(content):
    assert '1:02:05' in Page(content).text


def test_mistakes_are_shown_by_confidence_beside_four_neighbours(content):
    arguments = inputs()
    queries = arguments['queries']
    wrong = np.flatnonzero(np.argmax(queries.logits, axis=1) != queries.labels)
    gap = np.exp(queries.logits[wrong].astype(float))
    order = wrong[np.argsort(-gap.max(axis=1) / gap.sum(axis=1))][:12]
    cards = content.split('class="card"')[1:]
    assert len(cards) == len(order) > 1
    for card, row in zip(cards, order, strict=True):
        assert f'&lt;script&gt;{row}.png' in card
        assert card.count('<img') == 5


def test_same_input_gives_the_same_file(content, tmp_path):
    assert report(tmp_path) == content


def test_report_without_history_logits_run_or_config_still_stands(tmp_path):
    faces = random_faces(30, 0)._replace(logits=np.zeros((30, 0), np.float32))
    content = report(tmp_path, queries=faces, evaluation={'run': {}}, config={}, history=[])
    page = Page(content)
    assert page.text.count('Nothing to draw') == 4
    assert page.ids >= SECTIONS
    assert 'Softmax head' not in page.text
    assert 'share of neighbours' in page.text


def test_collapsed_slices_and_a_gallery_of_queries_raise_alarms(tmp_path):
    collapsed = random_faces(30, 0)._replace(embeddings=np.full((30, 4), 0.5, np.float32))
    slices = [inputs()['evaluation']['slices'][0] | {'collapse': 0.97}]
    changed = {'slices': slices, 'gallery_split': 'test'}
    page = Page(report(tmp_path, queries=collapsed, evaluation=changed, history=[]))
    assert page.classes.count('alarm') == 2
    assert '1 of 1 slices have collapsed' in page.text
    assert page.text.count('Nothing to draw') == 5


def test_train_part_that_is_cut_from_a_split_is_the_gallery_too(tmp_path):
    changed = {'split': 'train', 'gallery_split': 'train[:33%]'}
    assert 'Gallery and queries are the same split' in report(tmp_path, evaluation=changed)


def test_sound_run_raises_no_alarm(content):
    assert 'alarm' not in Page(content).classes


def test_thresholds_that_never_act_are_called_so(content):
    assert 'no slice is below 1.00' in Page(content).text


def test_classes_that_were_not_trained_on_are_only_retrieved(tmp_path):
    slices = [
        {'threshold': 0.4, 'active_share': 1.0, 'spread': 0.7, 'collapse': 0.4}
        | dict.fromkeys(figures.DISTANCES, 0.5)
    ]
    changed = {'classifiers': {}, 'slices': slices}
    page = Page(report(tmp_path, evaluation=changed, predictions={}, history=[]))
    assert 'The nearest image is of the same class for 70.0 % of its 30 images' in page.text
    assert page.ids >= SECTIONS - {'mistakes'}
    assert 'mistakes' not in page.ids
    for absent in ('classifier', 'Confusion', 'kNN', 'taken for', '$'):
        assert absent not in page.text


def test_config_is_shown_in_full(content):
    shown = Page(content).text.split('Every key of this run')[1]
    assert json.loads(shown) == inputs()['config']


@pytest.mark.parametrize(('kind', 'size'), [('JPEG', (300, 400)), ('BMP', (8, 8))])
def test_large_or_unusual_images_are_converted(kind, size):
    uri, side = figures.image_uri(encode(0, size, kind))
    assert uri.startswith('data:image/png;')
    assert side == min(max(size), 192)


def test_small_images_are_embedded_byte_for_byte():
    uri, side = figures.image_uri(encode(0))
    assert figures._data_uri('png', encode(0)) == uri
    assert side == 8


def test_curves_of_a_long_run_stay_small():
    history = [{'step': step, 'train/loss': 1 / (1 + step)} for step in range(20000)]
    assert len(figures.curves_figure(history, figures.LOSSES, 'Loss')) < 60_000


def test_map_of_many_classes_is_drawn_without_a_legend():
    faces = np.random.default_rng(0).normal(size=(60, 4))
    names = [f'class {i}' for i in range(30)]
    assert figures.tsne_figure(faces, np.arange(60) % 30, names, 50, seed=0)
    assert figures.tsne_figure(faces[:9], np.arange(9), names, 50, seed=0) is None
