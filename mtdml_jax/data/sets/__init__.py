"""The data sets: one TFDS builder in each module. Importing this package registers them with TFDS."""

from mtdml_jax.data.sets import (  # noqa: F401
    affectnet,
    ck_plus,
    digits,
    fer2013,
    ferplus,
    folder,
    image_list,
    jaffe,
    mmi,
    oulu_casia,
    raf_db,
    sfew,
    synthetic_faces,
)
