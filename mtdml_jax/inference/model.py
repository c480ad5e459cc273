"""A trained model: it predicts expressions, embeds images, and compares faces with enrolled faces."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path
from mtdml_jax.images.pixels import ImageLike, load_pixels
from mtdml_jax.inference.answers import Gallery, Neighbors, Predictions, join_predictions
from mtdml_jax.inference.batches import as_list, run_batches
from mtdml_jax.inference.find import find_model
from mtdml_jax.models.classifiers import CLASSIFIERS, Facts, join_slices
from mtdml_jax.models.forward import compile_forward
from mtdml_jax.models.model_file import ModelData, read_model, write_model
from mtdml_jax.models.neighbors import find_nearest
from mtdml_jax.models.network import Network

# A batch is filled up to one of these sizes, or to the caller's batch size. Each size compiles once.
SIZES = (1, 8)
# One image or many; and left, top, width and height of the face in each image, in pixels, [N, 4].
Images = ImageLike | Sequence[ImageLike]
Boxes = Sequence[Sequence[float]]


class ModelClassifier(NamedTuple):
    """Names of classes [C], and a function (slices [N, S, D], logits [N, S, C]) -> `Predictions`."""

    class_names: tuple[str, ...]
    classify: Callable[[np.ndarray, np.ndarray], Predictions]


def load(path: str | Path) -> 'Model':
    """Loads a model.

    Args:
      path: a model file (.safetensors), the folder of a run that was evaluated, or the name of a model
        in the package, such as 'fer2013'.

    Raises:
      UserError: there is no model, or its file is damaged.
    """
    return Model(read_model(find_model(path)))


class Model:
    """A model in memory. Several threads may call every method at the same time.

    `images` may be one image or many. An image is the path of a file, its content (bytes), a Pillow
    image, or an array [H, W] or [H, W, 1, 3 or 4] of uint8 or of floats from 0 to 1. Many images are an
    array [N, H, W, 1, 3 or 4], or a list of images of mixed kinds and sizes. One image counts as a list
    of one. `predict_stream` and `embed_stream` take iterators.

    Attributes:
      settings: the settings in the model file: class names, thresholds, preprocessing, measurements.
      network: the network.
    """

    def __init__(self, data: ModelData):
        self.settings = settings = data.settings
        self._data = data
        self._gallery = Gallery(data.gallery, settings.gallery_labels, settings.gallery_names)
        self._enrolling = threading.Lock()
        self.network: Network = data.network
        self._forward = compile_forward(data)

    @functools.cached_property
    def variables(self) -> Mapping[str, Any]:
        """{'params', 'batch_stats'} of the network, on the device; predictions use folded copies."""
        return jax.device_put(self._data.variables)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of training, [C]."""
        return self.settings.class_names

    @property
    def centres(self) -> np.ndarray:
        """Mean embedding of the training faces of each class, float32 [C, E]; 0 without faces."""
        return self._data.centres

    @property
    def logit_scale(self) -> float:
        """Scale of the classifiers' logits, which also turns other scores into probabilities."""
        learned = self._data.variables['params'].get('scale')
        return float(self.settings.network.logit_scale if learned is None else learned)

    @property
    def gallery(self) -> Gallery:
        """The faces that have been enrolled."""
        return self._gallery

    def predict(
        self,
        images: Images,
        *,
        boxes: Boxes | None = None,
        by: str | None = None,
        k: int = 15,
        batch_size: int = 64,
    ) -> Predictions:
        """Predicts the classes of images and their probabilities.

        Args:
          images: one or many.
          boxes: left, top, width and height of the face in each image, in pixels, [N, 4]; without boxes
            the whole image is the face.
          by: 'softmax', by the trained classifiers; 'centroid', by the distance to the mean of each
            class, over training faces and enrolled faces; 'knn', by the votes of the k nearest enrolled
            faces. 'centroid' and 'knn' know the enrolled classes too. The default is 'softmax', or
            'centroid' if the model has no classifiers. Probabilities of 'centroid' are the softmax of
            negative squared distances, with the scale of the classifiers' logits. They are not
            calibrated.
          k: number of neighbours.
          batch_size: number of images in a forward pass.

        Returns:
          `Predictions` for all images.

        Raises:
          UserError: an image cannot be read, the images are an iterator, or the model does not have the
            classifier.
        """
        batches = self._batches(as_list(images), boxes, batch_size)
        classify = self.make_classifier(by, k).classify
        return join_predictions([classify(*outputs) for outputs in batches])

    def predict_stream(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[Sequence[float]] | None = None,
        by: str | None = None,
        k: int = 15,
        batch_size: int = 64,
    ) -> Iterator[Predictions]:
        """Predicts images one after the other; it reads the images while the caller takes the results.

        Args:
          images: the images, for instance a generator; they need not fit into memory.
          boxes: the box of each image; see `predict`.
          by: see `predict`.
          k: see `predict`.
          batch_size: number of images in a forward pass; 1 yields each result before it reads the next
            image.

        Returns:
          An iterator of `Predictions` for one image each.

        Raises:
          UserError: see `predict`.
        """
        classify = self.make_classifier(by, k).classify
        found = (classify(*outputs) for outputs in self._batches(images, boxes, batch_size))
        return (batch.rows(i, i + 1) for batch in found for i in range(len(batch.labels)))

    def embed(
        self, images: Images, *, boxes: Boxes | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """Computes the embeddings of images: unit vectors, float32 [N, E].

        Args:
          images: one or many.
          boxes: see `predict`.
          batch_size: see `predict`.

        Raises:
          UserError: an image cannot be read, or the images are an iterator.
        """
        batches = self._batches(as_list(images), boxes, batch_size)
        return np.concatenate([join_slices(slices) for slices, _ in batches])

    def embed_stream(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[Sequence[float]] | None = None,
        batch_size: int = 64,
    ) -> Iterator[np.ndarray]:
        """Embeds images one after the other; see `predict_stream`.

        Args:
          images: the images, for instance a generator.
          boxes: the box of each image; see `predict`.
          batch_size: see `predict_stream`.

        Returns:
          An iterator of embeddings [1, E].

        Raises:
          UserError: an image cannot be read.
        """
        found = (join_slices(slices) for slices, _ in self._batches(images, boxes, batch_size))
        return (batch[i : i + 1] for batch in found for i in range(len(batch)))

    def nearest(
        self,
        images: Images,
        k: int = 5,
        *,
        boxes: Boxes | None = None,
    ) -> Neighbors:
        """Finds the enrolled faces that are nearest to each image.

        Args:
          images: one or many.
          k: number of faces to find; at most all enrolled faces.
          boxes: see `predict`.

        Raises:
          UserError: an image cannot be read, or no face is enrolled.
        """
        gallery = self._gallery
        if not gallery.labels:
            raise UserError('no face is enrolled: enroll(images, labels) adds faces')
        rows, distances = find_nearest(self.embed(images, boxes=boxes), gallery.embeddings, k)
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
        """Adds faces to the gallery; their classes may be new to the model. `save` keeps the faces.

        Args:
          images: one or many.
          labels: class name of each face, or one name for all.
          names: a name for each face; the default is the path of the image, or '' without a path.
          boxes: see `predict`.

        Raises:
          UserError: an image cannot be read (then no face is added), or a label is not a string.
        """
        images = as_list(images)
        labels = [labels] * len(images) if isinstance(labels, str) else list(labels)
        if names is None:
            names = [str(x) if isinstance(x, (str, Path)) else '' for x in images]
        for what, values in (('labels', labels), ('names', names)):
            if len(values) != len(images) or not all(isinstance(x, str) for x in values):
                raise UserError(f'{what}: expected {len(images)} strings, one for each image')
        embeddings = self.embed(images, boxes=boxes)
        with self._enrolling:
            self._gallery = self._gallery.add(embeddings, labels, names)

    def save(self, path: str | Path, *, dtype: str = 'float32') -> None:
        """Writes a model file with all enrolled faces.

        Args:
          path: the file; by convention its name ends in .safetensors.
          dtype: type of the weights in the file: 'float32', 'bfloat16' or 'float16'.

        Raises:
          UserError: the type is unknown, or the file cannot be written.
        """
        gallery = self._gallery
        settings = self.settings._replace(
            gallery_labels=gallery.labels, gallery_names=gallery.names
        )
        data = self._data._replace(settings=settings, gallery=gallery.embeddings)
        write_model(user_path(path), data, dtype)

    def _batches(self, images, boxes, batch_size):
        """Yields (slices, logits) of each batch as NumPy arrays, and decodes the next one meanwhile."""
        if batch_size < 1:
            raise UserError(f'batch_size: expected at least 1, found {batch_size}')
        if isinstance(images, list):
            _check_images(images, boxes)
        faces = zip(images, itertools.repeat(None) if boxes is None else boxes, strict=False)
        forward = functools.partial(self.forward, batch_size=batch_size)
        return run_batches(self.load_pixels, forward, faces, batch_size)

    def load_pixels(self, image: ImageLike, box: Sequence[float] | None = None) -> np.ndarray:
        """Returns the input of the network for an image, float32 [side, side, channels].

        Args:
          image: one image.
          box: left, top, width and height of the face in pixels.

        Raises:
          UserError: see `pixels.load_pixels`.
        """
        return load_pixels(image, self.settings.preprocessing, box)

    def forward(
        self, pixels: np.ndarray, batch_size: int = 64
    ) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Starts a forward pass in the background.

        Args:
          pixels: see `load_pixels`, [N, side, side, channels], N at most batch_size.
          batch_size: the size to which more than 8 faces are filled up.

        Returns:
          A function that waits for (unit slices [N, S, D], logits of each slice [N, S, C]).
        """
        count = len(pixels)
        size = next((x for x in SIZES if count <= x <= batch_size), batch_size)
        filled = pixels.astype(np.float32, copy=False)
        if count < size:
            filled = np.concatenate(
                [filled, np.zeros((size - count, *filled.shape[1:]), np.float32)]
            )
        outputs = self._forward(filled)
        return lambda: (np.asarray(outputs.slices)[:count], np.asarray(outputs.logits)[:count])

    def make_classifier(self, by: str | None = None, k: int = 15) -> ModelClassifier:
        """Makes the function that turns the outputs of `forward` into `Predictions`.

        Args:
          by: see `predict`.
          k: see `predict`.

        Raises:
          UserError: the model does not have the classifier.
        """
        if by is None:
            by = 'softmax' if self.settings.has_head else 'centroid'
        if by not in CLASSIFIERS:
            raise UserError(f'by: expected one of {", ".join(CLASSIFIERS)}, found {by!r}')
        class_names = self.class_names if by == 'softmax' else self._known_classes()
        probabilities_of = CLASSIFIERS[by].make(self._facts(class_names), k)

        def classify(slices, logits):
            probabilities, by_slice = probabilities_of(slices, logits)
            labels = probabilities.argmax(axis=1)
            return Predictions(class_names, labels, probabilities, by_slice, join_slices(slices))

        return ModelClassifier(class_names, classify)

    def _known_classes(self):
        """The classes of training, then the other enrolled classes in the order of enrolment."""
        return tuple(dict.fromkeys((*self.class_names, *self._gallery.labels)))

    def _facts(self, class_names):
        gallery, trained = self._gallery, len(self.class_names)
        counts = np.zeros(len(class_names), int)
        counts[:trained] = self.settings.class_counts
        centres = np.zeros((len(class_names), self.centres.shape[1]))
        centres[:trained] = self.centres
        places = {name: number for number, name in enumerate(class_names)}
        labels = np.array([places.get(label, -1) for label in gallery.labels], int)
        num_slices, scale = self.settings.network.num_slices, self.logit_scale
        faces = gallery.embeddings, labels
        return Facts(
            class_names, counts, centres, *faces, num_slices, scale, self.settings.has_head
        )


def _check_images(images, boxes):
    if not images:
        raise UserError('expected at least one image, found none')
    if boxes is not None and len(boxes) != len(images):
        raise UserError(f'boxes: expected {len(images)}, one for each image, found {len(boxes)}')
