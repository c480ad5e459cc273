"""What the families of pretrained weights need: the network, and the images that it was trained on."""

from typing import Any

from ml_collections import ConfigDict

# What dlib subtracts from red, green and blue in [0, 255]. It then divides by 256.
DLIB_MEANS = (122.782, 117.001, 104.298)
_DLIB = {
    'data.image_size': 150,
    'data.std': (256 / 255,),
    'model.backbone': 'dlib_resnet',
    'model.width_factor': 1.0,
    'model.batch_norm': 'recalibrated',
}
# Family -> key -> value. A family of several backbones does not choose one.
FAMILIES: dict[str, dict[str, Any]] = {
    # ResNets and MobileNetV3-small with torchvision's names.
    'torchvision': {
        'data.image_size': 224,
        'data.channels': 3,
        'data.mean': (0.485, 0.456, 0.406),
        'data.std': (0.229, 0.224, 0.225),
        'model.stem': 'imagenet',
        'model.width_factor': 1.0,
    },
    # IR-50 with face.evoLVe's names.
    'face_evolve': {
        'data.image_size': 112,
        'data.channels': 3,
        'data.mean': (0.5,),
        'data.std': (0.5,),
        'model.backbone': 'ir50',
        'model.stem': 'small',
        'model.width_factor': 1.0,
    },
    # dlib_face_recognition_resnet_model_v1.dat, and the same network for images of one channel.
    'dlib': {**_DLIB, 'data.channels': 3, 'data.mean': tuple(x / 255 for x in DLIB_MEANS)},
    'dlib_grey': {**_DLIB, 'data.channels': 1, 'data.mean': (sum(DLIB_MEANS) / 3 / 255,)},
}


def use_family(config: ConfigDict, name: str) -> None:
    """Sets `model.pretrained_family`, and each key of the family.

    A backbone that belongs to another family becomes ResNet-18.
    """
    others = {
        family['model.backbone'] for family in FAMILIES.values() if 'model.backbone' in family
    }
    if config.model.backbone in others:
        config.model.update(backbone='resnet18', batch_norm='batch')
    config.update_from_flattened_dict({'model.pretrained_family': name, **FAMILIES[name]})
