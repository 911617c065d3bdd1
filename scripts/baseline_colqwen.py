"""The plain Python way from a PDF to ColQwen2.5 vectors in LanceDB, timed step by step.

    python scripts/baseline_colqwen.py MODEL FILE.pdf [--pages N] [--batch N] [--threads N]
        [--dpi N] [--dtype float32|bfloat16] [--database FOLDER] [--warm-up N]

One page after another, or one batch: pypdfium2 renders it, the processor makes patches,
the network runs, LanceDB gets the rows; each step begins when the one before has ended.
Prints one line of JSON: seconds a page for each step and together, pages a second, and
the peak of resident memory. `scripts/fixtures/mid_model.py` makes a model and documents.

torch's threads wait busily: anything else that runs on the machine slows this down far
more than its share, so time it on a quiet one. Packages: models/fixtures/README.md, and
lancedb 0.40.0, pypdfium2 5.15.2.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from contextlib import contextmanager

WIDTH = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pdf")
    parser.add_argument("--pages", type=int, help="stop after so many")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dpi", type=float, default=150)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--database", help="a folder to keep; without one it is thrown away")
    parser.add_argument("--warm-up", type=int, default=1, help="pages that run once before the clock starts")
    arguments = parser.parse_args()
    # Before torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(arguments, arguments.database or os.path.join(scratch, "pages.lance"))))


def measure(arguments, database):
    import lancedb
    import pyarrow as arrow
    import pypdfium2
    import torch
    from colpali_engine.models import ColQwen2_5, ColQwen2_5_Processor

    torch.set_num_threads(arguments.threads)
    clock = Clock()
    with clock.step("load"):
        model = ColQwen2_5.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
        processor = ColQwen2_5_Processor.from_pretrained(arguments.model)
    schema = arrow.schema(
        [("page", arrow.int32()), ("vectors", arrow.list_(arrow.list_(arrow.float32(), WIDTH)))]
    )
    shutil.rmtree(database, ignore_errors=True)
    table = lancedb.connect(database).create_table("pages", schema=schema)
    pdf = pypdfium2.PdfDocument(arguments.pdf)
    n_pages = min(len(pdf), arguments.pages or len(pdf))

    def render(number):
        return pdf[number].render(scale=arguments.dpi / 72).to_pil()

    @torch.inference_mode()
    def embed(batch):
        rows = model(**batch).float()
        return [row[mask.bool()].numpy() for row, mask in zip(rows, batch["attention_mask"])]

    def rows(numbers, embeddings):
        values = arrow.concat_arrays([arrow.array(e.reshape(-1)) for e in embeddings])
        bounds = [0]
        for embedding in embeddings:
            bounds.append(bounds[-1] + len(embedding))
        vectors = arrow.FixedSizeListArray.from_arrays(values, WIDTH)
        lists = arrow.ListArray.from_arrays(arrow.array(bounds, arrow.int32()), vectors)
        return arrow.table([arrow.array(numbers, arrow.int32()), lists], schema=schema)

    for number in range(min(arguments.warm_up, n_pages)):
        embed(processor.process_images([render(number)]))
    n_vectors, began = 0, time.perf_counter()
    for first in range(0, n_pages, arguments.batch):
        numbers = range(first, min(first + arguments.batch, n_pages))
        with clock.step("render"):
            images = [render(number) for number in numbers]
        with clock.step("preprocess"):
            batch = processor.process_images(images)
        with clock.step("forward"):
            embeddings = embed(batch)
        with clock.step("write"):
            table.add(rows(numbers, embeddings))
        n_vectors += sum(map(len, embeddings))
    elapsed = time.perf_counter() - began
    pdf.close()
    return {
        "pages": n_pages,
        "vectors_per_page": n_vectors / n_pages,
        "load_s": round(clock.seconds.pop("load"), 3),
        "s_per_page": {step: round(seconds / n_pages, 4) for step, seconds in clock.seconds.items()},
        "total_s_per_page": round(elapsed / n_pages, 4),
        "pages_per_s": round(n_pages / elapsed, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "rows": table.count_rows(),
        "threads": arguments.threads,
        "batch": arguments.batch,
        "dtype": arguments.dtype,
        "torch": torch.__version__,
    }


class Clock:
    """Adds up how long each step took."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def step(self, name):
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


if __name__ == "__main__":
    main()
