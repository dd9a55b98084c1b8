"""Build the documentation site from the saved notebooks where Quarto is not at hand.

`nbdev_docs` is the same pipeline with Quarto at its end: both start from nbdev's processed notebooks
(API entries from docments, hidden cells dropped, symbols linked) and both read `_quarto.yml`.
Any warning of the renderer and any broken link ends the build with an error.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

KATEX_CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist/")
FONTS_CDN = re.compile(r"""@import\s*(?:url\()?["']?https://fonts\.[^)"']*["']?\)?\s*;""") # addresses hold semicolons
TITLE_CELL = re.compile(r"#\s[^\n]+(\s*\n>\s[^\n]+)?\s*")
RAW_LINK = re.compile(r"\[`([\w.]+(?:\(\))?)`\]\([\w.#/-]+\)") # a name in a parameter's comment: nbdev makes a link of it, which code does not show as one
# what the renderer leaves to those who go by keyboard or by ear: corners of tables that are no headings, regions of one name, sections that open by mouse alone
REACH = ((re.compile(r"<th( class=\"blank[^>]*)?>(&nbsp;)?</th>"), "<td></td>"),
         (re.compile(r'<nav class="quarto-secondary-nav">'), '<nav class="quarto-secondary-nav" aria-label="Place of this page">'),
         (re.compile(r'<nav id="quarto-sidebar"'), '<nav id="quarto-sidebar" aria-label="All pages"'),
         (re.compile(r'role="navigation" aria-expanded'), 'role="button" tabindex="0" aria-expanded'))
OUTPUT_FILE = re.compile(r'\s*"output-file: ([\w.-]+)\.html\\n",?')


def check_titles(paths):
    "Refuse prose in a title cell: nbdev makes the page's title and subtitle of it and drops the rest."
    for path in paths:
        cell = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        if cell["cell_type"] == "markdown" and not TITLE_CELL.fullmatch("".join(cell["source"])):
            sys.exit(f"{path.name}: the first cell must hold `# Title` and one `> line`, the rest of it would be lost: "
                     "put it in a cell of its own, or let tools/run_notebooks.py do so")


def check_imports(paths):
    """Refuse a cell that imports and does something else on a page with an exported cell: to write the page's API entries, nbdev runs its cells with imports,
    without the cells before them and in another folder."""
    for path in paths:
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        if not any(source.startswith("#| export") for source in cells): continue
        for source in cells:
            if source.startswith(("#| export", "%%", "!")) or "#| eval: false" in source or "nbdev_export()" in source: continue
            nodes = ast.parse(source).body
            imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes]
            if any(imports) and not all(imports):
                sys.exit(f"{path.name}: a cell imports and does something else: put the imports in a cell of their own\n---\n{source}")


def use_final_names(folder, base_url):
    "Name processed notebooks after their `output-file`, as Quarto does, and make links among them relative."
    names = {}
    for nb in folder.glob("*.ipynb"):
        found = OUTPUT_FILE.search(nb.read_text(encoding="utf-8"))
        if found: names[nb.name] = f"{found[1]}.ipynb"
    for file in [*folder.glob("*.ipynb"), folder / "_quarto.yml"]:
        text = OUTPUT_FILE.sub("", file.read_text(encoding="utf-8")).replace(base_url, "")
        for old, new in names.items(): text = re.sub(rf"(?<![\w/]){re.escape(old)}", new, text)
        file.unlink()
        (folder / names.get(file.name, file.name)).write_text(text, encoding="utf-8")


def edit(paths, pattern, replacement):
    "Replace `pattern` in each file."
    for path in paths:
        path.write_text(pattern.sub(replacement, path.read_text(encoding="utf-8")), encoding="utf-8")


def smalldocs(command, folder, *flags):
    "Run a smalldocs command on the processed notebooks; a complaint ends the build."
    done = subprocess.run([sys.executable, "-m", "smalldocs.cli", command, *flags, str(folder)])
    if done.returncode: sys.exit(f"smalldocs {command} found something to mend in the notebooks or _quarto.yml (above)")


@call_parse
def main(
    katex: Path = None, # a `katex/dist` folder to copy, so that formulas show without a network
):
    "Render `nbs_path` to `doc_path`."
    cfg = get_config()
    check_titles(nbglob(as_path=True))
    check_imports(nbglob(as_path=True))
    refresh_quarto_yml()
    proc = proc_nbs(force=True, n_workers=2)
    missing = {p.name for p in nbglob(as_path=True)} - {p.name for p in proc.glob("*.ipynb")}
    if missing: sys.exit(f"nbdev did not process {', '.join(sorted(missing))}: see the messages above")
    use_final_names(proc, f"{cfg.doc_host}{cfg.doc_baseurl}/")
    smalldocs("render", proc, "--strict", "--quiet")
    smalldocs("check", proc)
    site = proc / cfg.doc_path.name
    edit(site.rglob("*.css"), FONTS_CDN, "") # the system's fonts do, and no reader is reported to a font server
    for pattern, replacement in (*REACH, (RAW_LINK, r"`\1`")): edit(site.glob("*.html"), pattern, replacement)
    if katex and katex.is_dir():
        shutil.copytree(katex, site / "site_libs/katex")
        edit(site.glob("*.html"), KATEX_CDN, "site_libs/katex/")
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(site, cfg.doc_path)
    print(f"{len(list(cfg.doc_path.glob('*.html')))} pages in {cfg.doc_path.name}/")
