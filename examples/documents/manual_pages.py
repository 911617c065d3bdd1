"""Typesets text/manual-*.txt into manual.pdf: title page, contents, chapters, glossary, index.

The text uses one mark per line: `#` chapter, `##` section (a new page), `^` caption of the table
that follows, `|` table row, `@kind` figure, `+` numbered step, `!` warning, `>` note, `~` index terms.
"""
from pathlib import Path

from reportlab.lib.colors import white
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import (BaseDocTemplate, Flowable, Frame, KeepTogether, NextPageTemplate, PageBreak,
                                PageTemplate, Paragraph, Spacer, Table, TableStyle)

from figures import BLUE, GREY, INK, PALE, RUST, TINTS, Figure, label

PAGE = (148 * mm, 210 * mm)
HERE = Path(__file__).parent / "text"


def style(name, size=9.2, leading=None, **more):
    return ParagraphStyle(name, fontName=more.pop("font", "Sans"), fontSize=size, leading=leading or size * 1.42,
                          textColor=more.pop("color", INK), **more)


BODY = style("body", spaceAfter=6)
STEP = style("step", leftIndent=16, bulletIndent=2, spaceAfter=3.5)
CELL = style("cell", 8.1, 10.8)
HEAD = style("head", 8.1, 10.8, font="Sans-Bold", color=white)
CAPTION = style("caption", 7.8, font="Sans-Italic", spaceBefore=3, spaceAfter=8)
TABLE_CAPTION = style("table-caption", 8.2, font="Sans-Bold", spaceBefore=5, spaceAfter=3)
CHAPTER = style("chapter", 11, font="Sans-Bold", color=BLUE, spaceAfter=4)
SECTION = style("section", 15.5, 19, font="Sans-Bold", spaceAfter=8)
BOX = style("box", 8.8, 12)


class Mark(Flowable):
    """Takes no room; tells the document which page a heading or index term fell on."""

    def __init__(self, kind, text, number=""):
        super().__init__()
        self.kind, self.text, self.number = kind, text, number

    def wrap(self, *_):
        return 0, 0

    def draw(self):
        page = self.canv.getPageNumber()
        self.canv.marks.append((self.kind, self.number, self.text, page))
        if self.kind != "term":
            key = f"{self.kind}-{self.number}"
            self.canv.bookmarkPage(key)
            name = f"{self.number} {self.text}" if self.number[:1].isdigit() else self.text
            self.canv.addOutlineEntry(name, key, 0 if self.kind == "chapter" else 1, closed=True)


def boxed(text, word, color, tint, width):
    content = Paragraph(f'<font name="Sans-Bold" color="{color.hexval().replace("0x", "#")}">{word}</font>  {text}', BOX)
    table = Table([[content]], colWidths=[width])
    table.setStyle(TableStyle([("BACKGROUND", (0, 0), (-1, -1), tint), ("LINEBEFORE", (0, 0), (0, -1), 3, color),
                               ("LEFTPADDING", (0, 0), (-1, -1), 10), ("BOTTOMPADDING", (0, 0), (-1, -1), 6)]))
    return [Spacer(1, 3), table, Spacer(1, 7)]


def fact_table(rows, width):
    """Each column holds its longest word; the rest of the width follows the longest cell."""
    weights = [min(38, max(len(row[n]) for row in rows)) + 5 for n in range(len(rows[0]))]
    words = [max(stringWidth(word, "Sans-Bold", 8.1) for row in rows for word in row[n].split() or [""]) + 13 for n in range(len(rows[0]))]
    spare = width - sum(words)
    cells = [[Paragraph(cell, HEAD if r == 0 else CELL) for cell in row] for r, row in enumerate(rows)]
    table = Table(cells, colWidths=[word + spare * w / sum(weights) for word, w in zip(words, weights)], repeatRows=1)
    table.setStyle(TableStyle([
        ("BACKGROUND", (0, 0), (-1, 0), BLUE), ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, PALE]),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, GREY), ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("TOPPADDING", (0, 0), (-1, -1), 2.6), ("BOTTOMPADDING", (0, 0), (-1, -1), 3.4)]))
    return table


