"""Small trees of image files in the layouts of the published data sets."""

import itertools

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from small_data import CONFIG, csv_rows, write_csv

from mtdml_jax.config import load_config
from mtdml_jax.data.prepare import prepare


def write_image(path, value=128, size=(12, 10), mode='RGB'):
    """Writes an image of one grey value, of size (width, height) in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == 'L' else (value,) * 3).save(path)
    return path


def write_corrupt(path):
    """Writes an image of noise whose second half is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def data_config(name, folder, **options):
    """Returns the section `data` of a config for the set `name`, prepared beside `folder`."""
    values = {'name': name, 'dir': folder, 'prepared_dir': folder.parent / 'prepared', **options}
    return load_config(
        CONFIG, [f'--config.data.{key}={value}' for key, value in values.items()]
    ).data


def read_records(name, folder, **options):
    """Prepares the set `name`; returns split -> {file name: (class name, subject)}."""
    builder = prepare(data_config(name, folder, **options))
    features = builder.info.features
    names = features['label'].names
    decoders = {'image': tfds.decode.SkipDecoding()} if 'image' in features else None
    return {
        split: {
            record['file_name'].decode(): (names[record['label']], record['subject'].decode())
            for record in tfds.as_numpy(builder.as_dataset(split, decoders=decoders))
        }
        for split in builder.info.splits
    }


def warnings_of(caplog):
    """Returns the warnings of this package, without those of TFDS."""
    return [record.getMessage() for record in caplog.records if record.name.startswith('mtdml_jax')]


# CK+, MMI and FER+.


def write_ck_sequence(folder, subject, sequence, code, num_frames=4):
    """Writes a sequence of CK+ that gets brighter, with a label unless `code` is None."""
    names = [f'{subject}_{sequence}_{number:08}' for number in range(1, num_frames + 1)]
    for number, name in enumerate(names):
        path = folder / 'cohn-kanade-images' / subject / sequence / f'{name}.png'
        write_image(path, 30 * (code or 0) + number, mode='L')
    if code is not None:
        path = folder / 'Emotion' / subject / sequence / f'{names[-1]}_emotion.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'   {code:.7e}\n')


def write_ck_plus(folder):
    """CK+: 4 subjects with a sequence of 4 frames in each class."""
    for subject in ('S005', 'S010', 'S011', 'S130'):
        for code in range(1, 8):
            write_ck_sequence(folder, subject, f'{code:03}', code)


def write_mmi_session(folder, number, sid, code, view=0, num_frames=5, tag='Metatag'):
    """Writes the xml files of a session of MMI and `num_frames` extracted frames."""
    session = folder / 'Sessions' / str(number)
    session.mkdir(parents=True)
    (session / 'session.xml').write_text(
        f'<?xml version="1.0"?><session><track view="{view}" filename="{sid}.avi"/></session>'
    )
    emotion = '' if code is None else f'<{tag} Name="Emotion" Value="{code}"/>'
    (session / f'{sid}.xml').write_text(
        f'<?xml version="1.0"?><Clip><{tag} Name="AU" Value="12"/>{emotion}</Clip>'
    )
    for frame in range(num_frames):
        write_image(session / f'{frame}.png', 30 * (code or 0) + frame)
    return session


def write_mmi(folder):
    """MMI with extracted frames: 4 subjects with a session in each class."""
    for number in range(24):
        subject, code = number // 6 + 1, number % 6 + 1
        write_mmi_session(folder, number, f'S{subject:03}-{code:03}', code)


FERPLUS_HEADER = (
    'Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF'
)


def write_votes(folder, rows):
    """Writes fer2013new.csv with rows (usage, image name, 10 votes) and a fer2013.csv of the same faces.

    Face i, counted from 0, has the grey value i in all its pixels.
    """
    votes = [(usage, name, *votes) for usage, name, votes in rows]
    write_csv(folder / 'fer2013new.csv', votes, FERPLUS_HEADER)
    faces = [(0, ' '.join([str(i)] * 48 * 48), row[0]) for i, row in enumerate(rows)]
    write_csv(folder / 'fer2013.csv', faces)


