"""Write the start of a plugin package: one that works and passes the conformance kit as it is."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from string import Template

import attrs

import medviz
from medviz.hookspecs import KINDS
from medviz.plugin_strings import is_word

SINGULAR = {spec.__name__.lower(): kind for kind, spec in KINDS.items()}
"""From "explainer" to "explainers", and so on."""

_PREFIX = "medviz-"


@attrs.frozen
class Package:
    """What the files of a package are filled in with; the attributes are the names of the templates' fields.

    Args:
        name: what users type: lower case, no separators.
        package: the distribution, `medviz-<thing>`.
        module: the one Python file, without its ending.
        cls: the plugin's class.
        kind: "explainer", "occluder", …
    """

    name: str
    package: str
    module: str
    cls: str
    kind: str

    @classmethod
    def of(cls, name: str, kind: str) -> Package:
        """Return the package of a plugin `name`, such as "mymethod" or "my-method" ("medviz-" in front is left out).

        Raises:
            ValueError: a name that a package cannot have, or an unknown kind.
        """
        if kind not in SINGULAR:
            raise ValueError(f"`kind` is {kind!r}; expected one of {', '.join(SINGULAR)}.")
        words = name.strip().lower().replace("_", "-").removeprefix(_PREFIX)
        plain = words.replace("-", "")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", words):
            raise ValueError(
                f"{name!r} cannot be the name of a plugin; expected letters and digits, words joined by -: my-method."
            )
        if is_word(plain):
            raise ValueError(f"{name!r} means a value in plugin strings; choose another name.")
        if plain == "xai":
            raise ValueError("'medviz-xai' is medviz itself; choose another name.")
        camel = "".join(word.capitalize() for word in words.split("-"))
        taken = re.search(rf"\b{camel}\b", _template(f"{kind}/module.txt").template)
        camel += "Plugin" if taken else ""
        return cls(plain, f"{_PREFIX}{words}", f"{_PREFIX}{words}".replace("-", "_"), camel, kind)

    def files(self) -> dict[str, str]:
        """Return the files of the package: their paths in its folder, and their content."""
        fields = {
            **attrs.asdict(self),
            "group": SINGULAR[self.kind],
            "version": medviz.__version__,
            "title": _template(f"{self.kind}/title.txt").template.strip(),
        }
        fields["usage"] = _template(f"{self.kind}/usage.txt").substitute(fields).strip()
        sources = {
            "pyproject.toml": "pyproject.toml.txt",
            "README.md": "README.md.txt",
            f"{self.module}.py": f"{self.kind}/module.txt",
            f"tests/test_{self.module}.py": f"{self.kind}/test.txt",
        }
        return {path: _template(source).substitute(fields) for path, source in sources.items()}


def write_package(name: str, kind: str, folder: str | Path = ".") -> Path:
    """Write the start of a package for a plugin, `folder`/medviz-<name>; return where it is.

    Args:
        name: of the plugin; see `Package.of`.
        kind: "explainer", "occluder", "renderer", "sink", "reader" or "wrapper".
        folder: where the package's folder is made.

    Raises:
        ValueError: as `Package.of`.
        FileExistsError: the folder is there already; nothing is written.
    """
    package = Package.of(name, kind)
    content = package.files()
    target = Path(folder).expanduser() / package.package
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{str(target)!r} exists already; choose another name or folder.")
    for path, text in content.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
    return target


def _template(path: str) -> Template:
    file = importlib.resources.files(__name__).joinpath("templates").joinpath(*path.split("/"))
    return Template(file.read_text(encoding="utf-8"))
