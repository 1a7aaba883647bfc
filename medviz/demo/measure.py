"""How well a map points at the lesion that was planted."""

from __future__ import annotations

import attrs
import numpy as np
from torch import Tensor

from medviz.attribution import Attribution
from medviz.demo.scan import Lesion, distances_mm


@attrs.frozen
class Localisation:
    """What one map says of where the lesion is.

    Args:
        distance_mm: from the map's largest value to the lesion's centre.
        inside: the share of the map's mass that lies in the lesion, in [0, 1]; 0 for a map of zeros.
        volume_share: the lesion's share of the image's volume: what a map that points nowhere would have inside.
    """

    distance_mm: float
    inside: float
    volume_share: float

    @property
    def gain(self) -> float:
        """How many times more mass lies inside than a map that points nowhere would have there."""
        return self.inside / self.volume_share


def localise(values: Tensor, affine: np.ndarray, lesion: Lesion) -> Localisation:
    """Hold one non-negative map `(*S)` on the image's grid against the lesion; a map of zeros has no peak: infinity.

    Args:
        values: the map; high means important.
        affine: (4, 4), the image's.
        lesion: what was planted.

    Raises:
        ValueError: the map lies on another grid or has negative values.
    """
    mask = lesion.mask
    if values.shape != mask.shape or (values < 0).any():
        raise ValueError(
            f"`values` {tuple(values.shape)} must be non-negative on the lesion's grid {tuple(mask.shape)}."
        )
    share = float(mask.double().mean())
    total = float(values.double().sum())
    if not total:
        return Localisation(float("inf"), 0.0, share)
    distance = distances_mm(affine, mask.shape, lesion.center).flatten()[int(values.argmax())]
    return Localisation(float(distance), float(values[mask].double().sum()) / total, share)


def measure(attribution: Attribution, lesion: Lesion) -> Localisation:
    """Hold the one-channel map of one image, with an affine, against the lesion.

    Raises:
        ValueError: several images or channels, no affine, or negative values.
    """
    if len(attribution) != 1 or attribution.values.shape[1] != 1 or attribution.affine is None:
        shape = tuple(attribution.values.shape)
        raise ValueError(f"`attribution` has the shape {shape}; expected (1, 1, *S) and an affine.")
    return localise(attribution.values[0, 0], attribution.affine[0], lesion)
