"""Occlusion, window by window, beside MONAI with the same windows, and beside bare passes where nothing can be saved.

A whole 3-D map takes minutes on few cores, so that on a CPU rows of windows through the middle of the image are
compared, from border to border along the last axis. That is no advantage for medviz: nearer to the border less of the
image is within reach of a window, and the clean pass and the proof, made once for each map, are shared by few windows.
An accelerator makes whole maps.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.agreement import agree, error, said
from benchmarks.networks import NETWORKS, inference, own
from benchmarks.options import Options
from benchmarks.rows import Case, Row
from benchmarks.timing import Spread, Way, interleaved, medians, ratio
from medviz.explainers.occlusion import Occlusion
from medviz.occluders.constant import Constant

Region = tuple[tuple[int, int], ...]

MASK, STEP = 16, 8
_BATCH = 16  # copies in one pass on a CPU, for both: MONAI's default
_BATCH_ON_ACCELERATORS = 64  # for both: few rows leave an accelerator idle
_TOLERANCE = 1e-5  # of the largest score behind a window: nothing is timed above it
_CASES = [  # network, (edge, rows of windows), the same when quick
    ("3-D ResNet18", (96, 5), (40, 4)),
    ("2-D ResNet18", (224, 9), (96, 2)),
    ("3-D DenseNet121", (96, 5), (48, 4)),
    ("2-D DenseNet121", (224, 9), (96, 2)),
]


class Untraceable(nn.Module):
    """A network around which Python decides, from a value, what runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        result: Tensor = self.inner(x) if x.mean() > -1e9 else self.inner(-x)
        return result


def cases(options: Options) -> Iterator[Case]:
    """Return two cases for each network, time and error, and one for a network that cannot be traced."""
    for name, full, small in _CASES:
        edge, rows = small if options.quick else full
        size = NETWORKS[name].size(edge)
        yield Case(f"{name}, {size}", partial(_compare, name, edge, rows, options), f"occlusion {name}")
    for name, *_ in _CASES[1 if options.quick else 0 :]:  # the first is the slowest
        yield Case(f"{name}, error", partial(_exact, name, options), "occlusion exact")
    edge = 96 if options.quick else 128
    yield Case("a model that cannot be traced", partial(_untraceable, edge, options), "occlusion untraceable")


def region(edge: int, nd: int, rows: int) -> Region:
    """Return the voxels whose map takes `rows` rows of windows through the middle: windows reach half of one beyond."""
    extent = 2 + STEP * (rows - 1)
    middle, low = edge // 2 - 1, (edge - extent) // 2
    return ((middle, middle + 2),) * (nd - 2) + ((low, low + extent), (0, edge))


class _Ear(logging.Handler):
    """Keep why whole passes were made."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("whole passes"):
            self.reasons.append(record.getMessage())


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what medviz logs where it does not work incrementally: a number must not hide that."""
    logger, ear = logging.getLogger("medviz"), _Ear()
    level, passed_on = logger.level, logger.propagate
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # not onto the terminal
    try:
        yield ear.reasons
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
        logger.propagate = passed_on


def _batch(device: str) -> int:
    return _BATCH if device == "cpu" else _BATCH_ON_ACCELERATORS


def _part(edge: int, nd: int, rows: int, device: str) -> Region:
    return region(edge, nd, rows) if device == "cpu" else ((0, edge),) * nd


def _ours(method: Occlusion, model: nn.Module, image: Tensor, batch: int, scores: bool = False) -> Tensor:
    """Return how much the score of class 0 falls, where it is looked at; or the scores, for a peer returns those."""
    made = method(model, image, 0, batch_size=batch)
    falls = made.values[(..., *(slice(low, high) for low, high in method.region or ()))]
    return made.scores[0] - falls if scores else falls


def _monai(model: nn.Module, image: Tensor, part: Region, batch: int) -> Way:
    try:
        from monai.visualize import OcclusionSensitivity
    except ImportError as err:
        raise RuntimeError("MONAI is not installed, and this is compared with it.") from err
    settings = {"mask_size": MASK, "n_batch": batch, "mode": 0.0, "overlap": 0.5}
    peer = OcclusionSensitivity(model, activate=False, verbose=False, **settings)
    box = [bound for pair in part for bound in pair]
    return lambda: torch.as_tensor(peer(image, b_box=box)[0])[:, :1].cpu()


