"""A few shapes in SVG, readable on a light and on a dark page: the drawing brings its own ground with it."""

from __future__ import annotations

from html import escape

_STYLE = """
  svg { --ground: #ffffff; --ink: #1f2933; --faint: #5f6b7a; --line: #aab4c0; --box: #eef2f6; --hot: #b83b06;
        --warm: #fdebdd; font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #14181f; --ink: #eef1f5; --faint: #a3adba; --line: #5a6675; --box: #232a34; --hot: #ff9a5c;
          --warm: #43291a; } }
  .ground { fill: var(--ground); } .ink { fill: var(--ink); } .faint { fill: var(--faint); } .hot { fill: var(--hot); }
  .small { font-size: 11.5px; } .bold { font-weight: 650; } .mono { font-family: ui-monospace, Menlo, monospace; }
  .box { fill: var(--box); stroke: var(--line); } .ghost { fill: none; stroke: var(--line); stroke-dasharray: 4 3; }
  .kept { fill: var(--warm); stroke: var(--hot); stroke-width: 2; }
  .line { fill: none; stroke: var(--line); stroke-width: 1.5; }
  .heat { fill: none; stroke: var(--hot); stroke-width: 2.2; }
  .off { fill: none; stroke: var(--faint); stroke-width: 1.3; stroke-dasharray: 2 4; }
"""
_MARKERS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    f'markerUnits="userSpaceOnUse" orient="auto"><path class="{name}" d="M0 0 8 4 0 8z"/></marker>'
    for name in ("faint", "hot")
)


def text(x: float, y: float, words: str, kind: str = "ink", anchor: str = "middle") -> str:
    """Return a line of text, `y` at its base line."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str = "box", round_: float = 5) -> str:
    """Return a rectangle."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}"/>'


def box(x: float, y: float, width: float, height: float, lines: tuple[str, ...], kind: str = "box") -> str:
    """Return a rectangle with lines of text in its middle, the first in bold."""
    first = y + height / 2 + 4.5 - 8 * (len(lines) - 1)
    words = [
        text(x + width / 2, first + 16 * i, line, "ink bold" if i == 0 else "faint small")
        for i, line in enumerate(lines)
    ]
    return rect(x, y, width, height, kind) + "".join(words)


def arrow(path: str, kind: str = "line") -> str:
    """Return an arrow along the path of an SVG, such as "M0 0 H10"."""
    head = "" if kind == "off" else f' marker-end="url(#{"hot" if kind == "heat" else "faint"})"'
    return f'<path class="{kind}" d="{path}"{head}/>'


def drawing(width: float, height: float, title: str, shapes: list[str]) -> str:
    """Return the whole file; `title` is read out to those who do not see it."""
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<defs>{_MARKERS}</defs>\n"
        f'<rect class="ground" width="{width:g}" height="{height:g}" rx="8"/>\n{body}\n</svg>\n'
    )