class Reader:
    """Turns the marked text into flowables, and counts chapters, tables and figures."""

    def __init__(self, width):
        self.width, self.story = width, []
        self.chapter = self.section = self.tables = self.figures = 0
        self.title = ""

    def read(self, text):
        lines = text.splitlines() + [""]
        n = 0
        while n < len(lines):
            line, block = lines[n], []
            mark = line[:1]
            while mark and mark in "|+@" and (lines[n + 1][:1] == mark or (mark == "@" and lines[n + 1][:1] not in ("", "~"))):
                n += 1
                block.append(lines[n])
            n += 1
            if line.strip():
                self.block(mark, line, block)

    def block(self, mark, line, block):
        story, rest = self.story, line[1:].strip()
        if line.startswith("## "):
            self.section += 1
            number = f"{self.chapter}.{self.section}"
            story.append(PageBreak())
            if self.section == 1:
                story += [Mark("chapter", self.title, str(self.chapter)),
                          Paragraph(f"CHAPTER {self.chapter}  ·  {self.title.upper()}", CHAPTER)]
            story += [Mark("section", rest[1:].strip(), number), Paragraph(f"{number}  {rest[1:].strip()}", SECTION)]
        elif mark == "#":
            self.chapter, self.section, self.tables, self.figures = self.chapter + 1, 0, 0, 0
            self.title = rest
        elif mark == "^":
            self.tables += 1
            story.append(Paragraph(f"Table {self.chapter}-{self.tables}: {rest}", TABLE_CAPTION))
            story[-1].keepWithNext = 1
        elif mark == "|":
            rows = [[cell.strip() for cell in row[1:].split("|")] for row in [line, *block]]
            rows = [(row + [""] * len(rows[0]))[:len(rows[0])] for row in rows]
            story += [fact_table(rows, self.width), Spacer(1, 8)]
        elif mark == "@":
            kind, caption = rest.split(" ", 1)
            self.figures += 1
            figure = Figure(kind, caption, block)
            story.append(KeepTogether([Spacer(1, 4), figure, Paragraph(
                f"Figure {self.chapter}-{self.figures}: {figure.caption}", CAPTION)]))
        elif mark == "+":
            story += [Paragraph(step[1:].strip(), STEP, bulletText=f"{k}.") for k, step in enumerate([line, *block], 1)]
            story.append(Spacer(1, 5))
        elif mark == "!":
            story += boxed(rest, "WARNING", RUST, TINTS[1], self.width)
        elif mark == ">":
            story += boxed(rest, "NOTE", BLUE, TINTS[0], self.width)
        elif mark == "~":
            story += [Mark("term", term.strip()) for term in rest.split(";")]
        else:
            story.append(Paragraph(line, BODY))


def title_page(c, _doc):
    w, h = PAGE
    c.setFillColor(BLUE)
    c.rect(0, h * 0.56, w, h * 0.44, stroke=0, fill=1)
    for k in range(7):  # a water surface
        c.setStrokeColor(TINTS[0])
        c.setLineWidth(2.2 - k * 0.25)
        path = c.beginPath()
        y = h * 0.56 + 14 + k * 10
        path.moveTo(0, y)
        for n in range(6):
            x = n * w / 6
            path.curveTo(x + w / 18, y + 10, x + w / 9, y - 10, x + w / 6, y)
        c.drawPath(path)
    label(c, "QUERNBY WATER WORKS", 22 * mm, h - 24 * mm, 11, 400, "Sans-Bold", white, "left")
    label(c, "Quernby Q60", 22 * mm, h - 42 * mm, 34, 500, "Sans-Bold", white, "left")
    label(c, "Brackish-water purification plant, 60 m³/h", 22 * mm, h - 54 * mm, 14, 500, "Sans", white, "left")
    label(c, "Operation and service manual", 22 * mm, h * 0.44, 20, 500, "Sans-Bold", INK, "left")
    label(c, "Installation · Operation · Maintenance · Error codes · Spare parts", 22 * mm, h * 0.40, 9.5, 500, "Sans", INK, "left")
    label(c, "Document QM-60-EN, edition 7, for program version 4.2", 22 * mm, 30 * mm, 9, 500, "Sans", GREY, "left")
    label(c, "The plant, its maker and all values are invented for the pagemill examples.", 22 * mm, 24 * mm, 8, 500, "Sans-Italic", GREY, "left")


def later_page(c, doc):
    w, h = PAGE
    chapter = [m for m in c.marks if m[0] == "chapter"]
    c.setFont("Sans", 7.5)
    c.setFillColor(GREY)
    c.drawString(18 * mm, h - 11 * mm, "Quernby Q60  ·  Operation and service manual")
    if chapter:
        c.drawRightString(w - 18 * mm, h - 11 * mm, chapter[-1][2])
    c.setStrokeColor(GREY)
    c.setLineWidth(0.4)
    c.line(18 * mm, h - 13 * mm, w - 18 * mm, h - 13 * mm)
    c.line(18 * mm, 13 * mm, w - 18 * mm, 13 * mm)
    c.drawString(18 * mm, 9 * mm, "QM-60-EN / 7")
    c.setFillColor(INK)
    c.drawRightString(w - 18 * mm, 9 * mm, str(c.getPageNumber()))


