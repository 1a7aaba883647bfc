"""Captum's attribution methods as explainers: `medviz.get_explainer("captum.deeplift", baseline="min")`.

Every class here is made from one row of `medviz_captum.table.METHODS`.
"""

from __future__ import annotations

from medviz_captum.bridge import CaptumExplainer, explainer
from medviz_captum.table import METHODS

globals().update({name: explainer(name, method, __name__) for name, method in METHODS.items()})

__all__ = ["METHODS", "CaptumExplainer", *METHODS]
