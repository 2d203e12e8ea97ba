"""A change in a sentence."""

from __future__ import annotations

from meditune.operate.drift.alerts import Alert
from meditune.operate.drift.signals import BY_NAME


def changed(alert: Alert) -> str:
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
