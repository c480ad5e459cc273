"""A trained model to use: expressions and embeddings of images, and faces enrolled beside them."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.pixels import ImageLike, load_pixels
from mtdml_jax.inference.classifiers import CLASSIFIERS, find_nearest, need_faces, side_by_side
from mtdml_jax.models.forward import make_look
from mtdml_jax.models.model_file import ModelData, read_model, write_model

# Of a run's folder, where its evaluation leaves the model.
MODEL_NAME = 'model.safetensors'
# Batches are filled up to one of these sizes, or to the caller's: each is compiled once.
SIZES = (1, 8)
# One image or many; left, top, width and height of the face in each, in pixels, [N, 4].
Images = ImageLike | Sequence[ImageLike]
Boxes = Sequence[Sequence[float]]


class Predictions(NamedTuple):
    """What a model says of N images.

    Attributes:
      class_names: name of each class, [C].
      labels: the most probable class of each image, int [N].
      probabilities: of each class, float32 [N, C].
      slice_probabilities: the same by each slice alone, float32 [N, S, C].
      embeddings: unit vectors, float32 [N, E].
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    slice_probabilities: np.ndarray
    embeddings: np.ndarray

    @property
    def names(self) -> list[str]:
        """Name of the most probable class of each image, [N]."""
        return [self.class_names[label] for label in self.labels]


class Neighbors(NamedTuple):
    """The enrolled faces nearest to N images, nearest first.

    Attributes:
      labels: names of their classes, N lists of K.
      names: their own names, N lists of K.
      rows: their places in the order of enrolment, int [N, K].
      distances: Euclidean, between unit embeddings, float32 [N, K].
    """

    labels: list[list[str]]
    names: list[list[str]]
    rows: np.ndarray
    distances: np.ndarray


class Gallery(NamedTuple):
    """Enrolled faces: embeddings float32 [G, E], names of their classes [G], their own names [G]."""

    embeddings: np.ndarray
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def add(self, embeddings: np.ndarray, labels: Sequence[str], names: Sequence[str]) -> 'Gallery':
        """This gallery and further faces: embeddings [N, E], N labels and N names."""
        return Gallery(
            np.concatenate([self.embeddings, embeddings]),
            (*self.labels, *labels),
            (*self.names, *names),
        )


class Classifier(NamedTuple):
    """Names of classes [C], and a function (slices [N, S, D], logits [N, S, C]) -> `Predictions`."""

    class_names: tuple[str, ...]
    classify: Callable[[np.ndarray, np.ndarray], Predictions]


def load(path: str | Path) -> 'Model':
    """Loads a model.

    Args:
      path: a model file (.safetensors), or the folder of a run that was evaluated.

    Raises:
      UserError: no model there, or none that can be right.
    """
    return Model(read_model(find_model(path)))


def find_model(path: str | Path) -> Path:
    """The model file that a path names, as `load` takes it.

    Raises:
      UserError: the folder of a run without one, or of a cross-validation, which has several.
    """
    path = user_path(path)
    if path.is_dir():
        folds = sorted(x.parent.name for x in path.glob(f'fold_*/{MODEL_NAME}'))
        if folds:
            raise UserError(
                f'{path}: the folder of a cross-validation, with a model a fold: name one of '
                f'{listed(folds)} in it'
            )
        if not (path / MODEL_NAME).exists():
            raise UserError(
                f'{path}: no {MODEL_NAME} in this folder, which the evaluation of a run writes: python '
                f'-m mtdml_jax evaluate --workdir={path}'
            )
        path /= MODEL_NAME
    return path


