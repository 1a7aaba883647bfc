"""Whether rows that run together change each other's output, which perturbed copies must not do."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from medviz.errors import first_line
from medviz.probe.failures import is_out_of_memory
from medviz.probe.guard import untouched
from medviz.probe.models import modules
from medviz.probe.runner import Runner
from medviz.tensors import wide

_log = logging.getLogger("medviz")
_STEPS = (8, 4, 2, 1)  # every so manieth voxel along each axis: whether rows are mixed does not depend on their size
_LEAST = 256  # voxels: of fewer, all may lie where nothing changes, such as below the bend of a ReLU
_BEGINS, _ENDS = 0.2, 0.4  # where in the range of an image its copy's values lie: beside the middle, for another mean
_TOLERANCE = 1e-3  # of what the other image makes of the output
_ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6}  # of the largest output, on a CPU
_ELSEWHERE = 2e-2  # an accelerator takes another algorithm, and precision, for each number of rows


def has_norms_over_rows(model: nn.Module) -> bool:
    """Return whether there is batch-norm without running statistics: a row's output depends on the others then."""
    norms = [m for m in modules(model) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(m.running_mean is None and m.running_var is None for m in norms)


def mixes_rows(runner: Runner, image: Tensor) -> bool:
    """Return whether an image's output depends on what runs beside it, or only one image can run at a time.

    A network may divide by the largest value of all that it gets, or call `batch_norm` with the statistics of the
    batch; nothing but its output tells. A narrowed copy of the image, whose values all occur in it, is run alone and
    beside the image. Of both, only every eighth voxel is taken where the network runs on so few.

    A network whose answers differ from call to call cannot be asked, nor can one that takes no narrowed copy.

    Args:
        runner: the model.
        image: `(1, C, *S)`.
    """
    if has_norms_over_rows(runner.model):
        return True
    with untouched(modules(runner.model)), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of images so small, which are none of the caller's
        for step in _STEPS:
            every = (..., *[slice(None, None, step)] * (image.ndim - 2))
            small = image[every]  # type: ignore[index]
            if small[0, 0].numel() < _LEAST and step > 1:
                continue
            mixes = _Asked(runner, small).answer()
            if mixes is not None:
                return mixes
    return False


class _Asked:
    """One question to a model.

    Args:
        runner: the model.
        image: `(1, C, *S)`.
    """

    def __init__(self, runner: Runner, image: Tensor) -> None:
        self._runner, self._image = runner, image

    def answer(self) -> bool | None:
        """Return whether rows are mixed; None: this image does not tell."""
        other = _narrowed(self._image)
        if torch.equal(other, self._image):
            return None
        try:
            alone = self._run(other)[0]
        except Exception:
            return None  # too small for this network, for example
        if not alone.isfinite().all():
            return None
        try:
            first, beside = self._run(torch.cat([self._image, other]))  # after it: `x[0]` may decide for all
        except Exception as err:
            given = self._runner.arguments
            if is_out_of_memory(err) or given.args or given.kwargs:
                return None  # an argument may have a row for each image: to run them one by one, each needs its own
            _log.info("images are run one by one, for the network takes no two images at once: %s", first_line(err))
            return True
        enough = self._enough(alone, first)
        if _difference(beside, alone) <= enough:
            return None if torch.equal(beside, first) else False  # None: it says the same of every image
        if not _difference(self._run(other)[0], alone) <= enough:
            return False  # it never says the same
        _log.info("images are run one by one, for what the network says of an image depends on those beside it")
        return True

    def _run(self, rows: Tensor) -> Tensor:
        return wide(self._runner.run(rows, torch.zeros(len(rows), dtype=torch.long, device=rows.device)))

    def _enough(self, alone: Tensor, another: Tensor) -> float:
        """Return up to which difference two outputs are the same, where the network says `another` of the image."""
        rounding = self._runner.tolerance(alone, _ROUNDING) if alone.device.type == "cpu" else _ELSEWHERE
        return max(rounding * float(alone.abs().max()), _TOLERANCE * _difference(another, alone))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _narrowed(image: Tensor) -> Tensor:
    """Return a copy of an image whose values, channel by channel, lie in a part of their range."""
    values = image.flatten(2)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    least, most = (_nearest(values, (1 - part) * low + part * high) for part in (_BEGINS, _ENDS))
    return values.clamp(least, most).view_as(image)


def _nearest(values: Tensor, wanted: Tensor) -> Tensor:
    """Return the value of each channel that lies nearest to the one that is wanted."""
    return values.gather(-1, (values - wanted).abs().argmin(-1, keepdim=True))
