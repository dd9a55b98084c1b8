"""The package as it is installed: what it imports, what it hands out, and that its files agree with each other."""
import ast
import csv
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import gsdnet

ROOT = Path(__file__).parent.parent
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
CONFIG = CONFIG["DEFAULT"]
MODULES = sorted(p.stem for p in (ROOT / "gsdnet").glob("*.py") if not p.stem.startswith("_"))
NOTEBOOK_TOOLS = {"nbdev", "fastcore", "execnb", "IPython", "jupyter", "nbclient", "nbconvert", "jupytext", "smalldocs"}
DEVELOPMENT = NOTEBOOK_TOOLS | {"pytest", "hypothesis", "networkx", "pygsp"}
DISTRIBUTIONS = {"torch_geometric": "torch-geometric", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
EXTRAS = ("cluster", "features", "onnx")
REQUIRED = {re.split(r"[\[<>=!~]", r)[0] for r in CONFIG["requirements"].split()}
OPTIONAL = {re.split(r"[\[<>=!~]", r)[0] for extra in EXTRAS for r in CONFIG[f"{extra}_requirements"].split()}


def notebooks():
    "The number of each module's notebook."
    found = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        name = re.search(r"#\| default_exp (\w+)", path.read_text(encoding="utf-8"))
        if name: found[name[1]] = int(path.name[:2])
    return found


def imports(module):
    "Absolute and relative names that a module imports anywhere, inside functions too."
    outside, inside = set(), set()
    for node in ast.walk(ast.parse((ROOT / f"gsdnet/{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level: outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom): inside |= {node.module} if node.module else {a.name for a in node.names}
    return outside, inside


def test_runs_without_the_development_tools():
    "Every module imports where nbdev, fastcore, IPython and their like cannot be imported: a plain `pip install .`."
    code = f"""if True:
        import importlib, sys
        banned = {sorted(NOTEBOOK_TOOLS)!r}
        class Nowhere:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in banned: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Nowhere())
        import gsdnet
        for name in {MODULES!r}: importlib.import_module(f"gsdnet.{{name}}")
        loaded = [name for name in banned if name in sys.modules]
        assert not loaded, loaded
        print("ok")
    """
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_is_required(module):
    outside = {name for name in imports(module)[0] if name not in {"gsdnet", *sys.stdlib_module_names}}
    assert not outside & DEVELOPMENT
    assert {DISTRIBUTIONS.get(name, name) for name in outside} <= REQUIRED | OPTIONAL


def test_nothing_optional_is_imported_before_it_is_asked_for():
    "By us: torch-geometric imports transformers by itself, where it is installed."
    code = ("import sys, torch_geometric; before = set(sys.modules); import gsdnet.cli, gsdnet.benchmark, gsdnet.features; "
            f"sys.exit(bool({OPTIONAL | {'sentence_transformers', 'cv2'}!r} & (set(sys.modules) - before)))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", MODULES)
def test_module_comes_from_a_notebook_and_imports_from_those_above(module):
    number = notebooks()
    assert module in number, f"gsdnet/{module}.py has no notebook: delete it or write the notebook"
    below = {name for name in imports(module)[1] if number.get(name, 0) >= number[module]}
    assert not below, f"{module} imports from notebooks with larger numbers"


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_hands_out(module):
    loaded = importlib.import_module(f"gsdnet.{module}")
    assert loaded.__all__ and loaded.__doc__
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    for name in loaded.__all__:
        thing = getattr(loaded, name)
        if callable(thing): assert thing.__doc__, f"{module}.{name} has no docstring"


def length(function):
    "Lines of a function less its docstring, which feeds `--help` where it is long."
    first = function.body[0]
    text = first if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) else None
    return function.end_lineno - function.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module):
    tree = ast.parse((ROOT / f"gsdnet/{module}.py").read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: length(f) for f in functions if length(f) > 40}
    assert not long, "at most 40 lines a function"


def test_versions_agree():
    assert gsdnet.__version__ == CONFIG["version"]
    assert f"\nversion: {CONFIG['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?([\w.]+)\]?", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1]
    assert newest in (CONFIG["version"], "Unreleased")


def test_readme_is_the_index():
    sys.path.insert(0, str(ROOT / "tools"))
    nbformat = pytest.importorskip("nbformat")
    build_readme = pytest.importorskip("build_readme")
    text, figures = build_readme.render(nbformat.read(ROOT / "nbs/index.ipynb", as_version=4), "nbs/index_files")
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run `make readme`"
    for name, data in figures.items(): assert (ROOT / name).read_bytes() == data, f"{name}: run `make readme`"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target: assert (ROOT / target).exists(), f"README.md points to {target}"


def test_site_configuration_names_every_notebook():
    sidebar = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml"
    assert not [p.name for p in (ROOT / "nbs").glob("*.ipynb") if p.name not in sidebar]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_texts_point_to_what_is_there(name):
    "Relative links, and files of the repository that are named in backticks; those in results/ are made by scripts."
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+://|#|mailto:", target)]
    named = re.findall(r"`((?:nbs|tests|tools|benchmarks|gsdnet)/[\w/.-]+\.\w+)`", text)
    gone = [path for path in links if not (folder / path).exists()] + [path for path in named if not (ROOT / path).exists()]
    assert not gone, f"{name} names files that are not there"


def test_citation_names_a_page_that_is_there():
    page = re.search(r'page "([^"]+)"', (ROOT / "CITATION.cff").read_text(encoding="utf-8"))[1]
    assert any(f'"# {page}' in path.read_text(encoding="utf-8") for path in (ROOT / "nbs").glob("*.ipynb"))


def test_names_at_the_top_are_public_where_they_live():
    for name, home in gsdnet._HOME.items():
        module = importlib.import_module(f"gsdnet.{home}")
        assert name in module.__all__ and getattr(gsdnet, name) is getattr(module, name)
    assert {"__version__", *gsdnet._HOME} == set(gsdnet.__all__) <= set(dir(gsdnet))
    with pytest.raises(AttributeError, match="grandmother"): gsdnet.grandmother


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_no_page_shows_a_warning(path):
    outputs = [o for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in cell.get("outputs", [])]
    assert not [o["text"] for o in outputs if re.search(r"Warning: |Traceback", "".join(o.get("text", "")))]


def test_a_source_distribution_has_what_building_from_it_needs(tmp_path):
    pytest.importorskip("setuptools")
    setup = [sys.executable, "setup.py", "-q"]
    subprocess.run([*setup, "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "out", **{"filter": "data"} if hasattr(tarfile, "data_filter") else {}) # Python before 3.11.4 knows no filters
    assert {"settings.ini", "gsdnet/py.typed", "tests/conftest.py", "nbs/index.ipynb", "results/commands.csv", "CHANGELOG.md"} <= names
    unpacked, = (tmp_path / "out").iterdir()
    said = subprocess.run([*setup, "--version"], cwd=unpacked, check=True, capture_output=True, text=True)
    assert said.stdout.split()[-1] == CONFIG["version"]


def test_notebooks_begin_with_their_title_and_carry_no_metadata_but_the_kernel():
    for path in (ROOT / "nbs").glob("*.ipynb"):
        page = json.loads(path.read_text(encoding="utf-8"))
        assert page["cells"][0]["cell_type"] == "markdown" and "".join(page["cells"][0]["source"]).startswith("# "), path.name
        assert set(page["metadata"]) == {"kernelspec"}, f"{path.name}: {sorted(page['metadata'])}"


def test_committed_tables_are_made_by_the_commands_that_are_listed():
    listed = subprocess.run([sys.executable, "benchmarks/results.py", "--list"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True).stdout
    listed = dict(line.split(maxsplit=1) for line in listed.splitlines())
    committed = dict(csv.reader((ROOT / "results/commands.csv").open(encoding="utf-8", newline="")))
    del committed["experiment"]
    words = lambda command: sorted(re.split(r"[ ,]", command)) # models in any order
    assert {name: words(command) for name, command in committed.items()} == {name: words(listed[name]) for name in committed}