class Model:
    """A model in memory. Every method may be called from several threads at a time.

    Images are given one or many: the path of a file, its content (bytes), an image of Pillow's, an
    array [H, W] or [H, W, 1, 3 or 4] of uint8 or of floats from 0 to 1, an array [N, H, W, 1, 3 or 4],
    or a list of any of these, of mixed sizes. One image is a list of one. Of an iterator `predict` and
    `embed` make iterators, which read on as results are asked for.

    Attributes:
      settings: what the model file says: class names, thresholds, preprocessing, what was measured.
    """

    def __init__(self, data: ModelData):
        self.settings = settings = data.settings
        self._data = data
        self._gallery = Gallery(data.gallery, settings.gallery_labels, settings.gallery_names)
        self._enrolling = threading.Lock()
        self._variables = jax.device_put(data.variables)
        self._look = jax.jit(make_look(data.network, settings.flip))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of training, [C]."""
        return self.settings.class_names

    @property
    def centres(self) -> np.ndarray:
        """Mean embedding of each class over the training faces, float32 [C, E]; 0 without any."""
        return self._data.centres

    @property
    def logit_scale(self) -> float:
        """Scale of the classifiers' logits, by which scores of other kinds are made probabilities."""
        learned = self._data.variables['params'].get('scale')
        return float(self.settings.network.logit_scale if learned is None else learned)

    @property
    def gallery(self) -> Gallery:
        """The faces enrolled so far."""
        return self._gallery

    @overload
    def predict(
        self,
        images: Iterator[ImageLike],
        *,
        boxes: Boxes | None = None,
        by: str | None = None,
        k: int = 15,
        batch_size: int = 64,
    ) -> Iterator[Predictions]: ...
    @overload
    def predict(
        self,
        images: Images,
        *,
        boxes: Boxes | None = None,
        by: str | None = None,
        k: int = 15,
        batch_size: int = 64,
    ) -> Predictions: ...
    def predict(
        self,
        images: Images | Iterator[ImageLike],
        *,
        boxes: Boxes | None = None,
        by: str | None = None,
        k: int = 15,
        batch_size: int = 64,
    ) -> Predictions | Iterator[Predictions]:
        """Classes of images and their probabilities.

        Args:
          images: one, many, or an iterator.
          boxes: left, top, width and height of the face in each image, in pixels, [N, 4]; without them
            the image is the face.
          by: 'softmax', by the trained classifiers; 'centroid', by the distance to the mean of each
            class, of training and of enrolled faces; 'knn', by the votes of the k nearest enrolled
            faces. The last two know the classes that were enrolled. By default 'softmax', or 'centroid'
            of a model without classifiers. Probabilities 'centroid' are the softmax of negative squared
            distances, scaled as the classifiers' logits are; they are not calibrated.
          k: number of neighbours.
          batch_size: images looked at together; 1 gives each result before the next image is read.

        Returns:
          `Predictions` of all images; of an iterator an iterator of `Predictions` of one image each.

        Raises:
          UserError: an image that cannot be read, or a classifier that the model does not have.
        """
        classify = self.make_classifier(by, k).classify
        return self._answer(images, boxes, batch_size, classify, join_predictions)

    @overload
    def embed(
        self, images: Iterator[ImageLike], *, boxes: Boxes | None = None, batch_size: int = 64
    ) -> Iterator[np.ndarray]: ...
    @overload
    def embed(
        self, images: Images, *, boxes: Boxes | None = None, batch_size: int = 64
    ) -> np.ndarray: ...
    def embed(
        self,
        images: Images | Iterator[ImageLike],
        *,
        boxes: Boxes | None = None,
        batch_size: int = 64,
    ) -> np.ndarray | Iterator[np.ndarray]:
        """Embeddings of images: unit vectors, float32 [N, E]; of an iterator [1, E] at a time.

        Args:
          images: as of `predict`.
          boxes: as of `predict`.
          batch_size: as of `predict`.

        Raises:
          UserError: an image that cannot be read.
        """
        return self._answer(
            images, boxes, batch_size, lambda slices, _: side_by_side(slices), np.concatenate
        )

    def nearest(
        self,
        images: Images,
        k: int = 5,
        *,
        boxes: Boxes | None = None,
    ) -> Neighbors:
        """The enrolled faces that are nearest to each image.

        Args:
          images: one or many.
          k: how many; at most as many as are enrolled.
          boxes: as of `predict`.

        Raises:
          UserError: an image that cannot be read, or no enrolled face.
        """
        gallery = need_faces(self._gallery)
        rows, distances = find_nearest(
            self.embed(_as_list(images), boxes=boxes), gallery.embeddings, k
        )
        labels, names = (
            [[values[i] for i in row] for row in rows] for values in (gallery.labels, gallery.names)
        )
        return Neighbors(labels, names, rows, distances)

    def enroll(
        self,
        images: Images,
        labels: str | Sequence[str],
        *,
        names: Sequence[str] | None = None,
        boxes: Boxes | None = None,
    ) -> None:
        """Adds faces to the gallery, also of classes that training never saw; `save` keeps them.

        Args:
          images: one or many.
          labels: name of the class of each, or one name for all.
          names: a name for each; by default the path of an image that is given as one.
          boxes: as of `predict`.

        Raises:
          UserError: an image that cannot be read (none is added then), or labels that are no names.
        """
        images = _as_list(images)
        labels = [labels] * len(images) if isinstance(labels, str) else list(labels)
        if names is None:
            names = [str(x) if isinstance(x, (str, Path)) else '' for x in images]
        for what, values in (('labels', labels), ('names', names)):
            if len(values) != len(images) or not all(isinstance(x, str) for x in values):
                raise UserError(f'{what}: expected {len(images)} texts, one for each image')
        embeddings = self.embed(images, boxes=boxes)
        with self._enrolling:
            self._gallery = self._gallery.add(embeddings, labels, names)

    def save(self, path: str | Path, *, dtype: str = 'float32') -> None:
        """Writes a model file, with all faces that are enrolled.

        Args:
          path: the file; by convention it ends in .safetensors.
          dtype: type of the weights in it: 'float32', 'bfloat16' or 'float16'.

        Raises:
          UserError: another type, or a file that cannot be written.
        """
        gallery = self._gallery
        settings = self.settings._replace(
            gallery_labels=gallery.labels, gallery_names=gallery.names
        )
        data = self._data._replace(settings=settings, gallery=gallery.embeddings)
        write_model(user_path(path), data, dtype)

    def _answer(self, images, boxes, batch_size, finish, join):
        """`finish(slices, logits)` of batches, joined; or one by one where images come one by one."""
        if batch_size < 1:
            raise UserError(f'batch_size: expected at least 1, found {batch_size}')
        is_stream = isinstance(images, Iterator)
        images = images if is_stream else _as_list(images)
        if not is_stream and not images:
            raise UserError('expected at least one image, found none')
        if boxes is not None and not is_stream and len(boxes) != len(images):
            raise UserError(
                f'boxes: expected one for each of {len(images)} images, found {len(boxes)}'
            )
        found = self._see(images, boxes, batch_size)
        if not is_stream:
            return join([finish(*seen) for seen in found])
        return (
            finish(*(x[i : i + 1] for x in seen)) for seen in found for i in range(len(seen[0]))
        )

    def _see(self, images, boxes, batch_size):
        """Yields (slices, logits) of batches, NumPy arrays; the next are decoded meanwhile."""
        boxes = _repeat_none() if boxes is None else iter(boxes)
        with ThreadPoolExecutor() as pool:

            def start(batch):
                decode = pool.map if len(batch) > 1 else map
                pixels = np.stack(list(decode(lambda face: self.load_pixels(*face), batch)))
                return self.look(pixels, batch_size)

            started = map(start, in_batches(zip(images, boxes, strict=False), batch_size))
            # While one batch is looked at, the next is decoded; not if each is waited for.
            yield from (wait() for wait in started) if batch_size == 1 else one_behind(started)

    def load_pixels(self, image: ImageLike, box: Sequence[float] | None = None) -> np.ndarray:
        """What the network sees of an image, float32 [side, side, channels]; as `pixels.load_pixels`."""
        return load_pixels(image, self.settings.preprocessing, box)

    def look(
        self, pixels: np.ndarray, batch_size: int = 64
    ) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Starts to look at faces, in the background.

        Args:
          pixels: as of `load_pixels`, [N, side, side, channels], N at most batch_size.
          batch_size: the size to which more than 8 faces are filled up.

        Returns:
          A function that waits for (unit slices [N, S, D], logits of each slice [N, S, C]).
        """
        count = len(pixels)
        size = next((x for x in SIZES if count <= x <= batch_size), batch_size)
        filled = np.zeros((size, *pixels.shape[1:]), np.float32)
        filled[:count] = pixels
        seen = self._look(self._variables, filled)
        return lambda: (np.asarray(seen.slices)[:count], np.asarray(seen.logits)[:count])

    def make_classifier(self, by: str | None = None, k: int = 15) -> Classifier:
        """What makes `Predictions` of what `look` found; its arguments are `predict`'s.

        Raises:
          UserError: a classifier that the model does not have.
        """
        if by is None:
            by = 'softmax' if self.settings.has_head else 'centroid'
        if by not in CLASSIFIERS:
            raise UserError(f'by: expected one of {", ".join(CLASSIFIERS)}, found {by!r}')
        class_names, judge = CLASSIFIERS[by](self, k)

        def classify(slices, logits):
            probabilities, by_slice = judge(slices, logits)
            labels = probabilities.argmax(axis=1)
            return Predictions(class_names, labels, probabilities, by_slice, side_by_side(slices))

        return Classifier(class_names, classify)


def _as_list(images) -> list[ImageLike]:
    """One or many images as a list."""
    if isinstance(images, (list, tuple)):
        return list(images)
    if isinstance(images, (set, frozenset, dict)):
        raise UserError(f'expected images in an order, found a {type(images).__name__}')
    if getattr(images, 'ndim', 0) == 4:
        return list(np.asarray(images))
    return [images]


def in_batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items; the last may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def one_behind(started: Iterable[Callable[[], Any]]) -> Iterator:
    """Values of functions that wait for work in the background, each when the next was started."""
    previous = None
    for wait in started:
        if previous:
            yield previous()
        previous = wait
    if previous:
        yield previous()


def _repeat_none():
    while True:
        yield None


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """One `Predictions` of the images of several."""
    arrays = [
        np.concatenate([part[i] for part in parts]) for i in range(1, len(Predictions._fields))
    ]
    return Predictions(parts[0].class_names, *arrays)
