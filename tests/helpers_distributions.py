"""Build wheels of made-up packages and install them with pip into a folder: real distributions, real metadata."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

Lines = Iterable[tuple[str, str, str]]  # kind, name, value

# The smallest plugin of each kind that is used again and again.
EXPLAINER = """
import attrs
import medviz
from medviz.hookspecs import Explainer, hookimpl


@attrs.frozen(eq=False)
class Brightness(Explainer):
    power: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    @hookimpl
    def explain(self, probe):
        return probe.inputs.clamp(min=0).mean(1, keepdim=True) ** self.power
"""


def build_wheel(folder: Path, name: str, files: Mapping[str, str], plugins: Lines, version: str = "1.2.3") -> Path:
    """Write the wheel of a distribution with these modules and these entry-point lines, in their order."""
    stem = f"{name.replace('-', '_')}-{version}"
    sections: dict[str, list[str]] = {}
    for kind, entry, value in plugins:
        sections.setdefault(f"medviz.{kind}", []).append(f"{entry} = {value}")
    content = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": "\n".join(
            line for group, lines in sections.items() for line in (f"[{group}]", *lines, "")
        ),
    }
    record = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in content.items()]
    record.append(f"{stem}.dist-info/RECORD,,")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**content, f"{stem}.dist-info/RECORD": "\n".join(record) + "\n"}.items():
            archive.writestr(path, text)
    return wheel


def install(target: Path, *wheels: Path) -> Path:
    """Install wheels with pip into `target`, nothing else and from nowhere else."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip could not install {wheels}: {done.stderr}")
    return target


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
