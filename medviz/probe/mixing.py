"""Whether rows that run together change each other's output, which perturbed copies must not do."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from medviz.errors import first_line
from medviz.probe.failures import is_out_of_memory
from medviz.probe.guard import untouched
from medviz.probe.models import modules
from medviz.probe.runner import Runner
from medviz.tensors import of_each_output, wide

_log = logging.getLogger("medviz")
_STEPS = (8, 4, 2, 1)  # every so manieth voxel along each axis: whether rows are mixed does not depend on their size
_LEAST = 256  # voxels: of fewer, all may lie where nothing changes, such as below the bend of a ReLU
# where in the range of an image its copy's values lie: not about the middle, for another mean; and narrower, where an
# image has so few values that the first leaves them all
_RANGES = ((0.1, 0.7), (0.2, 0.4))
_ROUNDING = {torch.float64: 1e-12, torch.float32: 5e-6}  # of each output, on a CPU
_ELSEWHERE = 2e-2  # the same: an accelerator takes another algorithm, and precision, for each number of rows
_FRACTION, _ROUGH = 1e-3, 0.1  # of how much an output differs between image and copy; where rounding is coarse


def has_norms_over_rows(model: nn.Module) -> bool:
    """Return whether there is batch-norm without running statistics: a row's output depends on the others then."""
    norms = [m for m in modules(model) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return any(m.running_mean is None and m.running_var is None for m in norms)


def mixes_rows(runner: Runner, images: Tensor) -> bool:
    """Return whether an image's output depends on what runs beside it, or only one image can run at a time.

    A network may divide by the largest value of all that it gets, or call `batch_norm` with the statistics of the
    batch; nothing but its output tells. One of the images, and a narrowed copy of it, whose values all occur in it, are
    run alone and side by side. Of both, only every eighth voxel is taken where the network runs on so few.

    A network whose answers differ from call to call cannot be asked, nor can one that takes no narrowed copy.

    Args:
        runner: the model.
        images: `(B, C, *S)`; the one with the widest range of values is asked about.
    """
    if has_norms_over_rows(runner.model):
        return True
    values = images.flatten(1)
    which = int((values.amax(1) - values.amin(1)).argmax())
    with untouched(modules(runner.model)), torch.no_grad():  # it may keep something that suits the smaller images
        for step in _STEPS:
            every = (slice(which, which + 1), ..., *[slice(None, None, step)] * (images.ndim - 2))
            small = images[every]  # type: ignore[index]
            if small[0, 0].numel() < _LEAST and step > 1:
                continue
            mixes = _Asked(runner, small, which).answer()
            if mixes is not None:
                return mixes
    return False


class _Asked:
    """One question to a model.

    Args:
        runner: the model.
        image: `(1, C, *S)`.
        which: its position among the images, for the model arguments.
    """

    def __init__(self, runner: Runner, image: Tensor, which: int) -> None:
        self._runner, self._image, self._which = runner, image, which

    def answer(self) -> bool | None:
        """Return whether rows are mixed; None: this image does not tell."""
        copy = _narrowed(self._image)
        if torch.equal(copy, self._image):
            return None
        try:
            alone = torch.cat([self._run(self._image), self._run(copy)])
        except Exception:
            return None  # too small for this network, for example
        try:
            together = self._run(torch.cat([self._image, copy]))
        except Exception as err:
            given = self._runner.arguments
            if is_out_of_memory(err) or given.args or given.kwargs:
                return None  # an argument may have a row for each image: to run them one by one, each needs its own
            _log.info("images are run one by one, for the network takes no two images at once: %s", first_line(err))
            return True
        if not torch.equal(alone.isfinite(), together.isfinite()):
            return self._said(self._is_steady(copy, alone[1:]))
        if not alone.isfinite().all():
            return None
        if self._is_same(together, alone):
            return None if torch.equal(*alone) else False  # None: it says the same of every image
        return self._said(self._is_steady(copy, alone[1:]))

    def _run(self, rows: Tensor) -> Tensor:
        index = torch.full((len(rows),), self._which, device=rows.device)
        return wide(self._runner.run(rows, index))

    def _is_steady(self, copy: Tensor, alone: Tensor) -> bool:
        """Return whether the network says the same of the copy once more."""
        try:
            return torch.allclose(self._run(copy), alone, rtol=1e-5, atol=1e-30, equal_nan=True)
        except Exception:
            return False

    def _said(self, mixes: bool) -> bool:
        if mixes:
            _log.info("images are run one by one, for what the network says of one depends on those beside it")
        return mixes

    def _is_same(self, together: Tensor, alone: Tensor) -> bool:
        """Return whether no output of one differs more than rounding, or than a fraction of what images make of it."""
        rounding = self._runner.tolerance(alone, _ROUNDING) if alone.device.type == "cpu" else _ELSEWHERE
        fraction = _FRACTION if rounding in _ROUNDING.values() else _ROUGH
        error, size, change = map(of_each_output, (together - alone, alone, alone[:1] - alone[1:]))
        return bool((error <= (rounding * size).maximum(fraction * change)).all())


def _narrowed(image: Tensor) -> Tensor:
    """Return a copy of an image whose values, channel by channel, lie in a part of their range."""
    values = image.flatten(2)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    narrowed = image
    for begins, ends in _RANGES:
        least, most = (_nearest(values, (1 - part) * low + part * high) for part in (begins, ends))
        narrowed = values.clamp(least, most).view_as(image)
        if not torch.equal(narrowed, image):
            break
    return narrowed


def _nearest(values: Tensor, wanted: Tensor) -> Tensor:
    """Return the value of each channel that lies nearest to the one that is wanted."""
    return values.gather(-1, (values - wanted).abs().argmin(-1, keepdim=True))
