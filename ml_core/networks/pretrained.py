"""Networks of segmentation_models_pytorch, whose encoders may start from weights of a hub. Importing it takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import segmentation_models_pytorch as smp
from torch import nn

log = logging.getLogger(__name__)


def make(
    factory: str, channels: int, classes: int, *, encoder: str, encoder_weights: str, options: Mapping[str, object]
) -> tuple[nn.Module, str]:
    """The network, and a message for the user where the encoder's weights are not to be had ("" otherwise).

    factory: the class's name. encoder_weights: "imagenet" or "none". options: more arguments of the class.
    """
    make_network = getattr(smp, factory)
    arguments = {"encoder_name": encoder, "in_channels": channels, "classes": classes, **options}
    if encoder_weights == "none":
        return make_network(encoder_weights=None, **arguments), ""
    try:
        return make_network(encoder_weights=encoder_weights, **arguments), ""
    except Exception as error:  # the hub's client raises many kinds; each means that the weights are not to be had
        log.warning("no %s weights for %s: %s", encoder_weights, encoder, error)
        message = (
            f"The {encoder_weights} weights of {encoder} could not be loaded ({type(error).__name__}), so the training "
            "started from random weights. Check the connection to the model hub, or choose random start weights."
        )
        return make_network(encoder_weights=None, **arguments), message
