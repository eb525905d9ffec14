"""The parts figures are made of: one style, and one function per panel.

A panel function draws on the axes it is given and returns the same in words, for the alt text.
"""

from __future__ import annotations

import io
import itertools
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, cast

from sftkit.evidence_records import Change, Drift, Overall
from sftkit.records import Forgot, Learned, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Tone = Literal["good", "harm", "open"]
BASE = "#8b9099"
"""Grey: the base model."""
TUNED = "#0072b2"
"""Blue: the tuned model (Okabe and Ito's palette, told apart by colour-blind readers)."""
HARM = "#c04a00"
"""Orange: something got worse. Dark enough to read as text on white (contrast 5.0)."""
INK, MUTED, GRID, BAND = "#1f2328", "#59606a", "#e6e8eb", "#eceff3"
SIZE = (8.0, 4.5)
"""Inches; fits a notebook and half a slide."""
DPI = 150

_STYLE = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same widths on every machine
    "font.size": 10,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,
    "axes.edgecolor": "#b9bec6",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.facecolor": "white",
    "axes.unicode_minus": True,
    "axes.xmargin": 0.02,
    "axes.ymargin": 0.08,
    "grid.color": GRID,
    "xtick.color": "#b9bec6",
    "ytick.color": "#b9bec6",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
}
_WHISKER = "black line: 95 % interval of the change"


def share_rows(learned: Learned) -> list[tuple[str, Change]]:
    """List the measures of knowledge that were taken, each with the name of its row."""
    named = (
        ("Trained facts", learned.exact),
        ("Control facts", learned.control),
        ("Right answer\nranked first", learned.recognition),
    )
    return [(name, change) for name, change in named if change is not None]


def draw_shares(axes: Axes, rows: Sequence[tuple[str, Change]], *, compact: bool = False) -> str:
    """Draw a pair of bars per measure: base above, tuned below with its interval."""
    if not rows:
        _say_instead(axes, "knowledge was not measured")
        return "Knowledge was not measured."
    words = []
    gap = 4 if compact else 1.5
    for place, (name, change) in enumerate(rows):
        before, after = 100 * change.before, 100 * change.after
        low, high = (100 * (change.before + edge) for edge in change.ci95)
        _bar_pair(axes, place, before, after, (low, high))
        right = round(change.after * change.items)
        tail = f" ({right}/{change.items})" if compact else f" ({right} of {change.items})"
        axes.text(before + gap, place - 0.2, f"base {before:.0f} %", va="center", color=MUTED)
        axes.text(
            max(after, high) + gap,
            place + 0.2,
            f"tuned {after:.0f} %{tail}",
            va="center",
            color=TUNED,
            weight="bold",
        )
        words.append(
            f"{' '.join(name.split())}: base {before:.1f} %, tuned {after:.1f} % of {change.items} "
            f"questions (95 % interval of the change {interval(change.ci95, 100, 1)} points)."
        )
    _rows(axes, [name for name, _ in rows])
    axes.set_xlim(0, 200 if compact else 135)
    axes.set_xticks(range(0, 101, 50 if compact else 25))
    axes.spines["bottom"].set_bounds(0, 100)
    note = "" if compact else f" ({_WHISKER})"
    axes.set_xlabel(f"Right answers, % of questions{note}")
    return " ".join(words)


