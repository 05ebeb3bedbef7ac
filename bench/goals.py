"""What tidegate must reach, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.measure import Outcome


@dataclass(frozen=True)
class Goal:
    """One row of the table.

    Args:
        work: which one.
        metric: of it.
        target: the number to reach.
        least: whether `target` is the least or the most that is allowed.
        against: the subject to which a ratio is taken; empty where the metric says it all.
        unit: what the figure is, in words.
    """

    work: str
    metric: str
    target: float
    least: bool
    against: str
    unit: str

    def met_by(self, figure: float) -> bool:
        """Whether a figure is good enough."""
        return figure >= self.target if self.least else figure <= self.target

    @property
    def text(self) -> str:
        """In words."""
        return f"{'at least' if self.least else 'at most'} {self.target:g} {self.unit}"


def _ratio(work: str, metric: str, target: float, against: str, *, least: bool = True) -> Goal:
    return Goal(work, metric, target, least, against, f"of {against}'s {metric}")


GOALS: Final = (
    _ratio("patch", "MB/s", 0.85, "raw copy"),
    _ratio("patch", "cpu/GiB", 1.3, "raw copy", least=False),
    _ratio("patch", "MB/s", 2.0, "tusd"),
    _ratio("patch", "cpu/GiB", 0.45, "tusd", least=False),
    _ratio("patch-sha1", "MB/s", 0.85, "raw sha1"),
    _ratio("patch-sha256", "MB/s", 0.85, "raw sha256"),
    _ratio("patch-crc32c", "MB/s", 0.85, "raw crc32c"),
    _ratio("parallel", "MB/s", 1.8, "tusd"),
    _ratio("small", "req/s", 1.0, "tusd"),
    _ratio("head", "req/s", 1.0, "tusd"),
    Goal("cost", "HEAD ratio", 0.8, True, "", "of HEAD/s with nothing on"),
    Goal("cost", "POST ratio", 0.8, True, "", "of POST/s with nothing on"),
    Goal("cost", "PATCH ratio", 0.8, True, "", "of PATCH/s with nothing on"),
    Goal("many", "HEAD ratio", 0.9, True, "", "of HEAD/s with few stored"),
    Goal("many", "POST ratio", 0.9, True, "", "of POST/s with few stored"),
    Goal("slow", "memory MiB", 100, False, "", "MiB more memory"),
    Goal("slow", "cpu ratio", 4, False, "", "of a fast client's cpu/GiB"),
    Goal("slow", "fast ratio", 0.5, True, "", "of a fast client's MB/s alone"),
    Goal("latency", "p99 ms", 5, False, "", "ms at p99"),
    _ratio("download", "MB/s", 0.8, "nginx"),
)


@dataclass(frozen=True)
class Verdict:
    """A goal, in one place, for one variant of tidegate.

    `judged`: whether the goal is meant for this variant. Against who never syncs, that is the one
    that never syncs either, and tidegate's default stands beside it; against itself it is the
    default. A figure of None could not be had; `why` says more.
    """

    goal: Goal
    place: str
    subject: str
    judged: bool
    figure: float | None
    why: str = ""

    @property
    def word(self) -> str:
        """met, missed or unknown."""
        if self.figure is None:
            return "unknown"
        return "met" if self.goal.met_by(self.figure) else "missed"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "work": self.goal.work,
            "place": self.place,
            "goal": self.goal.text,
            "target": self.goal.target,
            "subject": self.subject,
            "judged": self.judged,
            "figure": self.figure,
            "verdict": self.word,
            "why": self.why,
        }


def judge(outcomes: Sequence[Outcome]) -> list[Verdict]:
    """All goals whose work was measured, in every place, for every variant."""
    verdicts = []
    for goal in GOALS:
        for place in dict.fromkeys(one.place for one in outcomes):
            here = [one for one in outcomes if one.work == goal.work and one.place == place]
            other = next((one for one in here if one.subject == goal.against), None)
            verdicts += [_judge(goal, one, other) for one in here if one.kind == "tidegate"]
    return verdicts


def _judge(goal: Goal, one: Outcome, other: Outcome | None) -> Verdict:
    syncs = one.traits["durability"] != "none"
    figure, why = None, one.error or one.absent
    if goal.against:
        if other is None or not other.samples:
            said = (other.error or other.absent) if other else "not asked for"
            why = why or f"{goal.against}: {said.splitlines()[0]}"
        else:
            figure = one.ratio(other, goal.metric)
    else:
        figure = one.median(goal.metric)
    judged = not syncs if goal.against else syncs
    return Verdict(goal, one.place, one.subject, judged, figure, why.split("\n")[0])
