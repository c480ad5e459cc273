import numpy as np
import pytest
import tensorflow_datasets as tfds
from face_trees import (
    FERPLUS_HEADER,
    data_config,
    read_records,
    warnings_of,
    write_corrupt,
    write_image,
    write_votes,
)
from small_data import write_csv

from mtdml_jax.data.prepare import prepare
from mtdml_jax.data.sets.ferplus import NAMES, Ferplus, choose_label
from mtdml_jax.host.errors import UserError

# neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF
HAPPY = (0, 10, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'FERPlus'


@pytest.mark.parametrize(
    ('votes', 'majority', 'argmax'),
    [
        (HAPPY, 'happiness', 'happiness'),
        # 5 of 10 votes are no majority. They are one among the 7 votes that remain without single votes.
        ((5, 0, 1, 2, 1, 1, 0, 0, 0, 0), 'neutral', 'neutral'),
        # There are no single votes. Exactly half of the votes is no majority.
        ((5, 0, 0, 3, 0, 0, 0, 0, 2, 0), None, 'neutral'),
        # On a tie, argmax takes the first in the order of the classes.
        ((0, 5, 0, 0, 5, 0, 0, 0, 0, 0), None, 'happiness'),
        ((0, 0, 0, 0, 0, 3, 0, 3, 2, 2), None, 'disgust'),
        # Most votes are for 'unknown', although 3 of the 4 votes for an expression are neutral.
        ((3, 1, 0, 0, 0, 0, 0, 0, 6, 0), None, 'neutral'),
        ((0, 0, 0, 0, 0, 0, 0, 2, 0, 8), None, 'contempt'),
        # 4 of 6 votes remain in favour, because single votes for 'unknown' and 'NF' are dropped too.
        ((4, 0, 0, 0, 0, 0, 2, 0, 1, 1), 'neutral', 'neutral'),
        # There are only single votes.
        ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None, 'neutral'),
        ((0, 0, 0, 0, 0, 0, 0, 1, 0, 0), None, 'contempt'),
        ((0, 0, 0, 0, 0, 0, 0, 0, 6, 4), None, None),
        ((0, 0, 0, 0, 0, 0, 0, 0, 0, 0), None, None),
    ],
)
def test_votes_choose_the_label_as_the_variant_says(votes, majority, argmax):
    for variant, expected in (('majority', majority), ('argmax', argmax), ('soft', argmax)):
        label = choose_label(np.array(votes), variant)
        assert (None if label is None else NAMES[label]) == expected


ROWS = [
    ('Training', 'fer0000000.png', HAPPY),
    ('Training', '', (0, 0, 0, 0, 0, 0, 0, 0, 0, 10)),
    ('Training', 'fer0000002.png', (5, 0, 0, 3, 0, 0, 0, 0, 2, 0)),
    ('PublicTest', 'fer0000003.png', (0, 0, 0, 0, 0, 0, 0, 9, 1, 0)),
    ('PrivateTest', 'fer0000004.png', (0, 0, 0, 0, 0, 0, 0, 0, 6, 4)),
    ('PrivateTest', 'fer0000005.png', (0, 0, 3, 0, 0, 0, 7, 0, 0, 0)),
]


@pytest.mark.parametrize('variant', ['majority', 'argmax'])
def test_votes_go_row_by_row_with_the_faces_of_fer2013(folder, variant):
    write_votes(folder, ROWS)
    train = {'fer0000000.png': ('happiness', '')}
    if variant == 'argmax':
        train['fer0000002.png'] = ('neutral', '')
    assert read_records('ferplus', folder, variant=variant) == {
        'train': train,
        'validation': {'fer0000003.png': ('contempt', '')},
        'test': {'fer0000005.png': ('fear', '')},
    }
    builder = prepare(data_config('ferplus', folder, variant=variant))
    (face,) = tfds.as_numpy(builder.as_dataset('test'))
    np.testing.assert_array_equal(face['image'], np.full((48, 48, 1), 5))
    assert 'votes' not in face


def test_soft_votes_are_shares_of_the_expressions(folder):
    write_votes(folder, ROWS)
    builder = prepare(data_config('ferplus', folder, variant='soft'))
    found = {
        example['file_name'].decode(): example
        for example in tfds.as_numpy(builder.as_dataset('train'))
    }
    assert found.keys() == {'fer0000000.png', 'fer0000002.png'}
    votes = found['fer0000002.png']['votes']
    assert votes.dtype == np.float32
    # 8 votes are for an expression, 5 and 3; the other 2 are for 'unknown'.
    np.testing.assert_array_equal(votes, [0.625, 0, 0, 0.375, 0, 0, 0, 0])


