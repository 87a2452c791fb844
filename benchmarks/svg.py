"""matplotlib's figures as SVG inside an HTML page: in its colours, with text, ids apart."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn in colours that occur nowhere else, which become the page's.
INK, MARK, GOOD, BAD = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010304", "#010305", "#010306", "#010307", "#010308", "#010309")
_PAGE_COLOURS = {
    INK: "currentColor",
    MARK: "var(--mark)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    **{drawn: f"var(--series-{i})" for i, drawn in enumerate(SERIES, 1)},
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A title for people who see, and an SVG with a description for those who do not."""

    title: str
    svg: str


@contextlib.contextmanager
def drawing(name: str, font_points: float = 10.0) -> Iterator[None]:
    """What is drawn inside is in the page's ink. Needs matplotlib, which is imported only here."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            # Text stays text, for screen readers and search; ids are the same from run to run.
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.size": font_points,
        }
    ):
        yield


def embedded(figure: Figure, name: str, title: str, description: str) -> str:
    """The SVG as part of a page: named, without what only a file needs, in the page's colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    body = svg[svg.index("<svg") :]
    # A style would hold for the whole page, which has one of its own.
    for unwanted in ("metadata", "style"):
        body = re.sub(rf"<{unwanted}\b.*?</{unwanted}>", "", body, flags=re.DOTALL)
    # Ids must differ between the plots of a page.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)
    for drawn, shown in _PAGE_COLOURS.items():
        body = body.replace(drawn, shown)
    labels = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-text">{html.escape(description)}</desc>'
    )
    opening = f'<svg role="img" aria-labelledby="{name}-title" aria-describedby="{name}-text"'
    head, _, rest = body.removeprefix("<svg").partition(">")
    return f"{opening}{head}>{labels}{rest}"
