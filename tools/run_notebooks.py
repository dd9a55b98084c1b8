"""Execute notebooks in place and keep their outputs, skipping what `nbdev_test` skips.

Cells under `#| eval: false` or a directive named in `tst_flags` keep the outputs they have.

    python tools/run_notebooks.py                                  all of `nbs/`
    python tools/run_notebooks.py --path nbs/01_spectrum.ipynb     one notebook (or a glob, in quotes)
"""
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from execnb.nbio import mk_cell, read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.script import call_parse
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives


TITLE_CELL = re.compile(r"# [^\n]+(?:\s*\n> [^\n]+)?")


def split_title(nb):
    "Give prose that shares the title's cell one of its own: nbdev takes the head of the page from that cell and drops the rest."
    first = nb.cells[0]
    head = TITLE_CELL.match(first.source) if first.cell_type == "markdown" else None
    rest = first.source[head.end():].strip() if head else ""
    if not rest: return
    first.source = head[0]
    nb.cells.insert(1, mk_cell(rest, "markdown"))
    nb.cells[1]["id"] = f"{first.get('id', 'title')}-text"


def run(path, skip):
    "Execute the notebook at `path` and write it back; the seconds it took, or None if a cell failed."
    start, nb = time.perf_counter(), read_nb(path)
    split_title(nb)

    def skipped(cell):
        if cell.cell_type != "code" or "nbdev_export(" in cell.source: return True
        directives = extract_directives(cell, remove=False)
        return directives.get("eval:", [""])[0].lower() == "false" or bool(skip & directives.keys())

    shell = CaptureShell(path, mpl_format="png")
    try:
        with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=skipped)
    except Exception:
        print(shell.prettytb(fname=path), file=sys.stderr)
        return None
    clean_nb(nb)
    write_nb(nb, path)
    return time.perf_counter() - start


@call_parse
def main(
    path: str = None, # a notebook or glob, by default all of `nbs_path`
    flags: str = "", # space-separated test flags to run as well
    n_workers: int = 2, # notebooks to run at a time
):
    "Execute notebooks in place, so that the documentation shows their outputs."
    cfg = get_config()
    skip = set(cfg.tst_flags.split()) - set(flags.split())
    paths = [p.absolute() for p in sorted(nbglob(path, as_path=True))]
    if not paths: sys.exit(f"no notebook found for {path or cfg.nbs_path}: give the path of a notebook or a glob")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # a fresh process for each notebook: no random state, theme or import leaks into the next one
    with ProcessPoolExecutor(n_workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        seconds = list(pool.map(partial(run, skip=skip), paths))
    for p, s in zip(paths, seconds): print(f"{p.name:30} {'FAILED' if s is None else f'{s:5.1f} s'}")
    sys.exit(any(s is None for s in seconds))
