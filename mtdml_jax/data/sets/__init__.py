"""The data sets: one TFDS builder a module. Importing this package registers them all with TFDS."""

from mtdml_jax.data.sets import (  # noqa: F401
    ck_plus,
    fer2013,
    ferplus,
    folder,
    mmi,
    raf_db,
    synthetic_faces,
)
