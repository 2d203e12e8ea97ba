"""The life cycle of an alert: it opens when there is evidence for a large enough change, grows, and closes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from meditune.operate.drift.signal_tracks import WINDOW, BlockTrack, Effect, NumberTrack, ShareTrack
from meditune.operate.drift.signals import BY_NAME

AnyTrack = NumberTrack | ShareTrack | BlockTrack
Severity = Literal["slight", "small", "medium", "large"]
SEVERITIES: tuple[Severity, ...] = ("slight", "small", "medium", "large")

CUTS: dict[Effect, tuple[float, float, float]] = {
    "Cliff's delta": (0.147, 0.33, 0.474),
    "Cohen's h": (0.2, 0.5, 0.8),
    "MMD": (0.05, 0.15, 0.3),
}
"""Lower bounds of small, medium and large effects. The first two rows are from Romano et al. 2006 and Cohen 1988; the
bounds of the MMD agree with them on the same streams (`benchmarks/drift.py`).
"""
STEP = 10
"""Number of requests between measurements of an open alert"""


@dataclass(frozen=True)
class Policy:
    """The policy for opening and closing alerts."""

    false_alarms: float = 0.1
    """Expected false alarms of all signals together ..."""
    requests: int = 10_000
    """... in this many requests without drift"""
    min_severity: Severity = "small"
    """Smaller changes open no alert, however certain they are."""
    close_at: float = 0.5
    """An alert closes when the change has fallen to this fraction of the minimum size ..."""
    hold: int = 50
    """... for this many consecutive requests."""
    cool_down: int = 200
    """Number of requests before the same signal can open again"""


@dataclass
class Alert:
    """A change in one signal."""

    id: str
    signal: str
    about: str
    title: str
    what: str
    """The category or direction that changed most; empty if the signal has only one"""
    message: str
    """The change in a sentence; the key `said` in JSON, which programs read"""
    severity: Severity
    effect: float
    effect_name: Effect
    before: float
    after: float
    statistic: float
    threshold: float
    since: int
    """Number of the request at which the change probably began, as counted by the monitor"""
    since_id: str
    opened: int
    opened_id: str
    closed: int | None = None
    column: int = 0
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """True until the alert closes."""
        return self.closed is None

    def as_dict(self) -> dict[str, Any]:
        """Return the alert as a dict for JSON."""
        stored = asdict(self)
        return {"said": stored.pop("message"), **stored, "state": "open" if self.is_open else "closed"}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Alert:
        """Return the alert that `as_dict` described, or whose fields a monitor saved."""
        facts = {"message": stored.get("said"), **stored}
        return cls(**{each.name: facts[each.name] for each in fields(cls)})


def severity(effect: float, name: Effect) -> Severity:
    """Return the severity of an effect size."""
    return SEVERITIES[sum(abs(effect) >= cut for cut in CUTS[name])]


_STATE_FIELDS = ("column", "since", "opened", "open", "level", "small_for", "cool_until")


class AlertTracker:
    """The alerts of one signal."""

    def __init__(self, track: AnyTrack, threshold: float, policy: Policy) -> None:
        self.track, self.threshold, self.policy = track, threshold / track.weight, policy
        self.column, self.since, self.opened, self.open = 0, 0, 0, False
        self.level = 0
        self.small_for = 0
        self.cool_until = 0

    def step(self, count: int) -> Literal["", "opened", "grew", "closed"]:
        """Advance by one request; return how the alert changed."""
        return self._while_open(count) if self.open else self._while_closed(count)

    def _while_closed(self, count: int) -> Literal["", "opened"]:
        track = self.track
        if track.detector.statistic < self.threshold or count < self.cool_until:
            return ""
        column, since = track.detector.strongest_bet()
        level = SEVERITIES.index(severity(track.effect(column, since), track.effect_name))
        if level < SEVERITIES.index(self.policy.min_severity):
            return ""
        self.open, self.column, self.opened, self.level, self.small_for = True, column, count, level, 0
        self.since = since
        track.forget(since)
        track.absorbing = False
        return "opened"

    def _while_open(self, count: int) -> Literal["", "grew", "closed"]:
        if count % STEP:
            return ""
        name = self.track.effect_name
        effect = abs(self.track.effect(self.column))
        smallest = CUTS[name][max(0, SEVERITIES.index(self.policy.min_severity) - 1)]
        gone = effect < self.policy.close_at * smallest and count - self.opened >= WINDOW
        self.small_for = self.small_for + STEP if gone else 0
        if self.small_for >= self.policy.hold:
            self.open, self.cool_until = False, count + self.policy.cool_down
            self.track.absorbing = True
            self.track.detector.restart()
            return "closed"
        level = SEVERITIES.index(severity(effect, name))
        if level > self.level and count - self.opened >= self.policy.hold:
            self.level = level
            return "grew"
        return ""

    def saved(self) -> dict[str, Any]:
        """Return the state as a dict for JSON."""
        return {name: getattr(self, name) for name in _STATE_FIELDS}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that `saved` returned."""
        for name in _STATE_FIELDS:
            setattr(self, name, state[name])


def change_sentence(alert: Alert) -> str:
    """Return the change as a sentence."""
    signal = BY_NAME.get(alert.signal)
    if signal is None:
        return f"Questions differ as a whole: MMD {alert.after:.2f}; about 0 is expected at random."
    if signal.kind == "category":
        named = f" of {alert.what!r}" if alert.what else ""
        return f"{signal.title}: the share{named} went from {100 * alert.before:.1f} % to {100 * alert.after:.1f} %."
    named = f" ({alert.what})" if alert.what else ""
    word = signal.rise_word if alert.effect > 0 else signal.fall_word
    if alert.effect > 0 and alert.after <= alert.before:
        word = "more at both ends"
    return f"{signal.title}{named}: {word}, median {alert.before:.3g} before and {alert.after:.3g} now."
