#!/usr/bin/env python3
"""Makes the sample documents in this folder. Every text and picture is this project's own.

    pip install reportlab pillow numpy fonttools pikepdf python-bidi arabic-reshaper
    apt install fonts-noto-core fonts-noto-cjk fonts-dejavu-core
    python make_documents.py [name ...] [--force]

Output bytes are stable from run to run. protected.pdf is the exception: its encryption is salted,
so an existing file is kept unless --force is given.
"""
import argparse
import io
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from reportlab import rl_config
from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A0, A4, A5
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (BaseDocTemplate, Frame, KeepTogether, NextPageTemplate, PageTemplate, Paragraph,
                                Spacer, Table, TableStyle)

import manual_pages
from figures import BLUE, GREY, INK, PALE, RUST, SERIES, TINTS, Figure, label
from manual_pages import style

rl_config.invariant = 1
rl_config.useA85 = 0

HERE = Path(__file__).parent
NOTO = Path("/usr/share/fonts/truetype/noto")
NOTO_CJK = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
DEJAVU = Path("/usr/share/fonts/truetype/dejavu")
FONTS = {
    "Sans": NOTO / "NotoSans-Regular.ttf", "Sans-Bold": NOTO / "NotoSans-Bold.ttf",
    "Sans-Italic": NOTO / "NotoSans-Italic.ttf", "Serif": NOTO / "NotoSerif-Regular.ttf",
    "Serif-Bold": NOTO / "NotoSerif-Bold.ttf", "Serif-Italic": NOTO / "NotoSerif-Italic.ttf",
    "Mono": DEJAVU / "DejaVuSansMono.ttf", "Arabic": NOTO / "NotoNaskhArabic-Regular.ttf",
}


def register_fonts():
    for name, path in FONTS.items():
        pdfmetrics.registerFont(TTFont(name, str(path)))


def canvas(path, size, title):
    c = Canvas(path if isinstance(path, io.BytesIO) else str(path), pagesize=size, invariant=1, pageCompression=1)
    c.setTitle(title)
    c.setAuthor("pagemill examples")
    return c


def put(c, flowable, x, top, width):
    """Draws a paragraph, table or figure with its upper left corner at (x, top); returns its lower edge."""
    _, height = flowable.wrap(width, 10000)
    flowable.drawOn(c, x, top - height)
    return top - height


def figure(c, kind, caption, lines, x, y, width, height, size=11):
    put(c, Figure(kind, caption, lines, size=size, height=height), x, y + height, width)


# manual.pdf

def make_manual(path):
    manual_pages.build(path)


# paper.pdf

def make_paper(path):
    page, gap, margin = (190 * mm, 254 * mm), 7 * mm, 17 * mm
    width = (page[0] - 2 * margin - gap) / 2
    body = style("p", 9.8, 13.8, font="Serif", alignment=4, spaceAfter=5)
    heading = style("h", 11.5, font="Sans-Bold", spaceBefore=8, spaceAfter=4)
    sub = style("hh", 10, font="Sans-Bold", spaceBefore=5, spaceAfter=3)
    equation = style("e", 9.6, font="Serif-Italic", leftIndent=10, spaceBefore=3, spaceAfter=7)
    caption = style("c", 8.4, font="Sans", spaceBefore=2, spaceAfter=9)
    reference = style("r", 8.8, 11.8, font="Serif", leftIndent=16, firstLineIndent=-16, spaceAfter=3)
    cell, head = style("tc", 7.6, 10), style("th", 7.6, 10, font="Sans-Bold")
    front, story, parts = {}, [], (HERE / "text" / "paper.txt").read_text(encoding="utf-8").splitlines() + [""]
    n = 0
    while n < len(parts):
        line, data = parts[n], []
        n += 1
        mark, _, rest = line.partition(" ")
        if mark[:1] == "@":
            while parts[n]:
                data.append(parts[n])
                n += 1
        if mark in ("%T", "%A", "%I", "%Z"):
            front[mark[1]] = rest
        elif mark == "#":
            story.append(Paragraph(rest, heading))
            story[-1].keepWithNext = 1
        elif mark == "##":
            story.append(Paragraph(rest, sub))
            story[-1].keepWithNext = 1
        elif mark == "%E":
            story.append(Paragraph(rest, equation))
        elif mark == "%R":
            story.append(Paragraph(rest, reference))
        elif mark == "@table":
            rows = [[c.strip() for c in row[1:].split("|")] for row in data]
            shares = [0.46, 0.2, 0.17, 0.17] if len(rows[0]) == 4 else [0.22, 0.18, 0.17, 0.23, 0.2]
            table = Table([[Paragraph(c, head if r == 0 else cell) for c in row] for r, row in enumerate(rows)],
                          colWidths=[width * share for share in shares])
            table.setStyle(TableStyle([("LINEABOVE", (0, 0), (-1, 0), 0.9, INK), ("LINEBELOW", (0, 0), (-1, 0), 0.5, INK),
                                       ("LINEBELOW", (0, -1), (-1, -1), 0.9, INK), ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 2),
                                       ("RIGHTPADDING", (0, 0), (-1, -1), 2), ("TOPPADDING", (0, 0), (-1, -1), 1.5),
                                       ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5)]))
            story.append(KeepTogether([Spacer(1, 4), Paragraph(rest, caption), table, Spacer(1, 10)]))
        elif mark[:1] == "@":
            drawing = Figure(mark[1:], rest, data, size=7.4 if mark[1:] == "curve" else 6.3, height=190 if mark[1:] in ("bars", "curve") else None)
            story.append(KeepTogether([Spacer(1, 4), drawing, Paragraph(drawing.caption + ".", caption)]))
        elif line.strip():
            story.append(Paragraph(line, body))

    inner = page[0] - 2 * margin - 50
    opening = [Paragraph(front["T"], style("t", 17, 22, font="Sans-Bold", alignment=1, spaceAfter=8)),
               Paragraph(front["A"], style("a", 10.5, font="Sans", alignment=1)),
               Paragraph(front["I"], style("i", 9, font="Sans-Italic", alignment=1, spaceAfter=10)),
               Paragraph('<font name="Sans-Bold">Abstract.</font> ' + front["Z"], style("z", 9.2, 12.8, font="Serif", alignment=4, spaceAfter=14))]
    head_height = sum(p.wrap(inner, 1000)[1] + p.style.spaceAfter for p in opening)

    def first_page(c, _doc):
        top = page[1] - 20 * mm
        for paragraph in opening:
            top = put(c, paragraph, margin + 25, top, inner) - paragraph.style.spaceAfter
        footer(c, None)

    def footer(c, _doc):
        label(c, f"Hearing the Flow  ·  {c.getPageNumber()}", page[0] / 2, 10 * mm, 8, color=GREY)

    def column(x, height):
        return Frame(x, 16 * mm, width, height, 0, 0, 0, 0)

    full = page[1] - 36 * mm
    doc = BaseDocTemplate(str(path), pagesize=page, invariant=1, title=front["T"], author="pagemill examples", lang="en")
    right = margin + width + gap
    doc.addPageTemplates([
        PageTemplate("first", [column(margin, full - head_height), column(right, full - head_height)], onPage=first_page),
        PageTemplate("later", [column(margin, full), column(right, full)], onPage=footer)])
    doc.build([NextPageTemplate("later")] + story)


