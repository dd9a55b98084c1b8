"""Make README.md from `nbs/index.ipynb` with its saved outputs, as `nbdev_readme` does where Quarto is at hand."""
import re
import shutil

import nbformat
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from traitlets.config import Config

NOTE = "<!-- made from nbs/index.ipynb by tools/build_readme.py: edit the notebook -->\n\n"
FIGURES = "index_files"
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+)\s*:?\s*(.*)$", re.M)
STYLE = re.compile(r"<style[^>]*>.*?</style>\s*", re.S)
NOTEBOOK = re.compile(r"\]\((\d\d_\w+\.ipynb)")
FIGURE = re.compile(r"!\[png\]\((\S*?output_(\d+)_\d+\.png)\)")
# a table as Markdown before a table as HTML, a figure before the text that stands for it
PRIORITY = ["text/markdown", "image/png", "text/html", "text/latex", "text/plain"]


def readable(cell):
    "The cell without Quarto's directive lines, its options kept in its metadata; None if they hide it."
    if cell.cell_type == "raw": return None
    if cell.cell_type == "markdown": return cell
    options = {key: value.strip() for key, value in DIRECTIVE.findall(cell.source)}
    if "hide" in options or options.get("include") == "false": return None
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    cell.metadata["caption"], cell.metadata["alt"] = (options.get(key, "").strip("\"'") for key in ("fig-cap", "fig-alt"))
    cell.metadata["transient"] = {"remove_source": options.get("echo") == "false"}
    for output in cell.outputs: # GitHub shows the rules of a data frame's style sheet as text
        if "text/html" in output.get("data", {}): output.data["text/html"] = STYLE.sub("", output.data["text/html"])
    return cell


def render(nb, figures):
    "The notebook as Markdown, and its figures by file name."
    nb.cells = [cell for cell in map(readable, nb.cells) if cell is not None]
    nb.metadata["language_info"] = {"name": "python"}
    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": PRIORITY}}))
    text, resources = exporter.from_notebook_node(nb, resources={"output_files_dir": figures})

    def captioned(found):
        caption, alt = (nb.cells[int(found[2])].metadata.get(key) for key in ("caption", "alt"))
        return f"![{alt or caption}]({found[1]})" + (f"\n\n*{caption}*" if caption else "")

    text = NOTEBOOK.sub(r"](nbs/\1", FIGURE.sub(captioned, text))
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M))
    return f"{NOTE}{text.strip()}\n", resources["outputs"]


def main():
    "Write README.md and the figures that it shows."
    cfg = get_config()
    root, folder = cfg.config_path, cfg.nbs_path / FIGURES
    nb = nbformat.read(cfg.nbs_path / cfg.readme_nb, as_version=4)
    text, figures = render(nb, str(folder.relative_to(root)))
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in figures.items():
        folder.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__": main()
