"""Vector figures, drawn with reportlab and described by a few lines of text.

A figure is a Flowable: kind, caption and data lines, as they stand in text/*.txt:

    @bars Salt passage by ion, percent
    Chloride=3.4 Boron=35
"""
import math

from reportlab.lib.colors import HexColor, white
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import Flowable

INK, BLUE, TEAL, RUST, GREY, PALE = (
    HexColor(c) for c in ("#1d2b36", "#1f5f8b", "#2a8c82", "#b5532a", "#8a97a1", "#e8eef2"))
SERIES = [BLUE, RUST, TEAL, HexColor("#8a5a9e"), GREY]
TINTS = [HexColor(c) for c in ("#dbe9f3", "#f6e3d8", "#dbefec", "#ece2f1", "#e8eef2", "#f5efd6")]
HEIGHTS = {"bars": 120, "curve": 150, "flow": 0, "stack": 118, "gantt": 0, "tank": 150, "plan": 150,
           "layers": 150, "plate": 120, "lift": 150, "align": 105, "array": 150, "array2": 80, "section": 120}


def wrap(text, font, size, width):
    """Breaks a label into lines that fit; a word that is too long stands alone."""
    lines = [""]
    for word in text.split():
        longer = (lines[-1] + " " + word).strip()
        if lines[-1] and stringWidth(longer, font, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def label(c, text, x, y, size=7, width=200, font="Sans", color=INK, align="centre"):
    """Draws wrapped text around the point (x, y), centred in height."""
    lines = wrap(text, font, size, width)
    c.setFont(font, size)
    c.setFillColor(color)
    top = y + (len(lines) - 1) * size * 0.6 - size * 0.35
    draw = {"centre": c.drawCentredString, "left": c.drawString, "right": c.drawRightString}[align]
    for n, line in enumerate(lines):
        draw(x, top - n * size * 1.2, line)


def arrow(c, x0, y0, x1, y1, color=INK, width=1.0):
    c.setStrokeColor(color)
    c.setFillColor(color)
    c.setLineWidth(width)
    c.line(x0, y0, x1, y1)
    angle = math.atan2(y1 - y0, x1 - x0)
    head = c.beginPath()
    head.moveTo(x1, y1)
    for turn in (2.7, -2.7):
        head.lineTo(x1 + 5 * math.cos(angle + turn), y1 + 5 * math.sin(angle + turn))
    head.close()
    c.drawPath(head, stroke=0, fill=1)


def nice_ticks(low, high, count=5):
    """Round tick values that cover low to high."""
    span = (high - low) or 1
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= count)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(n * step, 6) for n in range(first, last + 1)]