# invoice.pdf

INVOICE = [
    ("QP-3031", "Cartridge 5 µm, 40 inch, box of 28", 4, 212.00),
    ("QP-3501", "Membrane element QE-440 LF", 12, 486.50),
    ("QP-3504", "Brine seal 8 inch", 12, 9.80),
    ("QP-3505", "Interconnector with four O-rings", 12, 31.25),
    ("QP-5001", "Amalgam lamp 230 W", 4, 174.00),
    ("QP-5003", "O-ring of the quartz sleeve, 10 pieces", 1, 18.60),
    ("QP-6034", "Diaphragm kit DK-34", 2, 96.40),
    ("QP-8203", "pH probe, glass, 120 mm", 3, 128.00),
    ("KL-7/200", "Antiscalant KL-7, drum of 200 l", 6, 655.00),
    ("SV-09", "Fitter, hours on site", 22, 84.00),
    ("SV-14", "Travel, flat rate zone 3", 2, 145.00),
    ("RT-02", "Return of used lamps", 4, -6.50),
]


def money(value):
    return f"{value:,.2f}".replace(",", " ")


def make_invoice(path):
    c = canvas(path, A4, "Invoice QWW-20417")
    w, h = A4
    c.setFillColor(BLUE)
    c.rect(0, h - 30 * mm, w, 30 * mm, stroke=0, fill=1)
    label(c, "QUERNBY WATER WORKS", 20 * mm, h - 15 * mm, 17, 400, "Sans-Bold", white, "left")
    label(c, "Weir Lane 4, 40-117 Quernby  ·  service@quernby.example", 20 * mm, h - 22 * mm, 8.5, 400, "Sans", white, "left")
    label(c, "INVOICE", w - 20 * mm, h - 17 * mm, 20, 400, "Sans-Bold", white, "right")
    plain = style("plain", 9.5)
    put(c, Paragraph("<font name='Sans-Bold'>Bill to</font><br/>Municipality of Lower Ashmere<br/>Water Department, Mrs. Ilse Brackwater<br/>"
                     "Town Hall Square 1<br/>40-552 Lower Ashmere", plain), 20 * mm, h - 42 * mm, 80 * mm)
    facts = [("Invoice number", "QWW-20417"), ("Invoice date", "14 March, year 7"), ("Customer number", "LA-0093"),
             ("Purchase order", "PO 7/118-W"), ("Delivery note", "DN-55102, carrier Fennhaul"), ("Payment due", "13 April, year 7")]
    table = Table([[Paragraph(a, style("fa", 8.8, color=GREY)), Paragraph(b, style("fb", 8.8, font="Sans-Bold"))] for a, b in facts],
                  colWidths=[32 * mm, 48 * mm])
    table.setStyle(TableStyle([("TOPPADDING", (0, 0), (-1, -1), 0.5), ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5)]))
    put(c, table, 110 * mm, h - 41 * mm, 80 * mm)
    rows = [["Pos.", "Item", "Description", "Qty", "Unit price", "Amount"]]
    net = 0
    for n, (item, text, count, price) in enumerate(INVOICE, 1):
        net += count * price
        rows.append([str(n), item, text, str(count), money(price), money(count * price)])
    table = Table(rows, colWidths=[11 * mm, 22 * mm, 73 * mm, 13 * mm, 24 * mm, 27 * mm])
    table.setStyle(TableStyle([
        ("FONT", (0, 0), (-1, -1), "Sans", 8.8), ("FONT", (0, 0), (-1, 0), "Sans-Bold", 8.8), ("TEXTCOLOR", (0, 0), (-1, 0), white),
        ("BACKGROUND", (0, 0), (-1, 0), BLUE), ("ROWBACKGROUNDS", (0, 1), (-1, -1), [white, PALE]),
        ("ALIGN", (3, 0), (-1, -1), "RIGHT"), ("LINEBELOW", (0, -1), (-1, -1), 0.8, INK), ("TEXTCOLOR", (0, 1), (-1, -1), INK),
        ("TOPPADDING", (0, 0), (-1, -1), 4), ("BOTTOMPADDING", (0, 0), (-1, -1), 5)]))
    bottom = put(c, table, 20 * mm, h - 88 * mm, 170 * mm) - 10
    discount = -round(net * 0.03, 2)
    freight = 168.00
    tax = round((net + discount + freight) * 0.21, 2)
    totals = [("Net amount", net), ("Framework discount 3 %", discount), ("Freight and packing", freight), ("Value added tax 21 %", tax),
              ("Total due (crowns)", net + discount + freight + tax)]
    table = Table([[a, money(b)] for a, b in totals], colWidths=[58 * mm, 30 * mm])
    table.setStyle(TableStyle([("FONT", (0, 0), (-1, -2), "Sans", 9.2), ("FONT", (0, -1), (-1, -1), "Sans-Bold", 11),
                               ("ALIGN", (1, 0), (1, -1), "RIGHT"), ("LINEABOVE", (0, -1), (-1, -1), 1, INK), ("TEXTCOLOR", (0, 0), (-1, -1), INK),
                               ("TOPPADDING", (0, 0), (-1, -1), 3), ("BOTTOMPADDING", (0, 0), (-1, -1), 4)]))
    bottom = put(c, table, 102 * mm, bottom, 88 * mm) - 16
    notes = ("<font name='Sans-Bold'>Payment.</font> Within 30 days to Weirbank Quernby, account 3301 7784 1190, reference QWW-20417. "
             "2 % may be deducted if paid within 10 days. Late payments bear interest of 0.7 % a month.<br/>"
             "<font name='Sans-Bold'>Warranty.</font> 24 months on lamps and probes, 36 months on membrane elements, from the date of delivery. "
             "Elements must be loaded within six months.<br/><font name='Sans-Bold'>Remark.</font> Six further elements are on back order and follow in week 19.")
    put(c, Paragraph(notes, style("n", 8.8, 13)), 20 * mm, bottom, 170 * mm)
    label(c, "Invented company, customer and prices, made for the pagemill examples.", w / 2, 12 * mm, 7.5, 400, "Sans-Italic", GREY)
    c.save()