def draw_loss(axes: Axes, change: Change | None, *, compact: bool = False) -> str:
    """Draw held-out loss as a pair of bars."""
    if change is None:
        _say_instead(axes, "held-out loss was not measured")
        return "Held-out loss was not measured."
    low, high = (change.before + edge for edge in change.ci95)
    _bar_pair(axes, 0, change.before, change.after, (low, high))
    longest = max(change.before, change.after, high) or 1.0
    pad = longest * (0.03 if compact else 0.015)
    after_color = TUNED if change.delta <= 0 else HARM
    axes.text(change.before + pad, -0.2, f"base {change.before:.2f}", va="center", color=MUTED)
    axes.text(
        max(change.after, high) + pad,
        0.2,
        f"tuned {change.after:.2f}",
        va="center",
        color=after_color,
        weight="bold",
    )
    _rows(axes, ["Held-out\nloss"])
    axes.set_xlim(0, longest * (1.45 if compact else 1.2))
    axes.set_xlabel("Nats per token; lower is better" + ("" if compact else f" ({_WHISKER})"))
    return (
        f"Held-out loss: base {change.before:.2f}, tuned {change.after:.2f} nats per token "
        f"(95 % interval of the change {interval(change.ci95, 1, 2)}, {change.items} examples)."
    )


def probe_rows(forgot: Forgot, *, every: bool) -> list[tuple[str, float, tuple[float, float], int]]:
    """List name, change of accuracy, interval and questions: every probe, or all in one."""
    rows = [(p.name, p.delta, p.ci95, p.items) for p in forgot.probes] if every else []
    if forgot.overall is not None and (not every or len(rows) > 1):
        rows.append(("All probes", forgot.overall.delta, forgot.overall.ci95, forgot.overall.items))
    if not every and not rows:
        rows = [(p.name, p.delta, p.ci95, p.items) for p in forgot.probes]
    return rows


def draw_ability(
    axes: Axes,
    rows: Sequence[tuple[str, float, tuple[float, float], int]],
    margin: float,
    *,
    compact: bool = False,
) -> str:
    """Draw the change of accuracy per probe, in percentage points."""
    if not rows:
        _say_instead(axes, "ability was not measured")
        return "Ability was not measured."
    words = []
    for place, (name, delta, ci95, items) in enumerate(rows):
        points, edges95 = 100 * delta, (100 * ci95[0], 100 * ci95[1])
        _forest_row(axes, place, points, edges95, margin=100 * margin, harm_is_positive=False)
        words.append(
            f"{name}: accuracy changed by {signed(points, 1)} points "
            f"(95 % interval {interval(ci95, 100, 1)}, {items} questions)."
        )
    labels = [f"{' '.join(name.split())}\nn = {items}" for name, _, _, items in rows]
    edges = [100 * edge for _, _, ci95, _ in rows for edge in ci95]
    numbers = [f"{signed(100 * d, 1)} [{interval(c, 100, 1)}]" for _, d, c, _ in rows]
    _forest(axes, labels, edges, 100 * margin, numbers, compact=compact)
    shaded = "" if compact else f"; shaded: within ±{100 * margin:g}"
    axes.set_xlabel(f"Accuracy, change in points (← worse{shaded})")
    return " ".join(words)


def draw_drift(axes: Axes, forgot: Forgot, margin: float, *, compact: bool = False) -> str:
    """Draw the change of loss on general text, in nats per token."""
    drift = forgot.drift
    if drift is None:
        _say_instead(axes, "drift was not measured")
        return "Drift was not measured."
    _forest_row(axes, 0, drift.delta, drift.ci95, margin=margin, harm_is_positive=True)
    number = f"{signed(drift.delta, 2)} [{interval(drift.ci95, 1, 2)}]"
    label = f"General text\nn = {drift.passages}"
    _forest(axes, [label], [*drift.ci95, drift.delta], margin, [number], compact=compact)
    shaded = "" if compact else f"; shaded: within ±{margin:g}"
    axes.set_xlabel(f"Loss, change in nats (worse →{shaded})")
    return (
        f"Loss on general text changed by {signed(drift.delta, 2)} nats per token "
        f"(95 % interval {interval(drift.ci95, 1, 2)}, {drift.passages} passages)."
    )


