"""The life of an alert: it opens on evidence for a change that is large enough to matter, stays, grows, and closes.

A change in a sentence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from meditune.operate.drift.signal_tracks import WINDOW, BlockTrack, NumberTrack, ShareTrack
from meditune.operate.drift.signals import BY_NAME

AnyTrack = NumberTrack | ShareTrack | BlockTrack
Severity = Literal["slight", "small", "medium", "large"]
SEVERITIES: tuple[Severity, ...] = ("slight", "small", "medium", "large")
Effect = Literal["Cliff's delta", "Cohen's h", "MMD"]

CUTS: dict[Effect, tuple[float, float, float]] = {
    "Cliff's delta": (0.147, 0.33, 0.474),
    "Cohen's h": (0.2, 0.5, 0.8),
    "MMD": (0.05, 0.15, 0.3),
}
"""Where small, medium and large begin: Romano et al. 2006, Cohen 1988, and for the MMD by what the first two say of the
same streams (`benchmarks/drift.py`)"""
STEP = 10
"""Requests after which an open alert is measured again"""


@dataclass(frozen=True)
class Policy:
    """How easily alerts come and go."""

    alarms: float = 0.1
    """False alarms of all signals together that are put up with"""
    requests: int = 10_000
    """... in so many undrifted requests"""
    least: Severity = "small"
    """Changes below that open no alert, however sure"""
    close_at: float = 0.5
    """An alert closes when the change has come down to this part of the least size ..."""
    hold: int = 50
    """... for so many requests on end"""
    cool_down: int = 200
    """Requests after that before the same signal can open again"""


@dataclass
class Alert:
    """One signal that changed."""

    id: str
    signal: str
    about: str
    title: str
    what: str
    """The category or direction that changed most; empty where the signal has only one"""
    said: str
    """The change in a sentence"""
    severity: Severity
    effect: float
    effect_name: Effect
    before: float
    after: float
    statistic: float
    threshold: float
    since: int
    """Number of the request with which the change probably began, by the monitor's count"""
    since_id: str
    opened: int
    opened_id: str
    closed: int | None = None
    column: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it hasn't closed yet."""
        return self.closed is None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"state": "open" if self.is_open else "closed"}


def effect_name(track: AnyTrack) -> Effect:
    """By what the size of a change is told."""
    if isinstance(track, NumberTrack):
        return "Cliff's delta"
    return "Cohen's h" if isinstance(track, ShareTrack) else "MMD"


def severity(effect: float, name: Effect) -> Severity:
    """What a change of that size is called."""
    return SEVERITIES[sum(abs(effect) >= cut for cut in CUTS[name])]


_KEPT = ("column", "since", "opened", "open", "level", "small_for", "cool_until")


class AlertTracker:
    """One signal's alerts."""

    def __init__(self, track: AnyTrack, threshold: float, policy: Policy) -> None:
        self.track, self.threshold, self.policy = track, threshold / track.weight, policy
        self.column, self.since, self.opened, self.open = 0, 0, 0, False
        self.level = 0
        self.small_for = 0
        self.cool_until = 0

    def step(self, count: int) -> Literal["", "opened", "grew", "closed"]:
        """What became of the alert with this request."""
        return self._while_open(count) if self.open else self._while_closed(count)

    def _while_closed(self, count: int) -> Literal["", "opened"]:
        track = self.track
        if track.seat.statistic < self.threshold or count < self.cool_until:
            return ""
        column, since = track.seat.leading()
        level = self._level(column, since)
        if level < SEVERITIES.index(self.policy.least):
            return ""
        self.open, self.column, self.opened, self.level, self.small_for = True, column, count, level, 0
        self.since = since
        track.forget(since)
        track.absorbing = False
        return "opened"

    def _while_open(self, count: int) -> Literal["", "grew", "closed"]:
        if count % STEP:
            return ""
        name = effect_name(self.track)
        effect = abs(self.track.effect(self.column))
        least = CUTS[name][max(0, SEVERITIES.index(self.policy.least) - 1)]
        gone = effect < self.policy.close_at * least and count - self.opened >= WINDOW
        self.small_for = self.small_for + STEP if gone else 0
        if self.small_for >= self.policy.hold:
            self.open, self.cool_until = False, count + self.policy.cool_down
            self.track.absorbing = True
            self.track.seat.restart()
            return "closed"
        level = SEVERITIES.index(severity(effect, name))
        if level > self.level and count - self.opened >= self.policy.hold:
            self.level = level
            return "grew"
        return ""

    def saved(self) -> dict[str, Any]:
        """Where it stands, ready for JSON."""
        return {name: getattr(self, name) for name in _KEPT}

    def restore(self, kept: dict[str, Any]) -> None:
        """What `saved` gave."""
        for name in _KEPT:
            setattr(self, name, kept[name])

    def _level(self, column: int, since: int) -> int:
        return SEVERITIES.index(severity(self.track.effect(column, since), effect_name(self.track)))


def change_sentence(alert: Alert) -> str:
    """What was and what is."""
    signal = BY_NAME.get(alert.signal)
    if signal is None:
        return f"Questions differ as a whole: MMD {alert.after:.2f}, by chance about 0."
    if signal.kind == "category":
        named = f" of {alert.what!r}" if alert.what else ""
        return f"{signal.title}: the share{named} went from {100 * alert.before:.1f} % to {100 * alert.after:.1f} %."
    named = f" ({alert.what})" if alert.what else ""
    word = signal.more if alert.effect > 0 else signal.less
    if alert.effect > 0 and alert.after <= alert.before:
        word = "more at both ends"
    return f"{signal.title}{named}: {word}, median {alert.before:.3g} before and {alert.after:.3g} now."
