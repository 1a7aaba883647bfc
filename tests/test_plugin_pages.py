"""Each page of docs/plugins/ is a complete package: it installs, passes its own tests with the kit, and is used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from helpers_distributions import build_wheel, install

from medviz.hookspecs import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page.stem: page for page in sorted((ROOT / "docs" / "plugins").glob("*.md"))}
BLOCK = re.compile(r'^```(toml|py)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PREPARE = """
import nibabel, numpy, torch, medviz
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(),
    torch.nn.Linear(4, 3),
)
scan = numpy.random.default_rng(0).random((9, 10, 8), dtype=numpy.float32)
nibabel.save(nibabel.Nifti1Image(scan, numpy.diag([-2.0, 2.0, 2.0, 1.0])), "scan.nii.gz")
image = medviz.read("scan.nii.gz")
"""


@attrs.frozen
class Package:
    """The package on one page."""

    name: str
    files: dict[str, str]
    lines: list[tuple[str, str, str]]
    usage: str

    @classmethod
    def of(cls, page: Path) -> Package:
        files: dict[str, str] = {}
        usage = ""
        for _, title, content in BLOCK.findall(page.read_text(encoding="utf-8")):
            files[title], usage = (content, usage) if title else (files.get("", ""), usage + content)
        project = tomllib.loads(files.pop("pyproject.toml"))["project"]
        files.pop("", None)
        groups = project["entry-points"]
        lines = [(group.partition(".")[2], *line) for group, named in groups.items() for line in named.items()]
        return cls(project["name"], files, lines, usage)


def run(*command: str, cwd: Path, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    return {kind: Package.of(page) for kind, page in PAGES.items()}


@pytest.fixture(scope="module")
def site(packages: dict[str, Package], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the packages, installed beside each other."""
    folder = tmp_path_factory.mktemp("packages")
    wheels = [build_wheel(folder, package.name, package.files, package.lines) for package in packages.values()]
    return install(folder / "site", *wheels)


def test_each_kind_has_its_page(packages: dict[str, Package]) -> None:
    assert sorted(packages) == sorted(spec.__name__.lower() for spec in KINDS.values())
    for kind, package in packages.items():
        assert [line[0] for line in package.lines] == [f"{kind}s"]
        assert package.name.startswith("medviz-")


def test_their_own_tests_pass(packages: dict[str, Package], site: Path) -> None:
    """The checks of the conformance kit among them; warnings are errors there too."""
    tests = [str(site / name) for package in packages.values() for name in package.files if name.startswith("test_")]
    assert len(tests) == len(KINDS)
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(site))
    out = run("-m", "pytest", *options, *tests, cwd=site, path=site)
    passed = re.search(r"(\d+) passed", out)
    assert passed
    assert int(passed[1]) > 2 * len(tests)


def test_they_are_used_as_the_pages_say(packages: dict[str, Package], site: Path, tmp_path: Path) -> None:
    code = PREPARE + "\n".join(package.usage for package in packages.values())
    run("-W", "error", "-c", code, cwd=tmp_path, path=site)
    written = {path.name for path in tmp_path.iterdir()}
    assert {"squared.png", "mirror.npz", "mip.png", "peak-class-1.json", "discreet.npz"} <= written
