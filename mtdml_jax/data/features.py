"""What a record of every face data set holds."""

from collections.abc import Sequence

import tensorflow_datasets as tfds


def face_features(side: int, class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Features of grey faces: 'image' (PNG [side, side, 1]), 'label', 'subject', 'file_name'.

    Args:
      side: height and width in pixels.
      class_names: names of the labels 0, 1, ...
    """
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(side, side, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=list(class_names)),
            'subject': tfds.features.Text(),
            'file_name': tfds.features.Text(),
        }
    )