class Figure(Flowable):
    def __init__(self, kind, caption, lines, size=7, height=None):
        super().__init__()
        self.kind, self.size = kind, size
        self.caption, *self.axes = [part.strip() for part in caption.split("|")]
        self.lines = lines
        self.fixed = height

    def wrap(self, width, _height):
        self.width = width
        rows = len(self.lines)
        self.height = self.fixed or {"flow": 46 * rows, "gantt": 17 * rows + 24}.get(self.kind) or HEIGHTS[self.kind]
        return self.width, self.height

    def draw(self):
        self.canv.saveState()
        getattr(self, "draw_" + self.kind)(self.canv, self.width, self.height)
        self.canv.restoreState()

    def pairs(self):
        """`Name with spaces=12 Other=3` on one line, or `name=value` on each line."""
        if len(self.lines) > 1:
            return [tuple(line.split("=", 1)) for line in self.lines]
        pairs, name = [], []
        for word in self.lines[0].split():
            head, sep, value = word.partition("=")
            name.append(head)
            if sep:
                pairs.append((" ".join(name).replace("_", " "), value))
                name = []
        return pairs

    # Charts

    def draw_bars(self, c, w, h):
        pairs = [(name, float(value)) for name, value in self.pairs()]
        u = self.size / 7
        left, bottom = 34 * u, 24 * u
        ticks = nice_ticks(0, max(v for _, v in pairs) * 1.08, 4)
        scale = (h - bottom - 12 * u) / ticks[-1]
        c.setLineWidth(0.4)
        for tick in ticks:
            y = bottom + tick * scale
            c.setStrokeColor(PALE)
            c.line(left, y, w, y)
            label(c, f"{tick:g}", left - 4, y, self.size, align="right", color=GREY)
        slot = (w - left) / len(pairs)
        for n, (name, value) in enumerate(pairs):
            x = left + slot * (n + 0.5)
            c.setFillColor(BLUE if n % 2 == 0 else TEAL)
            c.rect(x - min(slot * 0.3, 20 * u), bottom, min(slot * 0.6, 40 * u), value * scale, stroke=0, fill=1)
            label(c, f"{value:g}", x, bottom + value * scale + 6 * u, self.size, font="Sans-Bold")
            label(c, name, x, bottom - 11 * u, self.size, slot - 2)
        c.setStrokeColor(INK)
        c.line(left, bottom, w, bottom)

    def draw_curve(self, c, w, h):
        series = []
        for line in self.lines:
            name, data = line.split(":")
            series.append((name, [tuple(map(float, p.split(","))) for p in data.split()]))
        xs = [x for _, points in series for x, _ in points]
        ys = [y for _, points in series for _, y in points]
        low = 0 if min(ys) < 0.55 * max(ys) else min(ys) - (max(ys) - min(ys)) * 0.1
        xt, yt = nice_ticks(min(xs), max(xs), 8), nice_ticks(low, max(ys), 5)
        u = self.size / 7
        left, bottom = 42 * u, 30 * u
        top, right = h - (16 + 10 * (len(series) > 1)) * u, w - 10
        fx = lambda x: left + (x - xt[0]) / (xt[-1] - xt[0]) * (right - left)
        fy = lambda y: bottom + (y - yt[0]) / (yt[-1] - yt[0]) * (top - bottom)
        c.setLineWidth(0.4)
        for tick in xt:
            c.setStrokeColor(PALE)
            c.line(fx(tick), bottom, fx(tick), top)
            label(c, f"{tick:g}", fx(tick), bottom - 8 * u, self.size, color=GREY)
        for tick in yt:
            c.setStrokeColor(PALE)
            c.line(left, fy(tick), right, fy(tick))
            label(c, f"{tick:g}", left - 4, fy(tick), self.size, align="right", color=GREY)
        c.setStrokeColor(INK)
        c.setLineWidth(0.7)
        c.line(left, bottom, right, bottom)
        c.line(left, bottom, left, top)
        if self.axes:
            label(c, self.axes[0], (left + right) / 2, bottom - 21 * u, self.size, 400)
            label(c, self.axes[1], left, top + 8 * u, self.size, 300, align="left")
        x = left
        for n, (name, points) in enumerate(series):
            color = SERIES[n]
            c.setStrokeColor(color)
            c.setLineWidth(1.3 * u)
            path = c.beginPath()
            path.moveTo(fx(points[0][0]), fy(points[0][1]))
            for px, py in points[1:]:
                path.lineTo(fx(px), fy(py))
            c.drawPath(path)
            c.setFillColor(color)
            for px, py in points:
                c.circle(fx(px), fy(py), 1.7 * u, stroke=0, fill=1)
            if len(series) > 1:
                c.rect(x, h - 8 * u, 10 * u, 3 * u, stroke=0, fill=1)
                label(c, name, x + 14 * u, h - 6.5 * u, self.size, 400, align="left")
                x += 30 * u + stringWidth(name, "Sans", self.size)

    def draw_gantt(self, c, w, h):
        rows = []
        for line in self.lines:
            name, span = line.split("=")
            rows.append((name, *map(float, span.split("-"))))
        ticks = nice_ticks(min(r[1] for r in rows), max(r[2] for r in rows), 9)
        left, bottom = 118, 20
        fx = lambda x: left + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (w - left - 8)
        c.setLineWidth(0.4)
        for tick in ticks:
            c.setStrokeColor(PALE)
            c.line(fx(tick), bottom, fx(tick), h)
            label(c, f"{tick:g}", fx(tick), bottom - 8, self.size, color=GREY)
        for n, (name, start, end) in enumerate(rows):
            y = h - 14 - n * 17
            label(c, name, left - 6, y + 5, self.size, 112, align="right")
            c.setFillColor(SERIES[n % 4])
            c.rect(fx(start), y, max(fx(end) - fx(start), 2), 10, stroke=0, fill=1)
        c.setStrokeColor(INK)
        c.line(left, bottom, w - 8, bottom)

    # Schematics

    def draw_flow(self, c, w, h):
        for r, line in enumerate(self.lines):
            boxes = [box.strip() for box in line.split(" > ")]
            gap = 14
            bw = min((w - gap * (len(boxes) - 1)) / len(boxes), 120)
            y = h - 46 * (r + 1) + 6
            for n, text in enumerate(boxes):
                x = n * (bw + gap)
                c.setFillColor(TINTS[(n + r) % len(TINTS)])
                c.setStrokeColor(INK)
                c.setLineWidth(0.7)
                c.roundRect(x, y, bw, 34, 4, fill=1)
                label(c, text, x + bw / 2, y + 17, self.size, bw - 6)
                if n:
                    arrow(c, x - gap, y + 17, x, y + 17)

    def draw_plan(self, c, w, h):
        cells = []
        for line in self.lines:
            x, y, cw, ch, text = line.split(" ", 4)
            cells.append((float(x), float(y), float(cw), float(ch), text))
        columns, rows = max(x + cw for x, _, cw, _, _ in cells), max(y + ch for _, y, _, ch, _ in cells)
        sx, sy = w / columns, (h - 8) / rows
        if rows < 2:
            sy = 44
        for n, (x, y, cw, ch, text) in enumerate(cells):
            c.setFillColor(TINTS[n % len(TINTS)])
            c.setStrokeColor(INK)
            c.setLineWidth(0.7)
            c.rect(x * sx, h - 4 - (y + ch) * sy, cw * sx, ch * sy, fill=1)
            label(c, text, (x + cw / 2) * sx, h - 4 - (y + ch / 2) * sy, self.size, cw * sx - 6)

    def draw_stack(self, c, w, h):
        """Exploded view: the parts on one axis, each with a numbered balloon and a name."""
        axis, slot = h * 0.58, w / len(self.lines)
        c.setStrokeColor(GREY)
        c.setLineWidth(0.5)
        c.setDash(8, 3)
        c.line(0, axis, w, axis)
        c.setDash()
        for n, (name, shape) in enumerate(line.split("=") for line in self.lines):
            x = slot * (n + 0.5)
            c.setStrokeColor(INK)
            c.setLineWidth(0.8)
            c.setFillColor(TINTS[n % len(TINTS)])
            self.part(c, shape, x, axis, min(slot * 0.6, 46))
            c.setLineWidth(0.4)
            c.line(x, axis + 30, x, axis + 36)
            c.setFillColor(white)
            c.circle(x, axis + 42, 6, fill=1)
            label(c, str(n + 1), x, axis + 42, 7, font="Sans-Bold")
            label(c, name, x, axis - 48, 6.6, slot - 3)

    @staticmethod
    def part(c, shape, x, y, s):
        if shape == "bolt":
            c.rect(x - s / 2, y - 9, 7, 18, fill=1)
            c.rect(x - s / 2 + 7, y - 4, s - 7, 8, fill=1)
            for k in range(int((s - 12) / 3)):
                c.line(x - s / 2 + 11 + 3 * k, y - 4, x - s / 2 + 13 + 3 * k, y + 4)
        elif shape == "nut":
            c.rect(x - 7, y - 12, 14, 24, fill=1)
            c.line(x - 7, y - 5, x + 7, y - 5)
            c.line(x - 7, y + 5, x + 7, y + 5)
        elif shape == "ring":
            c.ellipse(x - 9, y - 26, x + 9, y + 26, fill=1)
            c.setFillColor(white)
            c.ellipse(x - 5, y - 18, x + 5, y + 18, fill=1)
        elif shape == "disc":
            c.ellipse(x - 13, y - 27, x + 5, y + 27, fill=1)
            c.ellipse(x - 7, y - 27, x + 11, y + 27, fill=1)
            c.circle(x + 2, y, 3)
        elif shape == "cyl":
            c.rect(x - s / 2, y - 22, s, 44, fill=1)
            c.ellipse(x + s / 2 - 7, y - 22, x + s / 2 + 7, y + 22, fill=1)
        elif shape == "box":
            c.rect(x - s / 2, y - 18, s, 36, fill=1)
            for k in (-9, 0, 9):
                c.line(x - s / 2, y + k, x + s / 2, y + k)
        elif shape == "plate":
            c.rect(x - 3, y - 28, 6, 56, fill=1)
        elif shape == "rod":
            c.rect(x - s / 2 - 3, y - 4, s + 6, 8, fill=1)
        elif shape == "cone":
            path = c.beginPath()
            path.moveTo(x - s / 2, y - 8)
            path.lineTo(x + s / 2, y - 25)
            path.lineTo(x + s / 2, y + 25)
            path.lineTo(x - s / 2, y + 8)
            path.close()
            c.drawPath(path, fill=1)
        elif shape == "spring":
            for k in range(6):
                c.line(x - s / 2 + k * s / 6, y - 14, x - s / 2 + (k + 1) * s / 6, y + 14)
                c.line(x - s / 2 + (k + 1) * s / 6, y + 14, x - s / 2 + (k + 1) * s / 6, y - 14)
        else:
            c.circle(x, y, 11, fill=1)

    def draw_tank(self, c, w, h):
        levels = sorted(((float(v), name) for v, name in (l.split("=") for l in self.lines)), reverse=True)
        x, tw, top = w * 0.16, w * 0.26, levels[0][0] * 1.04
        c.setFillColor(TINTS[0])
        c.rect(x, 6, tw, (h - 12) * levels[1][0] / top, stroke=0, fill=1)
        c.setStrokeColor(INK)
        c.setLineWidth(1.4)
        c.roundRect(x, 6, tw, h - 12, 8)
        last = 1e9
        for value, name in levels:
            y = 6 + (h - 12) * value / top
            c.setStrokeColor(RUST)
            c.setLineWidth(0.6)
            c.setDash(3, 2)
            c.line(x, y, x + tw, y)
            c.setDash()
            text_y = min(y, last - 12)
            c.line(x + tw, y, x + tw + 16, text_y)
            label(c, f"{value:g}", x - 6, text_y, self.size, align="right", font="Sans-Bold")
            label(c, name, x + tw + 20, text_y, self.size, 300, align="left")
            last = text_y

    def draw_layers(self, c, w, h):
        step, x, bw = (h - 10) / len(self.lines), w * 0.2, w * 0.25
        for n, line in enumerate(self.lines):
            name, size = line.split("=")
            y = h - 5 - (n + 1) * step
            c.setFillColor(TINTS[n % len(TINTS)])
            c.setStrokeColor(INK)
            c.setLineWidth(0.7)
            c.rect(x, y, bw, step, fill=1)
            c.setFillColor(GREY)
            for k in range(0 if n in (0, len(self.lines) - 1) else 12 * n):
                c.circle(x + 4 + (k * 37.7) % (bw - 8), y + 3 + (k * 11.3) % (step - 6), 0.5 + 0.3 * (n == 4) * 3, 0, 1)
            label(c, f"{name}: {size}" if size != "plate" else name, x + bw + 10, y + step / 2, self.size, 300, align="left")

    def draw_plate(self, c, w, h):
        x, pw = w * 0.18, w * 0.64
        c.setFillColor(PALE)
        c.setStrokeColor(INK)
        c.setLineWidth(1.2)
        c.roundRect(x, 2, pw, h - 4, 7, fill=1)
        for hx in (x + 9, x + pw - 9):
            for hy in (11, h - 11):
                c.circle(hx, hy, 2.4)
        title, *rows = [line.split("|") for line in self.lines]
        label(c, title[0], x + pw / 2, h - 14, 9, 400, font="Sans-Bold")
        for n, (key, value) in enumerate(rows):
            y = h - 32 - n * 13
            label(c, key, x + 24, y, self.size, 200, align="left")
            label(c, value, x + pw - 24, y, self.size + 0.5, 300, font="Mono", align="right")

    def draw_lift(self, c, w, h):
        m = w / 2
        c.setStrokeColor(INK)
        c.setFillColor(TINTS[0])
        c.rect(m - 110, 8, 220, 42, fill=1)
        for k in range(3):
            c.line(m - 104, 18 + 11 * k, m + 104, 18 + 11 * k)
        c.setFillColor(TINTS[5])
        c.rect(m - 95, 88, 190, 9, fill=1)
        for x in (-88, 88):
            c.line(m + x, 88, m + x, 50)
            c.line(m + x, 97, m + 22, h - 10)
        c.setFillColor(RUST)
        c.circle(m + 22, h - 9, 5, fill=1)
        c.setDash(2, 2)
        c.line(m + 22, h - 10, m + 22, 8)
        c.setDash()
        label(c, "crane hook over the centre of gravity", m + 32, h - 9, self.size, 120, align="left")
        label(c, "spreader beam", m - 100, 93, self.size, 80, align="right")
        label(c, "vertical slings", m + 96, 68, self.size, 100, align="left")
        label(c, "410 mm off the middle", m + 24, 58, self.size, 60, align="left")
        label(c, "frame C", m - 118, 29, self.size, 80, align="right")

    def draw_align(self, c, w, h):
        y = h * 0.5
        c.setStrokeColor(INK)
        for x, bw, text in ((0.02, 0.3, "pump"), (0.68, 0.3, "motor")):
            c.setFillColor(TINTS[0])
            c.rect(w * x, y - 28, w * bw, 56, fill=1)
            label(c, text, w * (x + bw / 2), y, 8)
        c.setFillColor(TINTS[5])
        c.rect(w * 0.32, y - 5, w * 0.08, 10, fill=1)
        c.rect(w * 0.6, y - 7, w * 0.08, 10, fill=1)
        c.rect(w * 0.4, y - 12, w * 0.2, 24, fill=1)
        label(c, "spacer 140 mm", w * 0.5, y, self.size)
        for x, text in ((0.36, "laser S"), (0.64, "laser M")):
            c.setFillColor(RUST)
            c.rect(w * x - 5, y + 14, 10, 14, fill=1)
            label(c, text, w * x, y + 36, self.size)
        c.setStrokeColor(RUST)
        c.setDash(2, 2)
        c.line(w * 0.36, y + 21, w * 0.64, y + 21)
        c.setDash()
        label(c, "motor 0.08 mm low when cold", w * 0.83, y - 38, self.size, 200)

    def draw_array(self, c, w, h):
        c.setStrokeColor(INK)
        for n in range(9):
            x, y = (w * 0.14, h - 22 - n * 21) if n < 6 else (w * 0.58, h - 54 - (n - 6) * 21)
            c.setFillColor(TINTS[0] if n < 6 else TINTS[1])
            c.roundRect(x, y, w * 0.28, 15, 6, fill=1)
            for k in (1, 2, 3):
                c.line(x + w * 0.07 * k, y, x + w * 0.07 * k, y + 15)
            label(c, str(n + 1), x + 6, y + 7.5, 6.5, font="Sans-Bold")
        arrow(c, 0, h / 2, w * 0.13, h / 2, BLUE, 1.5)
        arrow(c, w * 0.43, h / 2, w * 0.57, h / 2, RUST, 1.5)
        arrow(c, w * 0.87, h / 2, w, h / 2, RUST, 1.5)
        label(c, "feed", w * 0.06, h / 2 + 9, self.size)
        label(c, "X-340", w * 0.5, h / 2 + 9, self.size)
        label(c, "concentrate", w * 0.935, h / 2 + 9, self.size)
        label(c, "stage 1", w * 0.28, h - 1, self.size, font="Sans-Bold")
        label(c, "stage 2", w * 0.72, h - 29, self.size, font="Sans-Bold")

    def draw_array2(self, c, w, h):
        for n in range(14):
            x = w * (n + 0.5) / 14
            c.setStrokeColor(INK)
            c.setFillColor(TINTS[n % 2 * 2])
            c.roundRect(x - w / 34, 20, w / 17, h - 26, 6, fill=1)
            label(c, f"1-{n + 1:02}", x, h / 2 + 6, 6.5)
        c.line(0, 12, w, 12)
        label(c, "feed collector", w / 2, 5, self.size)

    def draw_section(self, c, w, h):
        m, y = w * 0.36, h / 2
        c.setStrokeColor(INK)
        if "fibre" in self.caption:
            c.setFillColor(TINTS[0])
            c.circle(m, y, 54, fill=1)
            c.setFillColor(white)
            for k in range(7):
                a = k * math.pi / 3
                c.circle(m + (33 * math.cos(a) if k < 6 else 0), y + (33 * math.sin(a) if k < 6 else 0), 12, fill=1)
            notes = ["channel, 0.9 mm", "porous support", "filtrate leaves outside"]
        else:
            c.setFillColor(TINTS[0])
            c.circle(m, y, 56, fill=1)
            path = c.beginPath()
            for k in range(500):
                a, r = k * 0.09, 9 + k * 0.092
                (path.lineTo if k else path.moveTo)(m + r * math.cos(a), y + r * math.sin(a))
            c.setStrokeColor(BLUE)
            c.drawPath(path)
            c.setStrokeColor(INK)
            c.setFillColor(white)
            c.circle(m, y, 8, fill=1)
            notes = ["membrane leaf", "product carrier", "central tube, 29 mm"]
        for n, note in enumerate(notes):
            label(c, note, w * 0.64, y + 30 - 28 * n, self.size + 0.5, 200, align="left")
            c.setLineWidth(0.5)
            c.line(w * 0.63, y + 30 - 28 * n, m + [30, 44, 4 if "fibre" not in self.caption else 50][n], y + [16, 2, -6][n])
