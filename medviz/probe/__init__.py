"""The probe: the only code that touches a model."""

from medviz.probe.layers import Layer
from medviz.probe.probe import Probe

__all__ = ["Layer", "Probe"]
