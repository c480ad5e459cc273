"""Many kinds of images: every prepared image can be used for training, with the pixels of Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from face_trees import data_config, warnings_of, write_corrupt
from PIL import Image, ImageOps

from mtdml_jax.data.decode import decode_image
from mtdml_jax.data.pipeline import eval_batches, load_split

NOISE = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
RGB = Image.fromarray(NOISE).resize((23, 17), Image.Resampling.BICUBIC)
GREY, PALETTE = RGB.convert('L'), RGB.convert('P')
SIXTEEN_BITS = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257 + 5)
# File name -> (picture, options for saving it).
KINDS = {
    'rgb.png': (RGB, {}),
    'grey.png': (GREY, {}),
    'grey_alpha.png': (GREY.convert('LA'), {}),
    'rgba.png': (RGB.convert('RGBA'), {}),
    'palette.png': (PALETTE, {}),
    'palette_transparent.png': (PALETTE, {'transparency': bytes(range(256))}),
    'palette_one_transparent.png': (PALETTE, {'transparency': 3}),
    'one_bit.png': (RGB.convert('1'), {}),
    'sixteen_bits.png': (SIXTEEN_BITS, {}),
    'rgb.jpg': (RGB, {'quality': 90}),
    'grey.jpeg': (GREY, {}),
    'subsampled.jfif': (RGB, {'subsampling': '4:2:0'}),
    'progressive.JPG': (RGB, {'progressive': True}),
    'cmyk.jpg': (RGB.convert('CMYK'), {}),
    'ycck.jpg': (RGB.convert('CMYK'), {}),
    'rgb.tif': (RGB, {}),
    'lzw.tiff': (GREY, {'compression': 'tiff_lzw'}),
    'sixteen_bits.tif': (SIXTEEN_BITS, {}),
    'cmyk.tif': (RGB.convert('CMYK'), {}),
    'rgb.bmp': (RGB, {}),
    'palette.bmp': (PALETTE, {}),
    'palette.gif': (PALETTE, {'transparency': 3}),
    'frames.gif': (PALETTE, {'save_all': True, 'append_images': [PALETTE.rotate(180)]}),
    'lossless.webp': (RGB, {'lossless': True}),
    'alpha.webp': (RGB.convert('RGBA'), {}),
    'grey.pgm': (GREY, {}),
    'one_pixel.png': (RGB.crop((3, 3, 4, 4)), {}),
    'one_pixel.gif': (PALETTE.crop((3, 3, 4, 4)), {}),
    'long.png': (RGB.resize((3000, 10)), {}),
    'long.jpg': (RGB.resize((3000, 10)), {}),
}
TURNED = [f'{i}.{kind}' for kind in ('jpg', 'png', 'webp', 'tif') for i in range(10)]
BROKEN = ['cut.png', 'cut.jpg', 'cut.tif', 'empty.png', 'text.png', 'floats.tif', 'photo.heic']


def write_kinds(folder):
    """Writes the files of KINDS, TURNED (EXIF orientations, where 0 and 9 are invalid) and BROKEN."""
    folder.mkdir(parents=True)
    for name, (image, options) in KINDS.items():
        image.save(folder / name, **options)
    content = (folder / 'cmyk.jpg').read_bytes()
    # The last byte of Adobe's marker is the colour transform: 0 for CMYK, 2 for YCCK.
    end = content.index(b'Adobe') + 11
    (folder / 'ycck.jpg').write_bytes(content[:end] + b'\2' + content[end + 1 :])
    for name in TURNED:
        exif = Image.Exif()
        exif[274] = int(name[0])
        RGB.save(folder / name, exif=exif)
    for name in BROKEN[:3]:
        write_corrupt(folder / name)
    (folder / 'empty.png').touch()
    (folder / 'text.png').write_text('not an image')
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / 'floats.tif')
    (folder / 'photo.heic').write_bytes(b'\0\0\0\x18ftypheic')


def pixels_of_pillow(path, channels):
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode == 'I;16':
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if 'transparency' in image.info:
        image = image.convert('RGBA')
    if image.mode not in ('1', 'L', 'LA'):
        image = image.convert('RGB')
    image = image.convert('L' if channels == 1 else 'RGB')
    return np.asarray(image).reshape(image.height, image.width, channels)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('kinds')
    write_kinds(root / 'faces' / 'any')
    return root / 'faces'


@pytest.fixture(scope='module', params=[True, False], ids=['in_memory', 'on_disk'])
def split(root, request):
    return load_split(data_config('folder', root, in_memory=request.param), 'train')


def test_broken_images_are_left_out_and_named_and_no_others(root, caplog):
    # The subjects differ from those of the fixture, so this is another prepared data set.
    split = load_split(data_config('folder', root, subject_pattern='a', in_memory=False), 'train')
    assert sorted(split.file_names) == sorted(f'any/{name}' for name in (*KINDS, *TURNED))
    (unusable,) = warnings_of(caplog)
    assert f'{len(BROKEN)} of ' in unusable
    assert 'missing or cannot be decoded: any/cut.jpg, any/cut.png, any/cut.tif, ' in unusable


@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_has_the_pixels_of_pillow(root, split, channels):
    assert len(split.file_names) == len(KINDS) + len(TURNED)
    for row, name in enumerate(split.file_names):
        found = decode_image(split.encoded_image(row), channels)
        expected = pixels_of_pillow(root / name, channels)
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_goes_through_the_pipeline(root, split, channels):
    data = data_config('folder', root, channels=channels, image_size=6)
    (batch,) = eval_batches(split, data, len(split.file_names))
    row = split.file_names.index('any/rgb.png')
    pixels = tf.cast(pixels_of_pillow(root / 'any/rgb.png', channels), tf.float32)
    expected = tf.image.resize(pixels / 255, (6, 6), antialias=True)
    np.testing.assert_allclose(batch['image'][row], (expected - 0.5) / 0.25, atol=1e-5)
    assert np.isfinite(batch['image']).all()
