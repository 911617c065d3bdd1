"""Pages a second of pypdfium2 in one process: pypdfium2_pages.py FOLDER.

Renders every page at 1024 px on its long side to RGB pixels, as people do it,
and prints the median of five passes.
"""

import pathlib
import statistics
import sys
import time

import pypdfium2


def one_pass(files):
    n_pages, since = 0, time.perf_counter()
    for file in files:
        try:
            document = pypdfium2.PdfDocument(file.read_bytes())
            for page in document:
                scale = 1024 / max(page.get_size())
                page.render(scale=scale, rev_byteorder=True).to_numpy()
                n_pages += 1
        except pypdfium2.PdfiumError:
            continue
    return n_pages / (time.perf_counter() - since)


files = sorted(pathlib.Path(sys.argv[1]).rglob("*.pdf"))
print(statistics.median(one_pass(files) for _ in range(5)))