# slides.pdf

SLIDES = [
    ("Passengers by line", "Line 4 overtook Line 2 for the first time", "bars", "x",
     ["Line 1=6.8 Line 2=5.1 Line 3=2.9 Line 4=5.6 Line 5=1.7 Line 6=2.2"],
     ["Million boardings in year 4", "24.3 million in all, up 7 percent", "Line 5 lost a tenth to the new cycle bridge"]),
    ("Punctuality", "Nine trams out of ten within two minutes", "curve", "x | Month | Percent on time",
     ["year 4: 1,84 2,86 3,88 4,91 5,92 6,92 7,93 8,94 9,90 10,89 11,88 12,86", "year 3: 1,81 2,80 3,84 4,86 5,87 6,88 7,89 8,90 9,86 10,84 11,83 12,80"],
     ["Best month: August, 94 percent", "Leaf fall still costs us four points", "Signal priority at 31 crossings since April"]),
    ("Where minutes are lost", "Doors, not traffic, are the largest delay", "bars", "x",
     ["Doors=34 Crossings=27 Parked_cars=15 Depot=9 Weather=8 Others=7"],
     ["Share of lost minutes, percent", "Each blocked door costs 11 seconds on average", "Trial: door bells at five stops of Line 1"]),
    ("Energy", "Braking gave back a quarter of the current", "curve", "x | Month | kWh per tram-kilometre",
     ["drawn: 1,4.6 2,4.5 3,4.0 4,3.5 5,3.2 6,3.3 7,3.5 8,3.4 9,3.2 10,3.6 11,4.1 12,4.5", "net of braking: 1,3.7 2,3.6 3,3.1 4,2.6 5,2.3 6,2.4 7,2.6 8,2.5 9,2.3 10,2.7 11,3.2 12,3.6"],
     ["Heating adds 1.4 kWh in January", "The flywheel at Mill Gate stores 6 kWh", "Roof panels of the depot: 410 MWh"]),
    ("Fleet", "38 trams, seven of them older than thirty years", "bars", "x",
     ["Heron_T1=7 Heron_T2=12 Plover=11 Curlew=8"],
     ["Trams in service by type", "Heron T1 leaves service in year 6", "Curlew: 212 places, low floor throughout"]),
    ("Workshop", "Wheels last longer since the greasing stones", "curve", "x | Quarter | Thousand km between turnings",
     ["outer wheels: 1,61 2,63 3,70 4,78", "inner wheels: 1,74 2,75 3,79 4,86"],
     ["Greasing stones at the Tannery curve since June", "Lathe waiting time: 9 days instead of 16", "Two apprentices passed with distinction"]),
    ("Safety", "Fewer falls, more collisions with vans", "bars", "x",
     ["Falls_on_board=41 Vans=33 Cars=29 Cyclists=12 Pedestrians=6"],
     ["Accidents in year 4, all severities", "No fatal accident for the third year", "Mirrors at Cooper Street from next May"]),
    ("Money", "Fares cover 58 percent of the cost", "bars", "x",
     ["Fares=31.4 Town=14.9 Region=5.2 Adverts=1.6 Energy_sold=0.7"],
     ["Income in million crowns, 53.8 in all", "Cost of one boarding: 2.21 crowns", "Youth pass sold 9,400 times"]),
    ("Passengers speak", "Heating and seats lead the list of wishes", "bars", "x",
     ["Heating=28 Seats=23 Night_trams=19 Displays=16 Fares=14"],
     ["3,150 answers to the autumn survey, percent of wishes", "Overall mark 7.9 out of 10", "Most loved stop: Orchard Hill"]),
]


