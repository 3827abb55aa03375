"""Bars and lines as SVG that reads on a light and on a dark page; for scripts/plots."""

# Series that are told apart by more than their number: colours that both themes show.
COLOURS = ["#2f81f7", "#d29922", "#3fb950", "#a371f7"]
STYLE = """<style>
text { font: 12px sans-serif; fill: #1f2328 } .faint { fill: #656d76 }
.grid { stroke: #8c959f; stroke-opacity: .3 } .range { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #8b949e } .range { stroke: #e6edf3 } }
</style>"""


def number(figure):
    if figure is None:
        return ""
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, (int, float)):
        return f"{figure:,.0f}" if abs(figure) >= 1000 or float(figure).is_integer() else f"{figure:g}"
    return str(figure)


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def svg(title, width, height, parts):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n{STYLE}\n<text x="8" y="18" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )


def nice(most):
    """The first round number that is not below it."""
    if most <= 0:
        return 1
    power = 10.0 ** len(str(int(most))) / 10 if most >= 1 else 10.0 ** -6
    while True:
        for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8):
            if step * power >= most:
                return step * power
        power *= 10


def short(figure):
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if abs(figure) >= unit:
            return f"{figure / unit:g}{name}"
    return f"{figure:g}"


def bars(title, entries):
    """A bar to the median of each, with a line from the lowest to the highest: (name, {median, min, max})."""
    left, width, row = 210, 720, 22
    scale = nice(max(figure["max"] for _, figure in entries))
    at = lambda figure: left + figure / scale * (width - left - 90)
    bottom = 32 + row * len(entries)
    parts = []
    for quarter in range(5):
        x = at(scale * quarter / 4)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="28" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="faint" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{short(scale * quarter / 4)}</text>')
    for index, (name, figure) in enumerate(entries):
        y = 34 + index * row
        middle = y + 7
        parts.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{at(figure["median"]) - left:.1f}" height="14" rx="2" fill="{COLOURS[0]}"/>')
        parts.append(f'<line class="range" x1="{at(figure["min"]):.1f}" y1="{middle}" x2="{at(figure["max"]):.1f}" y2="{middle}"/>')
        for end in ("min", "max"):
            x = at(figure[end])
            parts.append(f'<line class="range" x1="{x:.1f}" y1="{y + 3}" x2="{x:.1f}" y2="{y + 11}"/>')
        parts.append(f'<text class="faint" x="{at(figure["max"]) + 6:.1f}" y="{y + 11}">{number(figure["median"])}</text>')
    return svg(title, width, bottom + 24, parts)


def lines(title, across, panels):
    """A panel for each figure, one above the other: (name, [(series, [(x, y)])])."""
    left, right, width, height = 70, 20, 720, 110
    most_x = max(x for _, series in panels for _, points in series for x, _ in points) or 1
    parts, top = [], 30
    names = list(dict.fromkeys(name for _, series in panels for name, _ in series))
    if len(names) > 1:
        for index, name in enumerate(names):
            x = left + index * 200
            parts.append(f'<rect x="{x}" y="{top - 2}" width="12" height="4" fill="{COLOURS[index % 4]}"/>')
            parts.append(f'<text x="{x + 18}" y="{top + 4}">{escape(name)}</text>')
        top += 20
    for name, series in panels:
        scale = nice(max(y for _, points in series for _, y in points))
        base = top + height - 14
        place = lambda x, y: (left + x / most_x * (width - left - right), base - y / scale * (height - 34))
        parts.append(f'<text x="{left}" y="{top + 10}">{escape(name)}</text>')
        for part in (0, 0.5, 1):
            y = place(0, scale * part)[1]
            parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
            parts.append(f'<text class="faint" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{short(scale * part)}</text>')
        for which, points in series:
            colour = COLOURS[names.index(which) % 4]
            drawn = [place(x, y) for x, y in points]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            if len(drawn) <= 12:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn]
        top += height
    for quarter in range(5):
        x = left + quarter / 4 * (width - left - right)
        parts.append(f'<text class="faint" x="{x:.1f}" y="{top + 6}" text-anchor="middle">{short(most_x * quarter / 4)}</text>')
    parts.append(f'<text class="faint" x="{width / 2}" y="{top + 24}" text-anchor="middle">{escape(across)}</text>')
    return svg(title, width, top + 32, parts)
