"""What was measured, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.goals import Verdict
    from bench.measure import Outcome
    from bench.works import Work

REFERENCES = ("raw copy", "raw sha1", "raw sha256", "raw crc32c", "tusd", "nginx")


def text(
    facts: dict[str, Any],
    titles: dict[str, Work],
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
) -> str:
    """All of it."""
    lines = ["# The machine", ""]
    lines += [f"{name}: {value}" for name, value in facts["machine"].items()]
    lines += [f"{name}: {value}" for name, value in facts["run"].items()]
    lines += ["", "# What was measured", ""]
    lines += [f"{name}: {value}" for name, value in facts["subjects"].items()]
    for work, place in dict.fromkeys((one.work, one.place) for one in outcomes):
        lines += ["", f"# {work}: {titles[work].title}; {place}", ""]
        lines += _table([one for one in outcomes if (one.work, one.place) == (work, place)])
    if verdicts:
        lines += ["", "# Goals", "", *_goals(verdicts)]
    return "\n".join(lines)


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    measured = [one for one in outcomes if one.samples]
    metrics = list(dict.fromkeys(metric for one in measured for metric in one.samples[0]))
    references = [one for one in measured if one.subject in REFERENCES]
    ratios = [
        (metric, other)
        for metric in metrics
        if metric in {"MB/s", "cpu/GiB", "req/s"}
        for other in references
    ]
    rows = [
        ["", *metrics, *(f"{metric} / {other.subject}" for metric, other in ratios)],
    ]
    notes = []
    for one in outcomes:
        if not one.samples:
            reason = f"FAILED: {one.error}" if one.error else f"absent: {one.absent}"
            notes.append(f"{one.subject}: {reason}")
            continue
        cells = [spread(one, metric) for metric in metrics]
        cells += [number(one.ratio(other, metric)) for metric, other in ratios]
        rows.append([one.subject, *cells])
    if len(rows) > 1:
        yield from grid(rows)
    yield from notes


def spread(outcome: Outcome, metric: str) -> str:
    """The median, and between what it lies."""
    if metric not in outcome.samples[0]:
        return "-"
    low, high = outcome.span(metric)
    return f"{number(outcome.median(metric))} [{number(low)}..{number(high)}]"


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _goals(verdicts: Sequence[Verdict]) -> Iterator[str]:
    yield "Where `beside` stands, the goal is meant for another durability: see bench/README.md."
    yield ""
    rows = [["work", "place", "goal", "variant", "figure", "", ""]]
    rows += [
        [
            one.goal.work,
            one.place,
            one.goal.text,
            one.subject,
            number(one.figure),
            one.word if one.figure is not None else f"{one.word}: {one.why}",
            "" if one.judged else "beside",
        ]
        for one in verdicts
    ]
    yield from grid(rows)
    judged = [one for one in verdicts if one.judged]
    counts = {
        word: sum(one.word == word for one in judged) for word in ("met", "missed", "unknown")
    }
    yield ""
    yield ", ".join(f"{count} {word}" for word, count in counts.items())


def grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table for a terminal that is also Markdown."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"
        if index == 0:
            yield f"| {' | '.join('-' * width for width in widths)} |"
