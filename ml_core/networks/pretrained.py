"""Build networks of segmentation_models_pytorch, whose encoders may start from weights of a model hub.

Importing that library takes seconds, so this module is imported only when a network is built.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import segmentation_models_pytorch as smp
from torch import nn

log = logging.getLogger(__name__)


def make(
    factory: str, channels: int, classes: int, *, encoder: str, encoder_weights: str, options: Mapping[str, object]
) -> tuple[nn.Module, str]:
    """Build a network. Returns it with a message for the user, which is "" if the encoder's weights could be loaded.

    `factory` is the name of the class, and `options` are further arguments of it. `encoder_weights` is "imagenet" or
    "none".
    """
    make_network = getattr(smp, factory)
    arguments = {"encoder_name": encoder, "in_channels": channels, "classes": classes, **options}
    if encoder_weights == "none":
        return make_network(encoder_weights=None, **arguments), ""
    try:
        return make_network(encoder_weights=encoder_weights, **arguments), ""
    # The client of the hub raises many kinds of errors. Each means that the weights cannot be loaded.
    except Exception as error:
        log.warning("no %s weights for %s: %s", encoder_weights, encoder, error)
        message = (
            f"The {encoder_weights} weights of {encoder} could not be loaded ({type(error).__name__}), so the training "
            "started from random weights. Check the connection to the model hub, or choose random start weights."
        )
        return make_network(encoder_weights=None, **arguments), message
