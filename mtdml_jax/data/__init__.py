"""Data sets (TFDS builders), P x K sampling, augmentation and the input pipeline."""
