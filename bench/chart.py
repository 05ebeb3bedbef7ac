"""What was measured, as a picture: an SVG, drawn by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import escape

from bench.report import number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.measure import Outcome
    from bench.works import Work

COLOURS: Final = {
    "tidegate": "#1d6fa5",
    "raw": "#9aa5ad",
    "peer": "#d9822b",
    "nginx": "#d9822b",
}
BAR, GAP, HEAD, FOOT = 18, 6, 44, 16
LEFT, WIDTH, RIGHT = 210, 420, 90
COLUMN: Final = LEFT + WIDTH + RIGHT


def svg(facts: dict[str, Any], titles: dict[str, Work], outcomes: Sequence[Outcome]) -> str:
    """One panel per work, one column per place."""
    places = list(dict.fromkeys(one.place for one in outcomes))
    names = list(dict.fromkeys(one.work for one in outcomes))
    parts: list[str] = []
    top = 70.0
    for work in names:
        panels = [
            [o for o in outcomes if o.work == work and o.place == place and o.samples]
            for place in places
        ]
        for column, panel in enumerate(panels):
            title = f"{titles[work].title}; {places[column]}"
            parts += _panel(column * COLUMN + 10, top, title, titles[work].metric, panel)
        top += HEAD + max(len(panel) for panel in panels) * (BAR + GAP) + FOOT
    width = len(places) * COLUMN + 20
    machine = facts["machine"]
    about = (
        f"{machine['usable cores']} cores, {machine['processor']}, {machine['kernel']};"
        f" medians of {facts['run']['runs']}, whiskers from smallest to largest"
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top:.0f}"'
        ' font-family="sans-serif" font-size="12" fill="#222">'
    )
    return "\n".join(
        [
            opening,
            f'<rect width="{width}" height="{top:.0f}" fill="#fff"/>',
            '<text x="10" y="28" font-size="18" font-weight="bold">tidegate and its peers</text>',
            f'<text x="10" y="48" fill="#555">{escape(about)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _panel(
    x: float, y: float, title: str, metric: str, outcomes: Sequence[Outcome]
) -> Iterator[str]:
    better = "more" if metric.split(maxsplit=1)[0] in {"MB/s", "req/s", "HEAD/s"} else "less"
    yield f'<text x="{x}" y="{y + 16}" font-weight="bold">{escape(title)}</text>'
    yield f'<text x="{x}" y="{y + 32}" fill="#555">{metric}, {better} is better</text>'
    if not outcomes:
        return
    scale = WIDTH / (max(one.span(metric)[1] for one in outcomes) or 1)
    for index, one in enumerate(outcomes):
        top = y + HEAD + index * (BAR + GAP)
        middle = top + BAR / 2
        value = one.median(metric) or 0
        low, high = (x + LEFT + end * scale for end in one.span(metric))
        colour = COLOURS[one.kind]
        yield (
            f'<text x="{x + LEFT - 8}" y="{middle + 4}" text-anchor="end">'
            f"{escape(one.subject)}</text>"
        )
        yield (
            f'<rect x="{x + LEFT}" y="{top}" width="{value * scale:.1f}" height="{BAR}"'
            f' fill="{colour}"/>'
        )
        yield (
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
            f'M{high:.1f} {middle - 4}v8" stroke="#222" fill="none"/>'
        )
        yield f'<text x="{high + 6:.1f}" y="{middle + 4}">{number(value)}</text>'