def contents(marks, width):
    top = style("toc-chapter", 8.8, 11.8, font="Sans-Bold")
    sub = style("toc-section", 8.2, 10.4, leftIndent=12)
    rows = []
    for kind, number, text, page in marks:
        if kind == "term":
            continue
        link = f'<a href="#{kind}-{number}">{number if number[:1].isdigit() else ""}  {text}</a>'
        rows.append([Paragraph(link, top if kind == "chapter" else sub), Paragraph(str(page), style("toc-page", 8.2, 10.4, alignment=2))])
    table = Table(rows, colWidths=[width - 40, 40])
    table.setStyle(TableStyle([("TOPPADDING", (0, 0), (-1, -1), 0.3), ("BOTTOMPADDING", (0, 0), (-1, -1), 0.9),
                               ("VALIGN", (0, 0), (-1, -1), "BOTTOM")]))
    return table


def two_columns(rows, width, first=0.32):
    table = Table(rows, colWidths=[width * first, width * (1 - first)])
    table.setStyle(TableStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("TOPPADDING", (0, 0), (-1, -1), 1.5),
                               ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5), ("LINEBELOW", (0, 0), (-1, -1), 0.3, PALE)]))
    return table


def index_rows(marks):
    terms = {}
    for kind, _, text, page in marks:
        if kind == "term":
            terms.setdefault(text, set()).add(page)
    entries = [f"{term}, {', '.join(map(str, sorted(pages)))}" for term, pages in sorted(terms.items(), key=lambda t: t[0].lower())]
    small, rows = style("index", 8, 10.6), []
    per_column = 38
    for start in range(0, len(entries), per_column * 2):
        left, right = entries[start:start + per_column], entries[start + per_column:start + per_column * 2]
        rows += [[Paragraph(a, small), Paragraph(b, small)] for a, b in zip(left, right + [""] * (len(left) - len(right)))]
    return rows


ABOUT = [
    "This manual describes the Quernby Q60 for the people who install it, run it and keep it in order. It follows the "
    "path of the water: each chapter treats one part of the plant, in the order in which a drop passes through.",
    "Each section fills one page, so that a page can be copied and taken to the machine. Torques, settings and "
    "clearances stand only in the section of the part concerned and nowhere else; the index leads there.",
    "Numbered steps must be done in their order. A red bar marks a danger to people, a blue bar marks advice that "
    "saves time or material. Tags such as P-300 are those of the yellow plates on the plant.",
    "Pressures are gauge pressures in bar. Where seconds or minutes are given, they were taken at 15 °C feed temperature.",
]


def build(path):
    """Builds until the page numbers in contents and index stand still (three passes)."""
    marks, settled = [], False
    while not settled:
        doc = BaseDocTemplate(str(path), pagesize=PAGE, invariant=1, title="Quernby Q60 operation and service manual",
                              author="pagemill examples", lang="en", pageCompression=1)
        frame = Frame(18 * mm, 15 * mm, PAGE[0] - 36 * mm, PAGE[1] - 31 * mm, 0, 0, 0, 0)
        doc.addPageTemplates([PageTemplate("title", [frame], onPage=title_page), PageTemplate("later", [frame], onPageEnd=later_page)])
        width = PAGE[0] - 36 * mm
        reader = Reader(width)
        reader.story += [NextPageTemplate("later"), PageBreak(), Mark("chapter", "About this manual", "about"),
                         Paragraph("About this manual", SECTION), *(Paragraph(p, BODY) for p in ABOUT),
                         PageBreak(), Mark("chapter", "Contents", "contents"), Paragraph("Contents", SECTION)]
        reader.story.append(contents(marks, width) if marks else Spacer(1, 1))
        for part in sorted(HERE.glob("manual-*.txt")):
            reader.read(part.read_text(encoding="utf-8"))
        words = [line.split("|") for line in (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines()]
        bold = style("word", 8.6, font="Sans-Bold")
        reader.story += [PageBreak(), Mark("chapter", "Glossary", "glossary"), Paragraph("Glossary", SECTION),
                         two_columns([[Paragraph(a, bold), Paragraph(b, style("meaning", 8.6))] for a, b in words], width)]
        reader.story += [PageBreak(), Mark("chapter", "Index", "index"), Paragraph("Index", SECTION)]
        if marks:
            reader.story.append(two_columns(index_rows(marks), width, 0.5))
        found = []

        def start(canvas, _doc):
            canvas.marks = found
        doc.pageTemplates[0].beforeDrawPage = start
        doc.build(reader.story)
        settled, marks = marks == found, found
    return marks