def write_ferplus(folder):
    """FER+ as csv files: 3 faces of each class in each usage. All ten people agree."""
    write_votes(
        folder,
        [
            (usage, f'{usage}{label}{i}.png', [10 * (column == label) for column in range(10)])
            for usage in ('Training', 'PublicTest', 'PrivateTest')
            for label in range(8)
            for i in range(3)
        ],
    )


# Trees for training: each class has at least 3 faces, and their brightness depends on the class.


def write_fer2013(folder):
    """FER2013 as a csv file."""
    write_csv(folder / 'fer2013.csv', csv_rows())


def write_folder(folder):
    """Any folder with splits: train has 4 images of each of 7 classes, test has 1."""
    for grey, (split, count) in itertools.product(range(20, 160, 20), (('train', 4), ('test', 1))):
        for i in range(count):
            write_image(folder / split / f'grey{grey}' / f'{i}.png', grey)


def write_list(folder):
    """A list of the images of `write_folder`, with splits and boxes."""
    write_folder(folder)
    rows = ['path,label,split,x,y,w,h']
    for path in sorted(folder.rglob('*.png')):
        split, label, _ = path.relative_to(folder).parts
        rows.append(f'{path.relative_to(folder)},{label},{split},1,2,5,6')
    (folder / 'list.csv').write_text('\n'.join(rows) + '\n')


def write_raf_db(folder):
    """RAF-DB with its own list: 3 faces of each class in train, 1 in test."""
    lines = []
    for code in range(1, 8):
        for name in (*(f'train_{code}000{i}' for i in range(3)), f'test_{code}000'):
            write_image(folder / 'Image' / 'aligned' / f'{name}_aligned.jpg', 30 * code)
            lines.append(f'{name}.jpg {code}')
    (folder / 'EmoLabel').mkdir()
    (folder / 'EmoLabel' / 'list_patition_label.txt').write_text('\n'.join(lines))


def write_sfew(folder):
    """SFEW, aligned: 3 faces of each class in Train, 1 in Val."""
    classes = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise')
    for code, label in enumerate(classes):
        for i in range(3):
            write_image(folder / 'Train_Aligned_Faces' / label / f'film_{i}.png', 30 * code)
        write_image(folder / 'Val_Aligned_Faces_new' / label / 'film_3.png', 30 * code)


def write_jaffe(folder):
    """JAFFE: 3 subjects with a face in each class."""
    codes = ('AN', 'DI', 'FE', 'HA', 'NE', 'SA', 'SU')
    for number, (subject, code) in enumerate(itertools.product(('KA', 'KL', 'YM'), codes)):
        path = folder / f'{subject}.{code}1.{number}.tiff'
        write_image(path, 30 * codes.index(code), mode='L')


def write_oulu_casia(folder, source='OriginalImg/VL/Strong'):
    """Oulu-CASIA: 2 subjects with a sequence of 4 frames in each class."""
    classes = ('Anger', 'Disgust', 'Fear', 'Happiness', 'Sadness', 'Surprise')
    for subject, label, frame in itertools.product(('P001', 'P002'), classes, range(4)):
        path = folder / source / subject / label / f'00{frame}.jpeg'
        write_image(path, 30 * classes.index(label))


def write_affectnet(folder):
    """AffectNet as images and annotations: train_set has 3 faces of each of 8 classes, val_set 1."""
    for code in range(8):
        for i in range(3):
            write_annotated(folder / 'train_set', 10 * code + i, str(code))
        write_annotated(folder / 'val_set', 10 * code, str(code))


def write_annotated(folder, number, code):
    """Writes an image of AffectNet and its expression."""
    (folder / 'annotations').mkdir(parents=True, exist_ok=True)
    np.save(folder / 'annotations' / f'{number}_exp.npy', code)
    return write_image(folder / 'images' / f'{number}.jpg', 3 * number)
