"""From a batch of images to the pooled features of every layer."""

from probekit.encoders.encoder import Encoder
from probekit.encoders.loading import load_encoder
from probekit.encoders.preparation import Normalisation, Preparation

__all__ = ["Encoder", "Normalisation", "Preparation", "load_encoder"]
