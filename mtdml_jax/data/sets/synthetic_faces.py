"""TFDS builder of drawn faces with 7 expressions. Each person is in one split only.

The data set needs no download: `face_drawing` draws the pictures.
"""

import types

import numpy as np
import tensorflow_datasets as tfds

from mtdml_jax.data import face_drawing
from mtdml_jax.data.image_files import face_features


class SyntheticFaces(tfds.core.GeneratorBasedBuilder):
    """Grey 48x48 faces drawn from facial action units.

    Every person shows every expression equally often, each time with another pose, light and noise.
    """

    VERSION = tfds.core.Version('1.0.0')

    SEED = 0
    # The numbers of the persons in each split.
    IDENTITIES = types.MappingProxyType(
        {'train': range(430), 'validation': range(430, 502), 'test': range(502, 602)}
    )
    PICTURES_PER_EXPRESSION = 2  # Per person.

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description='Drawn faces of 7 expressions over random persons, poses, light and noise.',
            features=face_features(face_drawing.EXPRESSIONS, channels=1),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split, identities)
            for split, identities in self.IDENTITIES.items()
        }

    def _generate_examples(self, split, identities):
        expressions = list(face_drawing.EXPRESSIONS)
        for identity in identities:
            for picture in range(self.PICTURES_PER_EXPRESSION * len(expressions)):
                # Two expressions of a person have different picture numbers, so their pose and noise
                # differ.
                expression = expressions[picture % len(expressions)]
                face = face_drawing.draw_face(self.SEED, identity, expression, picture)
                subject = f'id{identity:04d}'
                file_name = f'{split}/{subject}_{expression}_{picture}.png'
                yield (
                    file_name,
                    {
                        'image': face[..., np.newaxis],
                        'label': expression,
                        'subject': subject,
                        'file_name': file_name,
                    },
                )
