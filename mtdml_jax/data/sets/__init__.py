"""The data sets: one TFDS builder a module. Importing this package registers them all with TFDS."""

from mtdml_jax.data.sets import (  # noqa: F401
    affectnet,
    fer2013,
    folder,
    jaffe,
    oulu_casia,
    raf_db,
    sfew,
    synthetic_faces,
)
