"""Paired runs: every subject once per round, A B A B, so that what drifts drifts for all of them."""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from bench.process import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.subjects import Subject

Sample: TypeAlias = "dict[str, float]"
"""What one run of one subject measured, by metric."""


@dataclass
class Outcome:
    """All that was measured of one subject at one work in one place."""

    work: str
    place: str
    subject: str
    kind: str
    version: str
    traits: Mapping[str, str]
    samples: list[Sample] = field(default_factory=list)
    absent: str = ""
    """Why nothing was measured, where that is no failure."""
    error: str = ""
    """What went wrong; what was measured before is void."""
    at: str = ""
    """When it was begun."""

    def median(self, metric: str) -> float | None:
        """The median over the runs; None where it was not measured."""
        values = [sample[metric] for sample in self.samples if metric in sample]
        return statistics.median(values) if values else None

    def span(self, metric: str) -> tuple[float, float]:
        """The smallest and the largest."""
        values = [sample[metric] for sample in self.samples if metric in sample]
        return min(values), max(values)

    def ratio(self, other: Outcome, metric: str) -> float | None:
        """The median of the ratios to `other`, each of two runs of the same round."""
        pairs = zip(self.samples, other.samples, strict=False)
        ratios = [
            mine[metric] / theirs[metric]
            for mine, theirs in pairs
            if metric in mine and theirs.get(metric)
        ]
        return statistics.median(ratios) if ratios else None

    def as_json(self) -> dict[str, Any]:
        """With the medians, so that a reader needs no sums."""
        metrics = self.samples[0] if self.samples else {}
        return {
            "work": self.work,
            "place": self.place,
            "subject": self.subject,
            "kind": self.kind,
            "version": self.version,
            "traits": dict(self.traits),
            "medians": {metric: self.median(metric) for metric in metrics},
            "samples": self.samples,
            "absent": self.absent,
            "error": self.error,
            "at": self.at,
        }

    @classmethod
    def of_json(cls, written: dict[str, Any]) -> Self:
        """What `as_json` wrote."""
        return cls(**{name: value for name, value in written.items() if name != "medians"})


@dataclass
class Contestant:
    """A subject, and how one sample of it is taken: `take(check)`, thorough when `check`."""

    subject: Subject
    take: Callable[[bool], Sample]


def paired(
    work: str, place: str, contestants: Sequence[Contestant], runs: int, *, settle: bool
) -> list[Outcome]:
    """Rounds: one that is thrown away but checked to the last byte, and then `runs`.

    With `settle` what is not yet written to disk is, before each sample: else one subject would pay
    for what another left in the page cache.
    """
    at = time.strftime("%Y-%m-%d %H:%M")
    outcomes = [
        Outcome(
            work,
            place,
            one.subject.name,
            one.subject.kind,
            one.subject.version,
            one.subject.traits,
            at=at,
        )
        for one in contestants
    ]
    for number in range(runs + 1):
        for one, outcome in zip(contestants, outcomes, strict=True):
            if outcome.error or outcome.absent:
                continue
            if settle:
                os.sync()
            try:
                sample = one.take(number == 0)
            except Absent as reason:
                outcome.absent = str(reason)
            except (BenchError, OSError) as error:
                outcome.error = str(error) or type(error).__name__
                outcome.samples.clear()
                note(f"  {outcome.subject}: FAILED: {outcome.error}")
            else:
                if number:
                    outcome.samples.append(sample)
        note(f"  round {number} of {runs}" + " (thrown away)" * (not number))
    return outcomes


class Absent(Exception):
    """This subject can't do this work; the message says why."""


def note(text: str) -> None:
    """How far it is."""
    print(text, file=sys.stderr, flush=True)
