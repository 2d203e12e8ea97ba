"""SVG plots for the report, drawn by matplotlib and coloured by the page's style sheet.

matplotlib draws in placeholder colours, which are then replaced by the page's CSS variables. The same plot therefore
works in light mode, in dark mode and in print. Text isn't converted to paths, so it uses the page's font.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from markupsafe import Markup, escape

INK, FAINT, FIRST, SECOND, WARN = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_VARIABLES = {INK: "--muted", FAINT: "--line", FIRST: "--plot", SECOND: "--plot-2", WARN: "--bad"}
WIDE, SMALL = (3.7, 2.2), (3.3, 2.1)
"""Width and height in inches, small enough that text stays readable when a phone shrinks the plot"""


def loss_curve(steps: list[dict[str, Any]]) -> Markup:
    """Return a plot of the loss of every step, in a pale colour, and its running mean."""
    at, loss = _values(steps, "step"), _values(steps, "loss")
    figure, axes = _axes("step", "loss (nats per token)")
    window = max(1, len(loss) // 20)
    axes.plot(at, loss, color=SECOND, linewidth=0.9, alpha=0.55, marker="o" if len(at) == 1 else "")
    axes.plot(at, _running_mean(loss, window), color=FIRST, linewidth=1.9)
    first, last = loss[:window].mean(), loss[-window:].mean()
    text = f"Training loss over {len(at)} steps: about {first:.2f} at the start, {last:.2f} at the end."
    return _svg(figure, "loss", text)


def rate_curve(steps: list[dict[str, Any]]) -> Markup:
    """Return a plot of the learning rate of every step."""
    at, rate = _values(steps, "step"), _values(steps, "learning_rate")
    figure, axes = _axes("step", "")
    power = int(np.floor(np.log10(rate.max()))) if rate.max() > 0 else 0
    axes.plot(at, rate / 10.0**power, color=FIRST, linewidth=1.9)
    axes.set_ylabel(f"learning rate × 10{str(power).translate(RAISED)}")
    axes.set_ylim(bottom=0)
    return _svg(figure, "rate", f"Learning rate over {len(at)} steps: highest {rate.max():.1e}, last {rate[-1]:.1e}.")


def bins_plot(name: str, quantity: str, bins: list[dict[str, Any]]) -> Markup:
    """Return a histogram of `quantity` from precomputed `bins`, each with `from`, `to` and `count`."""
    edges = np.array([bins[0]["from"], *(bar["to"] for bar in bins)], dtype=np.float64)
    return _histogram(name, quantity, _values(bins, "count"), edges, None)


def lengths_plot(name: str, lengths: list[int], limit: int | None = None) -> Markup:
    """Return a histogram of `lengths` in tokens, with a line at `limit` if there is one."""
    values = np.array(lengths, dtype=np.float64)
    counts, edges = np.histogram(values, bins=min(30, max(5, len(set(lengths)))))
    note = f" Median {np.median(values):.0f}, longest {values.max():.0f}."
    return _histogram(name, "tokens", counts.astype(np.float64), edges, limit, note)


Models = dict[str, list[dict[str, Any]]]
"""Title of each model -> its points"""


def reliability_plot(name: str, models: Models) -> Markup:
    """Return a plot of the share of correct decisions against confidence, by bin, for each model.

    A perfectly calibrated model is on the dashed line. A dot's size grows with the number of items in its bin.
    """
    figure, axes = _axes("confidence", "share correct")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for (title, bins), colour in zip(models.items(), (SECOND, FIRST), strict=False):
        across, up = _values(bins, "confidence"), _values(bins, "right")
        sizes = 8 + 90 * _values(bins, "items") / max(each["items"] for each in bins)
        axes.plot(across, up, color=colour, linewidth=1.5, label=title)
        axes.scatter(across, up, s=sizes, color=colour, alpha=0.85, linewidth=0)
    axes.set(xlim=(0.3, 1.02), ylim=(-0.04, 1.04))
    text = f"Share of correct decisions by confidence: {_points_as_text(models, 'confidence', 'right')}."
    return _svg(figure, name, text, legend=True)


def risk_plot(name: str, models: Models) -> Markup:
    """Return a plot of risk-coverage curves: the share of wrong decisions among the most confident decisions."""
    figure, axes = _axes("coverage", "share wrong")
    for (title, points), colour in zip(models.items(), (SECOND, FIRST), strict=False):
        axes.plot(_values(points, "coverage"), _values(points, "risk"), color=colour, linewidth=1.7, label=title)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)
    ends = {title: points[-1:] for title, points in models.items()}
    text = f"Share of wrong decisions at full coverage: {_points_as_text(ends, 'coverage', 'risk')}."
    return _svg(figure, name, text, legend=True)


def _points_as_text(models: Models, x: str, y: str) -> str:
    """Return every point as text, for screen readers."""
    return "; ".join(
        f"{title} " + ", ".join(f"{point[y]:.2f} at {point[x]:.2f}" for point in points)
        for title, points in models.items()
    )


def _values(rows: list[dict[str, Any]], key: str) -> Any:
    return np.array([row[key] for row in rows], dtype=np.float64)


def _histogram(name: str, quantity: str, counts: Any, edges: Any, limit: int | None, note: str = "") -> Markup:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(quantity, "examples", SMALL)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.stairs(counts, edges, fill=True, color=FIRST, alpha=0.85, linewidth=0)
    axes.set_ylim(0, max(1.0, counts.max()) * (1.05 if limit is None else 1.2))
    if limit is not None:
        axes.axvline(limit, color=WARN, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit {limit}", (limit, 0.99), xycoords=("data", "axes fraction"), xytext=(-4, 0), va="top", ha="right",
            textcoords="offset points", color=WARN, fontsize=8.5,
        )  # fmt: skip
        note += f" The limit is {limit}."
    top = int(counts.argmax())
    text = (
        f"Histogram of {quantity}: {counts.sum():.0f} examples; highest bar {edges[top]:.0f} to {edges[top + 1]:.0f}."
    )
    return _svg(figure, name, text + note)


def _running_mean(values: Any, window: int) -> Any:
    """Return for each position the mean of the last `window` values up to it (fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _axes(x: str, y: str, size: tuple[float, float] = WIDE) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    return figure, axes


def _svg(figure: Any, name: str, text: str, legend: bool = False) -> Markup:
    """Return the figure as an SVG element with ids that are unique on the page, and `text` for screen readers."""
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    if legend:
        figure.axes[0].xaxis.set_major_locator(MaxNLocator(5))
        figure.axes[0].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best", handlelength=1.4)

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawing = stream.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick)[^"]*"', "", drawing)
    drawing = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', drawing)
    drawing = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', drawing)
    drawing = drawing.replace("url(#", f"url(#{name}-")
    drawing = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", drawing)
    drawing = re.sub(r"font-family: [^;\"]+;? ?", "", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]+"', drawing)
    opening = f'<svg class="plot" role="img" {box[0] if box else ""}><title>{escape(text)}</title>'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, drawing, count=1))
