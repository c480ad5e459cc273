"""The data sets: one TFDS builder a module. Importing this package registers them all with TFDS."""

from mtdml_jax.data.sets import fer2013, folder, raf_db, synthetic_faces  # noqa: F401