def slide_frame(c, title, number, size):
    w, h = size
    c.setFillColor(BLUE)
    c.rect(0, h - 12, w, 12, stroke=0, fill=1)
    label(c, title, 50, h - 52, 28, 860, "Sans-Bold", INK, "left")
    label(c, f"Ashmere Trams  ·  Review of year 4  ·  {number}", w - 50, 24, 11, 500, "Sans", GREY, "right")


def make_slides(path):
    w, h = size = (960, 540)
    c = canvas(path, size, "Ashmere Trams, review of year 4")
    c.setFillColor(BLUE)
    c.rect(0, 0, w, h, stroke=0, fill=1)
    c.setStrokeColor(TINTS[0])
    c.setLineWidth(3)
    for y in (118, 130):
        c.line(0, y, w, y)
    c.setFillColor(TINTS[5])
    c.roundRect(560, 138, 320, 84, 14, stroke=0, fill=1)
    c.setFillColor(BLUE)
    for n in range(6):
        c.roundRect(578 + n * 49, 172, 40, 36, 4, stroke=0, fill=1)
    c.setFillColor(INK)
    for x in (610, 660, 780, 830):
        c.circle(x, 138, 10, stroke=0, fill=1)
    label(c, "Ashmere Trams", 60, 380, 50, 860, "Sans-Bold", white, "left")
    label(c, "Review of year 4", 60, 322, 28, 860, "Sans", white, "left")
    label(c, "Presented to the town council. Network, numbers and names are invented.", 60, 60, 14, 860, "Sans", white, "left")
    c.showPage()
    slide_frame(c, "Year 4 at a glance", 2, size)
    tiles = [("24.3 M", "boardings"), ("89 %", "on time over the year"), ("38", "trams in the fleet"), ("61.7 km", "of track"), ("412", "employees"), ("2.21", "crowns per boarding")]
    for n, (value, text) in enumerate(tiles):
        x, y = 50 + (n % 3) * 292, 270 - (n // 3) * 185
        c.setFillColor(TINTS[n % 6])
        c.roundRect(x, y, 270, 160, 10, stroke=0, fill=1)
        label(c, value, x + 135, y + 96, 40, 260, "Sans-Bold")
        label(c, text, x + 135, y + 42, 17, 260)
    c.showPage()
    for n, (title, claim, kind, caption, data, points) in enumerate(SLIDES, 3):
        slide_frame(c, title, n, size)
        label(c, claim, 50, h - 92, 18, 860, "Sans", RUST, "left")
        figure(c, kind, caption, data if kind == "curve" else [data[0]], 50, 60, 570, 365, 15)
        for k, point in enumerate(points):
            y = 360 - k * 95
            c.setFillColor(SERIES[k])
            c.rect(640, y - 32, 5, 64, stroke=0, fill=1)
            label(c, point, 660, y, 17, 250, "Sans", INK, "left")
        c.showPage()
    slide_frame(c, "Plans for year 5", 12, size)
    plans = [("March", "Track renewal, Bridge Street", "1.9 km, closed for 23 days"), ("May", "Line 7 to the hospital", "first new line in 19 years"),
             ("August", "Depot roof, second half", "another 380 MWh of sun"), ("October", "Night trams on Fridays", "lines 1 and 4, every 40 minutes")]
    for n, (month, what, detail) in enumerate(plans):
        y = 375 - n * 88
        c.setFillColor(TINTS[n])
        c.roundRect(50, y - 34, 860, 70, 8, stroke=0, fill=1)
        label(c, month, 76, y, 19, 140, "Sans-Bold", INK, "left")
        label(c, what, 220, y, 19, 400, "Sans", INK, "left")
        label(c, detail, 885, y, 16, 340, "Sans", INK, "right")
    c.save()


# languages.pdf

CHINESE = ("白鹭湖灯塔", [
    "白鹭湖灯塔建于湖心的一座小岛上，高二十三米，用青石砌成。塔顶的灯每隔九秒闪一次，天气晴朗时，十八公里以外的渔船也能看见。",
    "守塔人每天黄昏沿着一百一十七级台阶走上塔顶，先擦净玻璃，再给钟上弦。灯油从前用菜籽油，后来改用电灯，但旧油灯仍然保存在一层的小博物馆里。",
    "博物馆每周二休息，门票十二元，学生半价。从码头坐渡船到岛上需要二十五分钟，最后一班船下午五点四十分离岛。",
    "岛上有一棵三百岁的银杏树。每年十一月，树叶变黄的时候，来拍照的人最多。"])
JAPANESE = ("山の時計工房", [
    "霧ヶ谷の時計工房では、七人の職人が木の歯車で動く柱時計を作っています。一台を仕上げるのに約四か月かかり、年に二十一台しか出来ません。",
    "歯車には樹齢八十年以上の山桜を使います。切った板は三年間乾かし、湿度が五十五パーセントの部屋で削ります。誤差は一日に十二秒以内です。",
    "見学は木曜日の午後一時からで、予約が必要です。工房へはふもとの駅から赤いバスに乗り、水車前で降りてください。",
    "修理だけをたのむこともできます。振り子の長さを一ミリ変えると、一日におよそ四十三秒ずれるそうです。"])
ARABIC = ("بستان الرمان", [
    "يقع بستان الرمان في وادي السواقي على ارتفاع ستمئة متر، وفيه ألف ومئتان وأربعون شجرة زرعها أهل القرية قبل خمسة وثلاثين عاما.",
    "تسقى الأشجار مرتين في الأسبوع من قناة حجرية قديمة طولها أربعة كيلومترات. يفتح الحارس بوابة الماء عند الفجر ويغلقها بعد ثلاث ساعات.",
    "يبدأ القطاف في منتصف أكتوبر ويستمر عشرين يوما. تعطي الشجرة الواحدة نحو أربعين كيلوغراما من الثمار في السنة الجيدة.",
    "يصنع أهل القرية من العصير دبسا حلوا يباع في سوق الخميس، ويجففون القشور لصباغة الصوف باللون الأصفر."])
LATIN = [
    ("Français : La boulangerie flottante", [
        "À Valmorel-sur-Brème, la boulangerie se trouve sur une péniche amarrée près de l'écluse. Le four, bâti en briques réfractaires, pèse neuf tonnes ; il a fallu renforcer la coque pour l'installer.",
        "Chaque matin à quatre heures, la boulangère pétrit soixante kilos de pâte au levain. Le pain aux noix, façonné en forme d'ancre, n'est vendu que le samedi. En été, la péniche descend la rivière jusqu'à l'île aux Hérons, où les vacanciers l'attendent dès l'aube."]),
    ("Polski: Muzeum guzików", [
        "W miasteczku Żabiłęki działa niewielkie muzeum guzików. Zbiór liczy czternaście tysięcy sztuk, od kościanych i szklanych po guziki z łusek ryb. Najcenniejszy pochodzi z płaszcza dróżnika i ma kształt semafora.",
        "Muzeum mieści się w dawnej łaźni przy ulicy Źródlanej. Zwiedzający dostają igłę, nić i jeden guzik, który mogą przyszyć do wspólnej kurtyny. Kurtyna ma już jedenaście metrów długości."]),
    ("Tiếng Việt: Chợ nổi buổi sớm", [
        "Chợ nổi Bến Sương họp từ ba giờ rưỡi sáng, khi sương còn phủ kín mặt sông. Mỗi chiếc ghe treo món hàng của mình trên một cây sào tre để người mua nhìn thấy từ xa.",
        "Bà Tư bán hủ tiếu trên ghe đã được hai mươi tám năm. Nồi nước dùng của bà nấu bằng xương và củ cải trắng suốt sáu tiếng. Đến tám giờ thì chợ tan, mặt sông lại vắng."]),
    ("Íslenska: Sundlaugin í Hvítafirði", [
        "Sundlaugin í Hvítafirði er hlaðin úr grjóti og þar er vatnið þrjátíu og átta gráðu heitt allt árið. Heita vatnið rennur úr hlíðinni fyrir ofan bæinn um trérör sem smiðurinn Þórður lagði.",
        "Á veturna synda gestir í snjókomu og horfa á norðurljósin. Aðgangur er ókeypis, en allir eru beðnir um að moka stíginn, hver sinn metra."]),
]


def cjk_font(name, face, text):
    """Registers a TrueType subset of one face of Noto Sans CJK; reportlab cannot embed CFF outlines."""
    from fontTools.pens.cu2quPen import Cu2QuPen
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont as Face, newTable

    font = Face(NOTO_CJK, fontNumber=face, recalcTimestamp=False)
    options = Options(layout_features=[], notdef_outline=True, name_IDs=[1, 2, 6, 13, 14])
    subset = Subsetter(options)
    subset.populate(text=text + " ")
    subset.subset(font)
    glyphs, order = font.getGlyphSet(), font.getGlyphOrder()
    outlines = {}
    for glyph in order:
        pen = TTGlyphPen(None)
        glyphs[glyph].draw(Cu2QuPen(pen, 1.0, reverse_direction=True))
        outlines[glyph] = pen.glyph()
    for table in ("CFF ", "VORG", "GSUB", "GPOS", "GDEF", "BASE", "vhea", "vmtx", "DSIG"):
        if table in font:
            del font[table]
    font["loca"], font["glyf"] = newTable("loca"), newTable("glyf")
    font["glyf"].glyphOrder, font["glyf"].glyphs = order, outlines
    font["maxp"].tableVersion = 0x00010000
    for field in ("maxZones", "maxTwilightPoints", "maxStorage", "maxFunctionDefs", "maxInstructionDefs",
                  "maxStackElements", "maxSizeOfInstructions", "maxComponentElements"):
        setattr(font["maxp"], field, 1 if field == "maxZones" else 0)
    font["post"].formatType, font["post"].extraNames, font["post"].mapping = 3.0, [], {}
    font.sfntVersion = "\x00\x01\x00\x00"
    data = io.BytesIO()
    font.save(data)
    data.seek(0)
    pdfmetrics.registerFont(TTFont(name, data))


def cjk_lines(text, size, width):
    """Breaks after a full row of characters, but never before a closing mark."""
    rows, per_row = [""], int(width / size)
    for char in text:
        if len(rows[-1]) >= per_row and char not in "，。、；：":
            rows.append("")
        rows[-1] += char
    return rows


def language_head(c, text, font, size=20, right=False):
    c.setFillColor(TINTS[0])
    c.rect(0, A5[1] - 30 * mm, A5[0], 30 * mm, stroke=0, fill=1)
    label(c, text, A5[0] - 16 * mm if right else 16 * mm, A5[1] - 16 * mm, size, 360, font, INK, "right" if right else "left")


def make_languages(path):
    import arabic_reshaper
    from bidi.algorithm import get_display

    c = canvas(path, A5, "Small places in seven languages")
    for (title, paragraphs), name, face in ((CHINESE, "Chinese", 2), (JAPANESE, "Japanese", 0)):
        cjk_font(name, face, title + "".join(paragraphs))
        language_head(c, title, name, 22)
        c.setFillColor(INK)
        c.setFont(name, 14)
        y = A5[1] - 43 * mm
        for text in paragraphs:
            for line in cjk_lines(text, 14, A5[0] - 32 * mm):
                c.drawString(16 * mm, y, line)
                y -= 24
            y -= 12
        c.showPage()
    title, paragraphs = ARABIC
    shaped = lambda text: get_display(arabic_reshaper.reshape(text))
    language_head(c, shaped(title), "Arabic", 24, right=True)
    c.setFillColor(INK)
    y = A5[1] - 43 * mm
    for text in paragraphs:
        line = []
        for word in text.split() + [None]:
            longer = " ".join(line + [word]) if word else ""
            if word is None or pdfmetrics.stringWidth(shaped(longer), "Arabic", 15) > A5[0] - 32 * mm:
                c.setFont("Arabic", 15)
                c.drawRightString(A5[0] - 16 * mm, y, shaped(" ".join(line)))
                y -= 28
                line = []
            line.append(word)
        y -= 14
    c.showPage()
    for half in (LATIN[:2], LATIN[2:]):
        top = A5[1] - 16 * mm
        for title, paragraphs in half:
            top = put(c, Paragraph(title, style("lt", 16, 22, font="Serif-Bold", color=BLUE)), 16 * mm, top, A5[0] - 32 * mm) - 8
            for text in paragraphs:
                top = put(c, Paragraph(text, style("lp", 10.5, 16.5, font="Serif")), 16 * mm, top, A5[0] - 32 * mm) - 9
            top -= 24
        c.showPage()
    c.save()


# rotated-and-large.pdf

def make_rotated(path):
    c = canvas(path, A4, "Rotated, large and tiny pages")
    w, h = A4
    text = style("rt", 15, 23)
    for turn in (90, 270):
        c.setPageSize((h, w))  # as shown; reportlab swaps the sides in the file
        c.setPageRotation(turn)
        c.saveState()
        c.translate(*((w, 0) if turn == 90 else (0, h)))
        c.rotate(90 if turn == 90 else -90)  # the page is now h wide and w high
        c.setStrokeColor(BLUE)
        c.setLineWidth(3)
        c.rect(25, 25, h - 50, w - 50)
        if turn == 90:
            label(c, "Crane rota of Ostrand harbour", 60, w - 75, 26, 700, "Sans-Bold", INK, "left")
            rows = [["Crane", "Morning", "Afternoon", "Lifts up to", "Key box"], ["North", "Pim", "Sanna", "12 t", "7"], ["Fish quay", "Orla", "Pim", "3 t", "2"],
                    ["Slip", "Sanna", "nobody", "40 t", "11"], ["Dredger", "Teodor", "Orla", "18 t", "9"]]
            table = Table(rows, colWidths=[(h - 120) / 5] * 5)
            table.setStyle(TableStyle([("FONT", (0, 0), (-1, -1), "Sans", 15), ("FONT", (0, 0), (-1, 0), "Sans-Bold", 15), ("TEXTCOLOR", (0, 0), (-1, -1), INK),
                                       ("LINEBELOW", (0, 0), (-1, -1), 0.7, GREY), ("TOPPADDING", (0, 0), (-1, -1), 9), ("BOTTOMPADDING", (0, 0), (-1, -1), 12)]))
            put(c, table, 60, w - 120, h - 120)
            put(c, Paragraph("The slip crane must not be used when the wind is above 13 m/s at the pilot tower. The sheet is printed sideways "
                             "and carries a page rotation of 90 degrees.", text), 60, w - 350, h - 120)
        else:
            label(c, "Reading room plan, upper floor", 60, w - 75, 26, 700, "Sans-Bold", INK, "left")
            figure(c, "plan", "x", ["0 0 4 3 Maps and atlases", "4 0 3 3 Newspapers", "7 0 3 3 Microfilm, 4 machines", "0 3 6 2 Silent tables 1 to 36", "6 3 4 2 Group room Juniper, 8 seats"],
                   60, 130, h - 120, 330, 14)
            put(c, Paragraph("The group room Juniper is booked at the desk for two hours at most. Page rotation: 270 degrees.", text), 60, 110, h - 120)
        c.restoreState()
        c.showPage()
    w, h = A0
    c.setPageRotation(0)
    c.setPageSize(A0)
    c.setFillColor(TINTS[0])
    c.rect(0, 0, w, h, stroke=0, fill=1)
    c.setFillColor(BLUE)
    c.rect(0, h - 640, w, 640, stroke=0, fill=1)
    label(c, "The Great Bog of Tolvik", w / 2, h - 270, 170, w, "Sans-Bold", white)
    label(c, "a wall chart at A0", w / 2, h - 470, 80, w, "Sans", white)
    draw = random.Random(7)
    for layer, (name, color) in enumerate([("living moss", "#8fb339"), ("fibrous peat", "#a9783f"), ("dark peat", "#6b4a2b"), ("lake clay", "#8a97a1"), ("ice-age gravel", "#d8c9a3")]):
        top = 1700 - layer * 320
        c.setFillColor(HexColor(color))
        shape = c.beginPath()
        shape.moveTo(0, 0)
        shape.lineTo(0, top)
        for n in range(1, 13):
            shape.lineTo(n * w / 12, top + draw.uniform(-45, 45))
        shape.lineTo(w, 0)
        shape.close()
        c.drawPath(shape, stroke=0, fill=1)
        label(c, name, 130, top - 170, 68, w, "Sans-Bold", white if layer < 4 else INK, "left")
        label(c, ["0 to 40 cm, grows 1 mm a year", "to 2.1 m, amber beads at 1.6 m", "to 5.8 m, an oak trunk of 4 300 years", "to 6.5 m, shells of the old lake", "bottom of the drilling at 7.2 m"][layer],
              w - 130, top - 170, 58, 1500, "Sans", white if layer < 4 else INK, "right")
    put(c, Paragraph("Rain feeds this bog, not the river. Its dome stands 3.4 m above the meadows around it. Cranberries, sundew and "
                     "eleven kinds of dragonfly live here. Please stay on the planks: a footprint is visible for nine years.", style("po", 62, 92)), 130, h - 760, w - 260)
    c.showPage()
    c.setPageSize((40 * mm, 25 * mm))
    c.setStrokeColor(INK)
    c.roundRect(3, 3, 40 * mm - 6, 25 * mm - 6, 4)
    label(c, "Sample jar 58-K", 20 * mm, 18 * mm, 8, 200, "Sans-Bold")
    label(c, "sundew seed, shelf 3", 20 * mm, 12 * mm, 6.5)
    label(c, "keep below 5 °C", 20 * mm, 7 * mm, 6.5)
    c.showPage()
    c.save()


# scan.pdf

SCAN = [
    ("MINUTES OF THE BRIDGE COMMITTEE", [
        "Held in the upper room of the Heron inn on the second Thursday of November.",
        "Present: Mrs. Alderbeck in the chair, Messrs. Tunwick, Osgard and Pell, and the clerk.",
        "1. The chair reported that the third pier of the Lower Ashmere footbridge has settled by four inches since the spring flood. The mason asks 312 crowns for new piles of larch.",
        "2. Mr. Osgard proposed a toll of one farthing for each sheep. Mr. Pell objected that shepherds would then wade, and foul the water of the mill. The toll was put off.",
        "3. A lantern with a red glass shall hang on the middle arch from dusk until the last carrier has passed. The baker offers oil until Easter.",
        "4. The clerk shall write to the landowner about the willow whose roots lift the eastern steps.",
        "The committee rose at twenty minutes to ten."]),
    ("ACCOUNT OF THE BRIDGE FUND", [
        "Balance carried from last year: 187 crowns and 4 pence.",
        "Received: Heron inn, dance on May eve, 41 crowns. Collection at the mill, 12 crowns. Gift of a lady who does not wish to be named, 100 crowns.",
        "Paid: nails and tar, 9 crowns. Two days of the ferryman while the planks were up, 6 crowns. Paint, grey, seven tins, 14 crowns.",
        "Balance in hand: 311 crowns and 4 pence, in the iron box, of which the chair and the clerk hold one key each.",
        "Examined and found right. The ledger lies open at the clerk's house every Friday."]),
]


def scan_page(title, paragraphs, seed):
    """A typewritten page, laid a little askew on the glass of an old scanner."""
    w, h = 1240, 1754
    page = Image.new("L", (w, h), 236)
    draw = ImageDraw.Draw(page)
    bold, plain = ImageFont.truetype(str(FONTS["Serif-Bold"]), 40), ImageFont.truetype(str(FONTS["Mono"]), 25)
    draw.text((w / 2, 170), title, 40, bold, "mm")
    draw.line((300, 205, w - 300, 205), 70, 2)
    y = 270
    for text in paragraphs:
        line = ""
        for word in text.split() + [None]:
            if word is None or draw.textlength(f"{line} {word}", plain) > w - 300:
                draw.text((150, y), line, 45, plain)
                y += 42
                line = word or ""
            else:
                line = f"{line} {word}".strip()
        y += 30
    page = page.rotate([0.9, -0.6][seed % 2], Image.BICUBIC, fillcolor=225).filter(ImageFilter.GaussianBlur(0.7))
    noise = np.random.default_rng(seed).normal(0, 7, (h, w))
    shade = np.linspace(10, -16, w)[None, :]
    data = np.clip(np.asarray(page, float) + noise + shade, 0, 255).astype("uint8")
    jpeg = io.BytesIO()
    Image.fromarray(data).save(jpeg, "JPEG", quality=38)
    jpeg.seek(0)
    return jpeg


def make_scan(path):
    c = canvas(path, A4, "Scanned minutes")
    for seed, (title, paragraphs) in enumerate(SCAN):
        c.drawImage(ImageReader(scan_page(title, paragraphs, seed)), 0, 0, *A4)
        c.showPage()
    c.save()


# protected.pdf and damaged.pdf

def letter(target, title, paragraphs):
    c = canvas(target, A4, title)
    top = put(c, Paragraph(title, style("l", 18, 26, font="Serif-Bold")), 25 * mm, A4[1] - 30 * mm, A4[0] - 50 * mm) - 12
    for text in paragraphs:
        top = put(c, Paragraph(text, style("lp", 11.5, 18, font="Serif")), 25 * mm, top, A4[0] - 50 * mm) - 9
    c.save()


def make_protected(path):
    import pikepdf
    plain = io.BytesIO()
    letter(plain, "Recipe book of the Heron inn", [
        "For the eyes of the kitchen only. The password on this file is part of the pagemill examples and stands in their README.",
        "The barley soup needs two hours and eleven juniper berries, crushed. The secret of the crust on the eel pie is a spoonful of cold tea.",
        "The Sunday bread is folded four times, forty minutes apart, and baked under the copper lid until it sounds hollow."])
    plain.seek(0)
    with pikepdf.open(plain) as pdf:
        pdf.save(path, encryption=pikepdf.Encryption(user="millstone", owner="millstone-owner", R=6))


def make_damaged(path):
    whole = io.BytesIO()
    letter(whole, "Report that nobody will read", ["This text is cut off in the first third of the file, so that no program can open it."] * 8)
    data = whole.getvalue()
    path.write_bytes(data[:len(data) // 3] + random.Random(11).randbytes(2048))


# label.png and chart.jpg

def photo(image, seed, sigma):
    """Adds the uneven light and the noise of a photograph."""
    w, h = image.size
    x, y = np.meshgrid(np.linspace(-1, 1, w), np.linspace(-1, 1, h))
    light = 1.06 - 0.22 * ((x + 0.4) ** 2 + (y + 0.5) ** 2) / 2
    noise = np.random.default_rng(seed).normal(0, sigma, (h, w, 1))
    return Image.fromarray(np.clip(np.asarray(image, float) * light[..., None] + noise, 0, 255).astype("uint8"))


def make_label(path):
    def face(name, size):
        return ImageFont.truetype(str(FONTS[name]), size)

    w, h = 1000, 680
    wall = Image.new("RGB", (w, h), (74, 92, 98))
    plate = Image.new("RGBA", (840, 520), (0, 0, 0, 0))
    d = ImageDraw.Draw(plate)
    d.rounded_rectangle((0, 0, 839, 519), 28, (198, 202, 204))
    d.rounded_rectangle((14, 14, 825, 505), 20, outline=(60, 64, 68), width=4)
    for x, y in ((44, 44), (796, 44), (44, 476), (796, 476)):
        d.ellipse((x - 15, y - 15, x + 15, y + 15), (140, 144, 147), (70, 72, 75), 3)
        d.line((x - 9, y - 7, x + 9, y + 7), (70, 72, 75), 4)
    d.rectangle((90, 36, 750, 100), (24, 62, 96))
    d.text((420, 68), "FENNHAUL WINCHES", (240, 240, 240), face("Sans-Bold", 40), "mm")
    rows = [("Type", "Capstan FW 75-E"), ("Serial no.", "FW-20886-C"), ("Pull, first layer", "7.5 kN"), ("Rope", "Ø 9 mm, 64 m"), ("Rope speed", "0.32 m/s"),
            ("Motor", "3.0 kW  400 V  6.4 A"), ("Mass without rope", "118 kg"), ("Protection", "IP 66")]
    for n, (key, value) in enumerate(rows):
        y = 132 + n * 44
        d.text((90, y), key, (40, 44, 48), face("Sans", 28), "lm")
        d.text((750, y), value, (20, 22, 25), face("Mono", 28), "rm")
        d.line((90, y + 22, 750, y + 22), (165, 169, 172), 1)
    scratches = random.Random(3)
    for _ in range(26):
        x, y, a = scratches.uniform(30, 800), scratches.uniform(30, 490), scratches.uniform(-0.5, 0.5)
        r = scratches.uniform(15, 70)
        d.line((x, y, x + r * math.cos(a), y + r * math.sin(a)), (216, 219, 221, 160), 1)
    plate = plate.rotate(-2.4, Image.BICUBIC, expand=True)
    shadow = Image.new("RGBA", plate.size, (0, 0, 0, 0))
    shadow.putalpha(plate.getchannel("A").point(lambda v: v * 0.5))
    wall.paste((20, 24, 26), (86, 84), shadow.filter(ImageFilter.GaussianBlur(8)).getchannel("A"))
    wall.paste(plate, (72, 66), plate)
    image = photo(wall.filter(ImageFilter.GaussianBlur(0.6)), 5, 2.0)
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def make_chart(path):
    w, h = 1280, 860
    board = Image.new("RGB", (w, h), (243, 244, 240))
    d = ImageDraw.Draw(board)
    draw = random.Random(21)

    def stroke(points, color, width=6):
        """A felt pen in an unsteady hand."""
        path = []
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            steps = max(2, int(math.hypot(x1 - x0, y1 - y0) / 12))
            path += [(x0 + (x1 - x0) * k / steps + draw.uniform(-1.4, 1.4), y0 + (y1 - y0) * k / steps + draw.uniform(-1.4, 1.4)) for k in range(steps + 1)]
        d.line(path, color, width, "curve")

    def write(x, y, text, color=(35, 40, 48), size=34):
        font = ImageFont.truetype(str(FONTS["Sans-Italic"]), size)
        for char in text:
            d.text((x, y + draw.uniform(-2, 2)), char, color, font, "lm")
            x += d.textlength(char, font) + draw.uniform(-0.5, 1)

    blue, red, green = (28, 72, 150), (186, 44, 40), (30, 120, 70)
    write(70, 70, "Bakery: loaves sold per weekday", size=48)
    stroke([(380, 105), (70, 108)], red, 4)
    stroke([(120, 150), (118, 700), (980, 704)], (35, 40, 48))
    for n, (day, count) in enumerate([("Mon", 140), ("Tue", 165), ("Wed", 150), ("Thu", 210), ("Fri", 260), ("Sat", 330)]):
        x, top = 160 + n * 138, 700 - count * 1.45
        stroke([(x, 700), (x, top), (x + 80, top), (x + 80, 700)], blue)
        for k in range(int((700 - top) / 30)):
            stroke([(x + 6, 690 - k * 30), (x + 74, 672 - k * 30)], blue, 3)
        write(x + 8, 738, day)
        write(x + 10, top - 28, str(count), red)
    write(1010, 250, "market", green)
    write(1010, 292, "day!", green)
    stroke([(1005, 275), (975, 262), (945, 258)], green, 4)
    write(70, 808, "goal: 300 on Fridays, second oven in spring", green)
    photo(board.filter(ImageFilter.GaussianBlur(0.8)), 9, 3.0).save(path, quality=72)


MAKERS = {
    "manual.pdf": make_manual, "paper.pdf": make_paper, "invoice.pdf": make_invoice, "slides.pdf": make_slides,
    "languages.pdf": make_languages, "rotated-and-large.pdf": make_rotated, "scan.pdf": make_scan,
    "protected.pdf": make_protected, "damaged.pdf": make_damaged, "label.png": make_label, "chart.jpg": make_chart,
}


def main():
    parser = argparse.ArgumentParser(description="Makes the sample documents.")
    parser.add_argument("names", nargs="*", help="only these files")
    parser.add_argument("--force", action="store_true", help="also renew protected.pdf, whose bytes differ each time")
    arguments = parser.parse_args()
    register_fonts()
    for name in arguments.names or MAKERS:
        path = HERE / name
        if name == "protected.pdf" and path.exists() and not arguments.force:
            print(f"{name}: kept")
            continue
        MAKERS[name](path)
        print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
