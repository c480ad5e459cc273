"""The labels of every data set: their index, their name, and their code on disk."""

import pytest
from face_trees import (
    data_config,
    read_records,
    write_annotated,
    write_ck_sequence,
    write_image,
    write_mmi_session,
    write_votes,
)
from small_data import write_csv

from mtdml_jax.data.prepare import make_builder

# (set, variant) -> 'name=code' of the labels 0, 1, ... in this order.
CK_PLUS = 'anger=1 contempt=2 disgust=3 fear=4 happy=5 sadness=6 surprise=7'
CK_PLUS_6 = 'anger=1 disgust=3 fear=4 happy=5 sadness=6 surprise=7'
# The code of FER+ is the index of its column of votes.
FERPLUS = 'neutral=0 happiness=1 surprise=2 sadness=3 anger=4 disgust=5 fear=6 contempt=7'
LABELS = {
    ('raf_db', ''): 'Surprise=1 Fear=2 Disgust=3 Happiness=4 Sadness=5 Anger=6 Neutral=7',
    ('fer2013', ''): 'Angry=0 Disgust=1 Fear=2 Happy=3 Sad=4 Surprise=5 Neutral=6',
    ('sfew', ''): (
        'Angry=Angry Disgust=Disgust Fear=Fear Happy=Happy Neutral=Neutral Sad=Sad '
        'Surprise=Surprise'
    ),
    ('jaffe', ''): 'Anger=AN Disgust=DI Fear=FE Happiness=HA Neutral=NE Sadness=SA Surprise=SU',
    ('oulu_casia', ''): (
        'Anger=Anger Disgust=Disgust Fear=Fear Happiness=Happiness Sadness=Sadness '
        'Surprise=Surprise'
    ),
    ('affectnet', '7'): 'Neutral=0 Happy=1 Sad=2 Surprise=3 Fear=4 Disgust=5 Anger=6',
    ('affectnet', '8'): 'Neutral=0 Happy=1 Sad=2 Surprise=3 Fear=4 Disgust=5 Anger=6 Contempt=7',
    ('ck_plus', '7'): CK_PLUS,
    ('ck_plus', '6'): CK_PLUS_6,
    ('ck_plus', '7+neutral'): f'neutral=0 {CK_PLUS}',
    ('ck_plus', '6+neutral'): f'neutral=0 {CK_PLUS_6}',
    ('mmi', ''): 'anger=1 disgust=2 fear=3 happy=4 sadness=5 surprise=6',
    ('ferplus', 'majority'): FERPLUS,
    ('ferplus', 'argmax'): FERPLUS,
    ('ferplus', 'soft'): FERPLUS,
}


def write_raf_db(folder, codes):
    names = [f'train_{code}' for code in codes]
    images = [f'Image/aligned/{name}_aligned.jpg' for name in names]
    for image in images:
        write_image(folder / image)
    (folder / 'EmoLabel').mkdir()
    lines = [f'{name}.jpg {code}' for name, code in zip(names, codes, strict=True)]
    (folder / 'EmoLabel' / 'list_patition_label.txt').write_text('\n'.join(lines))
    return images


def write_fer2013(folder, codes):
    write_csv(
        folder / 'fer2013.csv',
        [(code, ' '.join(['7'] * 2304), 'Training') for code in codes],
    )
    return [f'fer2013.csv:{row}' for row in range(2, 2 + len(codes))]


def write_named(pattern):
    """Returns a function that writes an image for each code, at the path `pattern`."""

    def write(folder, codes):
        names = [pattern.format(code) for code in codes]
        for name in names:
            write_image(folder / name)
        return names

    return write


def write_affectnet(folder, codes):
    images = [write_annotated(folder / 'train_set', int(code), code) for code in codes]
    return [image.relative_to(folder).as_posix() for image in images]


def write_ck_plus(folder, codes):
    for code in codes:
        write_ck_sequence(folder, 'S005', f'00{code}', int(code))
    return [f'cohn-kanade-images/S005/00{code}/S005_00{code}_00000004.png' for code in codes]


def write_mmi(folder, codes):
    for code in codes:
        write_mmi_session(folder, code, f'S001-00{code}', int(code), num_frames=3)
    return [f'Sessions/{code}/0.png' for code in codes]


def write_ferplus(folder, codes):
    votes = {code: [10 * (str(column) == code) for column in range(10)] for code in codes}
    write_votes(folder, [('Training', f'{code}.png', row) for code, row in votes.items()])
    return [f'{code}.png' for code in codes]


# Set -> function of a folder and codes that writes a face for each code and returns the file names.
WRITERS = {
    'raf_db': write_raf_db,
    'fer2013': write_fer2013,
    'sfew': write_named('Train_Aligned_Faces/{}/a.png'),
    'jaffe': write_named('KA.{}1.39.tiff'),
    'oulu_casia': write_named('OriginalImg/VL/Strong/P001/{}/000.jpeg'),
    'affectnet': write_affectnet,
    'ck_plus': write_ck_plus,
    'mmi': write_mmi,
    'ferplus': write_ferplus,
}


@pytest.mark.parametrize(('name', 'variant'), LABELS)
def test_stored_code_gives_the_label_of_the_table(tmp_path, name, variant):
    labels = [pair.split('=') for pair in LABELS[name, variant].split()]
    folder = tmp_path / 'set'
    file_names = WRITERS[name](folder, [code for _, code in labels])
    builder = make_builder(data_config(name, folder, variant=variant))
    assert builder.info.features['label'].names == [label for label, _ in labels]
    (found,) = read_records(name, folder, variant=variant).values()
    assert [found[file_name][0] for file_name in file_names] == [label for label, _ in labels]
