"""The labels of every set as shared by the field: index, name, and code as stored on disk."""

import pytest
from face_trees import (
    data_config,
    read_records,
    write_ck_sequence,
    write_mmi_session,
    write_votes,
)

from mtdml_jax.data.prepare import make_builder

# (set, variant) -> 'name=code' of the labels 0, 1, ...
CK_PLUS = 'anger=1 contempt=2 disgust=3 fear=4 happy=5 sadness=6 surprise=7'
CK_PLUS_6 = 'anger=1 disgust=3 fear=4 happy=5 sadness=6 surprise=7'
# The code of FER+ is the column of the votes.
FERPLUS = 'neutral=0 happiness=1 surprise=2 sadness=3 anger=4 disgust=5 fear=6 contempt=7'
LABELS = {
    ('ck_plus', '7'): CK_PLUS,
    ('ck_plus', '6'): CK_PLUS_6,
    ('ck_plus', '7+neutral'): f'neutral=0 {CK_PLUS}',
    ('ck_plus', '6+neutral'): f'neutral=0 {CK_PLUS_6}',
    ('mmi', ''): 'anger=1 disgust=2 fear=3 happy=4 sadness=5 surprise=6',
    ('ferplus', 'majority'): FERPLUS,
    ('ferplus', 'argmax'): FERPLUS,
    ('ferplus', 'soft'): FERPLUS,
}


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


# Set -> a function of a folder and codes that writes a face of each and gives their file names.
WRITERS = {'ck_plus': write_ck_plus, 'mmi': write_mmi, 'ferplus': write_ferplus}


@pytest.mark.parametrize(('name', 'variant'), LABELS)
def test_stored_code_gives_the_label_of_the_table(tmp_path, name, variant):
    labels = [pair.split('=') for pair in LABELS[name, variant].split()]
    folder = tmp_path / 'set'
    file_names = WRITERS[name](folder, [code for _, code in labels])
    builder = make_builder(data_config(name, folder, variant=variant))
    assert builder.info.features['label'].names == [label for label, _ in labels]
    (found,) = read_records(name, folder, variant=variant).values()
    assert [found[file_name][0] for file_name in file_names] == [label for label, _ in labels]