def _compare(name: str, edge: int, rows: int, options: Options) -> Iterator[Row]:
    network = NETWORKS[name]
    model, image = network.model(options.device), network.image(edge, options.device)
    part = _part(edge, network.nd, rows, options.device)
    method, batch = Occlusion(MASK, 0.5, Constant(0.0), region=part), _batch(options.device)
    ours = partial(_ours, method, own(model), image, batch)
    theirs = _monai(own(model), image, part, batch)
    with heard() as reasons:
        found = agree({"medviz": ours(scores=True), "MONAI": theirs()}, _TOLERANCE)
    rounds = options.rounds(3)
    times = interleaved({"medviz": ours, "MONAI": theirs}, rounds, options.device, warm=True)
    windows = len(method.windows(image.shape[2:]))
    title = f"{name}, {network.size(edge)}, {windows} windows of {network.size(MASK)}, stride {STEP}"
    note = "; ".join([f"maps {said(found)}", f"{batch} copies in one pass", f"{rounds} rounds", *reasons])
    yield Row(f"occlusion {name}", title, ratio(times, "MONAI", "medviz"), medians(times), note)
    yield Row("occlusion error", f"{title}: maps", Spread(found, found, found), note="the scores behind the windows")


def _exact(name: str, options: Options) -> Iterator[Row]:
    """Falls of the score, incrementally and by whole passes, on an image small enough for double precision.

    In single precision a fall is the small difference of two large scores: what rounding makes of it is shown by whole
    passes through PyTorch's plain convolutions, beside those through the libraries for them.
    """
    network = NETWORKS[name]
    edge = {3: 40, 2: 96}[network.nd] if options.quick else {3: 64, 2: 192}[network.nd]
    part = region(edge, network.nd, 20 // (edge // STEP) + 1)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, image = network.model(options.device).to(dtype), network.image(edge, options.device).to(dtype)
        fast, slow = (Occlusion(MASK, 0.5, Constant(0.0), region=part, incremental=how) for how in (True, False))
        with heard() as reasons:
            with _always_incremental():
                made = _ours(fast, model, image, 2)  # 3-D convolutions in double precision unfold their input
            whole = _ours(slow, model, image, 2)
        found[dtype] = error(made, whole)
        if dtype == torch.float32:
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
                rounding = error(_ours(slow, model, image, 2), whole)
    worst = found[torch.float64]
    single = f"in float32 {found[torch.float32]:.0e}, where whole passes by other convolutions differ by {rounding:.0e}"
    note = "; ".join([f"against whole passes; {single}", *reasons])
    yield Row("occlusion exact", f"{name}, {network.size(edge)}: falls", Spread(worst, worst, worst), note=note)


@contextlib.contextmanager
def _always_incremental() -> Iterator[None]:
    """Let no clock decide, as one does on an accelerator."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _untraceable(edge: int, options: Options) -> Iterator[Row]:
    network = NETWORKS["2-D ResNet18"]
    model, image = Untraceable(network.model(options.device)), network.image(edge, options.device)
    part, batch = _part(edge, 2, 2, options.device), _batch(options.device)
    method = Occlusion(MASK, 0.5, Constant(0.0), region=part)
    copies = torch.cat([image] * len(method.windows(image.shape[2:])))

    def bare() -> list[Tensor]:
        return [inference(model, some) for some in (image, *copies.split(batch))]

    ours = partial(_ours, method, model, image, batch)
    theirs = _monai(own(model), image, part, batch)
    found = agree({"medviz": ours(scores=True), "MONAI": theirs()}, _TOLERANCE)
    rounds = options.rounds(9)
    times = interleaved({"medviz": ours, "bare passes": bare}, rounds, options.device)
    title = f"2-D ResNet18 in a module with a branch, {network.size(edge)}, {len(copies)} windows"
    note = f"bare: the clean image and its copies, made before; agrees with MONAI to {found:.0e}; {rounds} rounds"
    yield Row("occlusion untraceable", title, ratio(times, "medviz", "bare passes"), medians(times), note)