def _bar_pair(
    axes: Axes, place: float, before: float, after: float, interval: tuple[float, float]
) -> None:
    # The edges keep a bar of height zero visible.
    butt: Any = {"solid_capstyle": "butt"}
    axes.barh([place - 0.2], [before], height=0.36, color=BASE)
    axes.barh([place + 0.2], [after], height=0.36, color=TUNED)
    axes.plot([before, before], [place - 0.38, place - 0.02], color=BASE, linewidth=2, **butt)
    axes.plot([after, after], [place + 0.02, place + 0.38], color=TUNED, linewidth=2, **butt)
    axes.plot(interval, [place + 0.2] * 2, color=INK, linewidth=1.4, solid_capstyle="butt")
    axes.plot(interval, [place + 0.2] * 2, "|", color=INK, markersize=7)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [plain_label(label) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # first row on top
    axes.grid(axis="x")


def _forest_row(
    axes: Axes,
    place: int,
    delta: float,
    ci95: tuple[float, float],
    *,
    margin: float,
    harm_is_positive: bool,
) -> None:
    """Draw one interval: orange where it is all harm and reaches past the margin."""
    least, most = ci95 if harm_is_positive else (-ci95[1], -ci95[0])
    color = HARM if least > 0 and most > margin else TUNED if most < 0 else MUTED
    axes.plot(ci95, [place, place], color=color, linewidth=2.2, solid_capstyle="butt", zorder=3)
    axes.plot(ci95, [place, place], "|", color=color, markersize=9, markeredgewidth=1.6, zorder=3)
    axes.plot([delta], [place], "o", color=color, markersize=8, zorder=4)


def _forest(
    axes: Axes,
    labels: Sequence[str],
    edges: Sequence[float],
    margin: float,
    numbers: Sequence[str],
    *,
    compact: bool,
) -> None:
    """Finish a forest panel: margin band, zero line, row labels left, numbers right."""
    low, high = min([*edges, -margin]), max([*edges, margin])
    room = 0.06 * (high - low)
    axes.axvspan(-margin, margin, color=BAND, zorder=0)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    _rows(axes, labels)
    axes.set_xlim(low - room, high + room)
    axes.locator_params(axis="x", nbins=6)
    if compact:
        return
    dots: list[Any] = [line for line in axes.lines if line.get_marker() == "o"]
    for place, (number, dot) in enumerate(zip(numbers, dots, strict=True)):
        style: dict[str, Any] = {"color": dot.get_color(), "fontsize": 9}
        transform = axes.get_yaxis_transform()
        axes.text(1.02, place, number, transform=transform, va="center", **style)


def tone(verdict: Verdict, *, fell: bool = False) -> Tone:
    """Say whether a verdict is good news, harm, or open; drift that fell is good news."""
    if verdict.state in ("yes", "kept") or (verdict.state == "moved" and fell):
        return "good"
    return "harm" if verdict.state in ("lost", "moved") else "open"


def draw_head(axes: Axes, what: str, verdict: Verdict, number: str, *, fell: bool = False) -> None:
    """Head a panel of the overview with the verdict's one word and its number."""
    color = {"good": TUNED, "harm": HARM, "open": MUTED}[tone(verdict, fell=fell)]
    title = f"{what}: {verdict.state}"
    axes.set_title(title, loc="left", color=color, weight="bold", fontsize=11.5, pad=18)
    place = {"xytext": (0, 5), "textcoords": "offset points", "xycoords": "axes fraction"}
    axes.annotate(number, (0, 1), color=color, fontsize=9.5, **cast(Any, place))


def in_points(change: Change | Overall | None) -> str:
    """Write a change of a share as percentage points with its interval."""
    if change is None:
        return ""
    return f"{signed(100 * change.delta, 1)} points [{interval(change.ci95, 100, 1)}]"


def in_nats(change: Change | Drift | None) -> str:
    """Write a change of loss with its interval."""
    if change is None:
        return ""
    return f"{signed(change.delta, 2)} nats per token [{interval(change.ci95, 1, 2)}]"


def draw_column(part: SubFigure, name: str) -> None:
    """Name one half of the overview."""
    part.suptitle(name, x=0.02, ha="left", fontsize=12, color=INK)


def _say_instead(axes: Axes, words: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)


def moved(delta: float, ci95: tuple[float, float], digits: int) -> str:
    """Say rose or fell only where the interval excludes zero."""
    if ci95[0] > 0:
        return f"rose by {abs(delta):.{digits}f}"
    if ci95[1] < 0:
        return f"fell by {abs(delta):.{digits}f}"
    return f"changed by {signed(delta, digits)}"


def signed(value: float, digits: int) -> str:
    """Write a change with its sign and a true minus."""
    text = f"{value:+.{digits}f}"
    # A change that rounds to nothing has no sign.
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval(ci95: tuple[float, float], factor: float, digits: int) -> str:
    """Write an interval, scaled by `factor`, as `low to high`."""
    return f"{signed(factor * ci95[0], digits)} to {signed(factor * ci95[1], digits)}"


def alt_text(figure: Figure) -> str:
    """Say in words what a figure of this module shows, from the numbers it was drawn from."""
    return str(figure.get_label())


def to_png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Render a figure; the words of `alt_text` travel in the file as its Description."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(
            buffer,
            format="png",
            dpi=dpi,
            metadata={"Description": alt_text(figure), "Software": ""},
        )
    return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the kit's style and leave matplotlib's settings as they were."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, _STYLE)):
        yield


