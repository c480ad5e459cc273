"""The backbones, by the names that config.model.backbone accepts."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from mtdml_jax.models import dlib_resnet, ir, mobilenet, resnet


class Backbone(NamedTuple):
    """A network from images to features, without a classifier.

    Attributes:
      make: function (model, dtype=, axis_name=) -> module from images [B, H, W, channels] and `train=`
        to features, float32 [B, F]. Its arguments are the section `model` of the config, the type of
        the computation, and the mapped axis over which BatchNorm averages. It raises UserError if a
        setting is not supported.
      torch_names: function (model) -> {name of an array in PyTorch checkpoints: its path in the module's
        variables}, with the first convolution's kernel first; None if there are no checkpoints.
      advise: function (shape of that kernel in a file, its shape here) -> settings with which the shapes
        agree, such as 'config.model.stem=small'.
      family: family of pretrained weights that has this backbone alone, see `model.pretrained_family`;
        '' if there is none.
      to_grey: function (arrays of a file for three channels, by those names) -> arrays with which a grey
        image in one channel has the same features; None if `data.channels` must be those of the file.
    """

    make: Callable[..., nn.Module]
    torch_names: Callable[[Any], dict[str, tuple[str, ...]]] | None = None
    advise: Callable[[tuple[int, ...], tuple[int, ...]], list[str]] = lambda found, expected: []
    family: str = ''
    to_grey: Callable[[Any], dict[str, Any]] | None = None


_RESNET = Backbone(resnet.make_resnet, resnet.torch_names, resnet.advise)
BACKBONES = {
    **dict.fromkeys(resnet.RESNETS, _RESNET),
    'mobilenet_v3_small': Backbone(mobilenet.make_mobilenet, mobilenet.torch_names),
    'ir50': Backbone(ir.make_ir, ir.torch_names, family='face_evolve'),
    'dlib_resnet': Backbone(
        dlib_resnet.make_dlib_resnet,
        dlib_resnet.torch_names,
        dlib_resnet.advise,
        family='dlib',
        to_grey=dlib_resnet.to_grey,
    ),
}
