"""The files of the demo: pictures, a movie, maps and scans in patient space, a TensorBoard log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor
from tqdm import tqdm

import medviz
from medviz.attribution import Attribution
from medviz.demo.scan import Lesion
from medviz.files import atomic, check_folder
from medviz.image import Image
from medviz.rendering import Rendering

_SCAN, _LESION, _TRUTH = "scan-planted.nii.gz", "scan-lesion.nii.gz", "scan-lesion.png"
_MAP = "map.nii.gz"
_WINDOW = (0.0, 950.0)  # the usual percentiles would burn a bright lesion out
_LOG, _MARK = "tensorboard", ".medviz-demo"  # the mark ends the names of the demo's own logs
_PLANES = "planes.png"
_PICTURES = {
    _PLANES: ("medviz-xai/planes", "medviz-xai/png"),
    "blend.gif": ("medviz-xai/blend", "medviz-xai/gif"),
    "sheet.png": ("medviz-xai/matshow3d", "medviz-xai/png"),
}


@attrs.frozen
class Files:
    """Where the demo writes.

    Args:
        folder: made if it is missing; files of other names in it are left alone.
        overwrite: replace the files of an earlier run.
        progress: show a bar on stderr, where that is a terminal.
    """

    folder: Path
    overwrite: bool
    progress: bool

    def check(self, methods: Sequence[str]) -> None:
        """Refuse, before the network runs, what could not be written in the end.

        Raises:
            FileExistsError: a file exists and may not be replaced.
            NotADirectoryError: the folder, or that of the log, is a file.
            PermissionError: nothing can be written there.
        """
        for folder in (self.folder, self.folder / _LOG):
            check_folder(folder)
        made = [*pictures(methods), *((method, _MAP) for method in methods)]
        names = [_SCAN, _LESION, _TRUTH, *(f"{method}-{ending}" for method, ending in made)]
        existing = [path for path in (self.folder / name for name in names) if path.exists()] + self._logs()
        if existing and not self.overwrite:
            raise FileExistsError(
                f"{str(existing[0])!r} exists already; choose another folder, or overwrite=True (--overwrite)."
            )

    def write(self, maps: Sequence[Attribution], planted: Image, lesion: Lesion) -> Iterator[Path]:
        """Write everything; yield each path when it is there."""
        yield self._write_scan(_SCAN, planted.data[0], planted)
        yield self._write_scan(_LESION, lesion.mask.float(), planted)
        yield self._sink("medviz-xai/png", _TRUTH)(_outline(planted, lesion))
        for one in maps:
            yield self._sink("medviz-xai/nifti", f"{one.method}-{_MAP}")(one)
        drawn: dict[str, Rendering] = {}
        map_of = {one.method: one for one in maps}
        for method, ending in tqdm(
            pictures(list(map_of)), desc="pictures", leave=False, disable=None if self.progress else True
        ):
            renderer, sink = _PICTURES[ending]
            rendering: Any = medviz.get_renderer(renderer, window=_WINDOW)(map_of[method])
            drawn[f"{method}/{Path(ending).stem}"] = rendering
            yield self._sink(sink, f"{method}-{ending}")(rendering)
        yield self._write_log(drawn)

    def _sink(self, sink: str, name: str) -> Any:
        template = str(self.folder / name).replace("{", "{{").replace("}", "}}")  # a folder may hold braces
        return medviz.get_sink(sink, path=template, overwrite=self.overwrite)

    def _write_scan(self, name: str, values: Tensor, image: Image) -> Path:
        import nibabel

        kind: Any = nibabel.Nifti1Image
        file = kind(values.numpy(), image.affine)
        file.header.set_xyzt_units(xyz="mm")
        with atomic(self.folder / name, self.overwrite) as part:
            file.to_filename(part)
        return self.folder / name

    def _write_log(self, drawn: dict[str, Rendering]) -> Path:
        from torch.utils.tensorboard import SummaryWriter

        earlier = self._logs()
        with SummaryWriter(str(self.folder / _LOG), filename_suffix=_MARK) as writer:
            sink = medviz.get_sink("medviz-xai/tensorboard", writer=writer)
            for tag, rendering in drawn.items():
                sink(rendering, tag=tag)
        for log in earlier:
            log.unlink()
        return self.folder / _LOG

    def _logs(self) -> list[Path]:
        return sorted((self.folder / _LOG).glob(f"*{_MARK}"))


def pictures(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return method and file ending of each picture: planes of every map, movie and sheet of the first only.

    The maps of the demo look much alike, and a movie or a sheet of each would double the time that it takes.
    """
    return [(method, ending) for method in methods for ending in _PICTURES if ending == _PLANES or method == methods[0]]


def _outline(planted: Image, lesion: Lesion) -> Any:
    """Draw what the maps should show: the outline of the lesion, and nothing laid over it."""
    affine = None if planted.affine is None else planted.affine[None]
    truth = Attribution(
        lesion.coverage[None, None], planted.data[None], affine=affine, provenance={"method": "planted lesion"}
    )
    outline = {"voxel": lesion.center, "contour": 0.5, "crosshair": False}
    return medviz.get_renderer("medviz-xai/planes", window=_WINDOW, **outline)(truth)