def new_figure(*, height: float = SIZE[1]) -> Figure:
    """Make an empty figure that shows itself in a notebook."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], height), dpi=100, layout="constrained")
    # IPython looks for this method on the object; the inline backend only knows pyplot's figures.
    cast(Any, figure)._repr_png_ = partial(_repr_png, figure)
    return figure


def _repr_png(figure: Figure) -> tuple[bytes, dict[str, object]]:
    """Show a figure in a notebook, with its alt text where nbconvert looks for it."""
    width, height = (int(100 * inches) for inches in figure.get_size_inches())
    return to_png(figure), {"alt": alt_text(figure), "width": width, "height": height}


def finish(figure: Figure, title: str, alt: str) -> Figure:
    """Set title and alt text, and keep every text out of mathtext."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    _fit_title(figure, _printable(title))
    figure.set_label(" ".join(_printable(alt).split()))
    return figure


def _fit_title(figure: Figure, title: str) -> None:
    """Set the title at the width of the figure, measured, in smaller type when it is long."""
    text = figure.suptitle("", x=0.015, ha="left", weight="bold", linespacing=1.25)
    room = 0.97 * figure.bbox.width
    for size, most_lines in ((13, 2), (11.5, 3), (10, 4)):
        text.set_fontsize(size)
        for width in range(100, 20, -4):
            lines = textwrap.wrap(title, width=width, max_lines=most_lines, placeholder=" …")
            text.set_text("\n".join(lines))
            if text.get_window_extent().width <= room:
                break
        if not lines or not lines[-1].endswith("…"):
            return


def smooth(values: Sequence[float]) -> list[float]:
    """Average each value with its neighbours, about a twentieth of the run to either side."""
    reach = max(len(values) // 20, 1)
    sums = [0.0, *itertools.accumulate(values)]  # or 100,000 steps would take minutes
    ends = ((max(i - reach, 0), min(i + reach + 1, len(values))) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def plain_label(label: str, *, width: int = 18) -> str:
    """Shorten each line of a label, so that names from data fit beside an axis."""
    lines = (_printable(line) for line in label.split("\n"))
    return "\n".join(x if len(x) <= width else x[: width - 1].rstrip() + "…" for x in lines)


def _printable(text: str) -> str:
    """Replace what cannot be drawn (control codes, direction marks, emoji) by a box."""
    return "".join(c if c in " \n" or ord(c) in _glyphs() else "\N{WHITE SQUARE}" for c in text)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager, ft2font

    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans"))
    known = ft2font.FT2Font(path).get_charmap()
    # Direction marks have glyphs too, but would turn the words around them.
    return frozenset(code for code in known if unicodedata.category(chr(code)) not in ("Cf", "Cc"))
