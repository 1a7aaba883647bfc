"""Photographs and other pictures."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch

from medviz.hookspecs import Reader, hookimpl
from medviz.image import Image
from medviz.validators import one_of

_log = logging.getLogger("medviz")


@attrs.frozen(eq=False)
class ImageFile(Reader):
    """Read a PNG, JPEG or BMP picture: grey as `(1, H, W)`, colour as `(3, H, W)`, upright as its EXIF data say.

    Transparent pixels are laid over black. 16-bit grey keeps its depth. There is no affine.

    Args:
        scale: "unit": black is 0 and white is 1, as networks for photographs expect it; "stored": the numbers in the
            file, 0 to 255 or 0 to 65,535.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp")

    scale: str = attrs.field(default="unit", validator=one_of("unit", "stored"))

    @hookimpl
    def read(self, path: Path) -> Image:
        """Read one picture.

        Raises:
            ValueError: not a whole picture of one of these formats, or several pictures in one file.
        """
        pixels = _load(path)  # (H, W) or (H, W, 3)
        data = np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32)
        if self.scale == "unit":
            data /= np.iinfo(pixels.dtype).max
        return Image(torch.from_numpy(np.ascontiguousarray(data)), path=path)


def _load(path: Path) -> np.ndarray:
    from PIL import Image as PilImage
    from PIL import ImageOps

    try:
        with PilImage.open(path, formats=("PNG", "JPEG", "BMP")) as picture:
            if getattr(picture, "is_animated", False) and picture.format == "PNG":
                raise OSError(f"it holds {picture.n_frames} pictures; expected one.")
            stored = " ".join(str(tile[3]) for tile in picture.tile)  # Pillow's name of the layout in the file
            if ";16B" in stored and not picture.mode.startswith("I"):
                _log.warning("%s holds 16 bits for each colour; the upper 8 are read.", path)
            grey = picture.mode in ("1", "L", "LA") or stored.startswith("LA")
            return _pixels(ImageOps.exif_transpose(picture), grey)
    except PermissionError:
        raise
    except (OSError, SyntaxError, EOFError, struct.error, PilImage.DecompressionBombError) as err:
        raise ValueError(f"{str(path)!r} cannot be read as a PNG, JPEG or BMP picture: {err}") from err


def _pixels(picture: Any, grey: bool) -> np.ndarray:
    """Return uint8 or uint16, `(H, W)` or `(H, W, 3)`."""
    from PIL import Image as PilImage

    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16)
    if "A" in picture.getbands() or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = PilImage.alpha_composite(PilImage.new("RGBA", over.size, (0, 0, 0, 255)), over).convert("RGB")
    return np.asarray(picture.convert("L" if grey else "RGB"))
