"""From a batch of images to the pooled features of every layer."""

from probekit.encoders.loading import load_encoder
from probekit.encoders.preparation import Normalisation, Preparation
from probekit.encoders.protocol import Encoder

__all__ = ["Encoder", "Normalisation", "Preparation", "load_encoder"]
