"""TFDS builder of scikit-learn's handwritten digits, which need no download."""

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data.image_files import face_features


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey 8x8 images of the digits 0 to 9, by 13 writers.

    A fixed random order divides the images of each digit into 60 % train, 20 % validation and 20 % test.
    The data set does not say who wrote which image.

    References:
      Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository
      1998 (the test part).
    """

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='Handwritten digits, 8x8 grey values.',
            features=face_features([str(digit) for digit in range(10)], channels=1),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        # Every run imports this module, and scikit-learn takes a second.
        from sklearn import datasets

        images, labels = datasets.load_digits(return_X_y=True)
        # The values are from 0 to 16.
        images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        shuffled = np.random.default_rng(0).permutation(len(labels))
        by_digit = [shuffled[labels[shuffled] == digit] for digit in range(10)]
        shares = {'train': (0.0, 0.6), 'validation': (0.6, 0.8), 'test': (0.8, 1.0)}
        return {
            split: self._generate_examples(
                images,
                labels,
                [
                    row
                    for rows in by_digit
                    for row in rows[round(first * len(rows)) : round(last * len(rows))]
                ],
            )
            for split, (first, last) in shares.items()
        }

    def _generate_examples(self, images, labels, rows):
        for row in rows:
            name = f'digit{row:04d}'
            label = str(labels[row])
            yield name, {'image': images[row], 'label': label, 'subject': '', 'file_name': name}