def test_folders_with_lists_are_read(folder, caplog):
    lists = {
        'FER2013Train': [('fer0.png', HAPPY), ('fer1.png', HAPPY), ('fer2.png', HAPPY)],
        'FER2013Test': [('fer3.png', (0, 0, 0, 0, 0, 8, 0, 0, 2, 0))],
    }
    for name, rows in lists.items():
        lines = [','.join(map(str, (image, '"(0, 0, 48, 48)"', *votes))) for image, votes in rows]
        write_image(folder / name / rows[0][0], len(name), mode='L', size=(48, 48))
        (folder / name / 'label.csv').write_text('\n'.join(lines) + '\n')
    write_corrupt(folder / 'FER2013Train' / 'fer1.png')
    assert read_records('ferplus', folder) == {
        'train': {'FER2013Train/fer0.png': ('happiness', '')},
        'test': {'FER2013Test/fer3.png': ('disgust', '')},
    }
    classes, test, unusable, train = warnings_of(caplog)
    assert classes.startswith('ferplus: no images of the classes neutral, surprise, sadness,')
    assert unusable.endswith(
        '2 of 3 images are missing or cannot be decoded: FER2013Train/fer1.png, FER2013Train/fer2.png'
    )
    assert train == 'ferplus, split train: expected 25,060 faces as published, found 1'
    assert test == 'ferplus, split test: expected 3,153 faces as published, found 1'


def test_fer2013_without_private_rows_lacks_the_test_split(folder, caplog):
    write_votes(folder, ROWS)
    lines = (folder / 'fer2013.csv').read_text().splitlines()
    (folder / 'fer2013.csv').write_text('\n'.join(lines[:-2]) + '\n')
    assert sorted(read_records('ferplus', folder)) == ['train', 'validation']
    assert 'ferplus: fer2013.csv has no faces for the last 2 votes' in warnings_of(caplog)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('Training,a.png,0,10,0,0,0,0,0,0,0', 'too few columns: expected 12 .*found 11'),
        (
            'Training,a.png,0,10,0,0,0,0,0,0,0,0,0',
            'too many columns: expected 12 .*found 13',
        ),
        ('Training,a.png,0,-1,0,0,0,0,0,0,0,0', 'expected 10 numbers of votes'),
        ('Training,a.png,0,happy,0,0,0,0,0,0,0,0', 'expected 10 numbers of votes'),
        ('Validation,a.png,0,10,0,0,0,0,0,0,0,0', "expected a usage of .*found 'Validation'"),
        (
            'PublicTest,a.png,0,10,0,0,0,0,0,0,0,0',
            r'expected a face of train as in fer2013\.csv, found validation',
        ),
        (None, r'expected a face of train as in fer2013\.csv, found no row'),
    ],
)
def test_wrong_row_of_votes_is_named_with_its_file(folder, line, message):
    write_votes(folder, [ROWS[0], ROWS[0]])
    path = folder / 'fer2013new.csv'
    lines = path.read_text().splitlines()[:2] + ([] if line is None else [line])
    path.write_text('\n'.join(lines) + '\n')
    with pytest.raises(UserError, match=rf'fer2013new\.csv: row 3: {message}'):
        read_records('ferplus', folder)


def test_extra_class_of_votes_is_named(folder):
    write_votes(folder, ROWS)
    header = FERPLUS_HEADER.replace(',unknown', ',boredom,unknown')
    write_csv(folder / 'fer2013new.csv', [], header)
    with pytest.raises(UserError, match='row 1: expected Usage,.*found Usage,.*boredom'):
        read_records('ferplus', folder)


def test_wrong_row_of_a_list_is_named(folder):
    folder.mkdir()
    (folder / 'FER2013Valid').mkdir()
    (folder / 'FER2013Valid' / 'label.csv').write_text('fer0.png,0,0,48,48,1,0,0\n')
    with pytest.raises(UserError, match=r'FER2013Valid/label\.csv: row 1: too few columns'):
        read_records('ferplus', folder)


def test_faces_in_another_order_are_refused(folder):
    """The labels of FER2013 reveal the wrong order, because too few of them agree with the votes."""
    labels = np.arange(120) % 7
    names = ('anger', 'disgust', 'fear', 'happiness', 'sadness', 'surprise', 'neutral')
    votes = [
        [10 * (name == names[label]) for name in (*NAMES, 'unknown', 'NF')] for label in labels
    ]
    write_votes(folder, [('Training', f'{i}.png', row) for i, row in enumerate(votes)])
    pixels = ' '.join(['7'] * 48 * 48)
    write_csv(folder / 'fer2013.csv', [(label, pixels, 'Training') for label in labels])
    assert len(read_records('ferplus', folder)['train']) == 120
    rows = [(label, pixels, 'Training') for label in np.roll(labels, 3)]
    write_csv(folder / 'fer2013.csv', rows)
    with pytest.raises(
        UserError, match=r'fer2013\.csv: expected the rows in the order of fer2013new'
    ):
        read_records('ferplus', folder)


@pytest.mark.parametrize('name', ['fer2013new.csv', 'fer2013.csv'])
def test_votes_without_faces_and_faces_without_votes_are_refused(folder, name):
    write_votes(folder, ROWS)
    (folder / name).unlink()
    with pytest.raises(UserError, match=r'expected fer2013new\.csv beside fer2013\.csv or .*part'):
        read_records('ferplus', folder)


def test_faces_in_a_csv_file_cannot_be_read_as_needed(folder):
    write_votes(folder, ROWS)
    with pytest.raises(UserError, match=r'in_memory=False: expected image files, found fer0000000'):
        read_records('ferplus', folder, in_memory=False)


def test_published_counts_are_those_of_the_policies():
    totals = {variant: sum(counts.values()) for variant, counts in Ferplus.COUNTS.items()}
    assert totals == {'majority': 31_412, 'argmax': 35_711, 'soft': 35_711}
