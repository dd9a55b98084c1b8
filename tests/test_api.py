"""What the pages promise of the interface: no public name without a docstring, a word on every parameter, and an example that runs."""
import ast
import importlib
import inspect
import io
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from textwrap import dedent
from tokenize import COMMENT, generate_tokens

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.stem for p in (ROOT / "gsdnet").glob("*.py") if not p.stem.startswith("_"))
EXPORTED = re.compile(r"^#\|\s*exports?\b", re.M)


def public(module):
    "Functions and classes that a module hands out, by name."
    loaded = importlib.import_module(f"gsdnet.{module}")
    found = {name: getattr(loaded, name) for name in loaded.__all__}
    return {name: x for name, x in found.items() if inspect.isclass(x) or inspect.isfunction(inspect.unwrap(x)) if callable(x)}


def methods(cls):
    "Public methods and properties that a class defines itself, and the function behind each."
    for name, x in vars(cls).items():
        f = x.fget if isinstance(x, property) else getattr(x, "func", getattr(x, "__func__", x)) # cached properties and class methods too
        if not name.startswith("_") and inspect.isfunction(f) and f.__module__ == cls.__module__: yield name, f, isinstance(x, property) or hasattr(x, "attrname")


def bases(cls, name):
    "The same method in the classes that a class comes from: what they say of a parameter holds here too."
    for base in cls.__mro__[1:]:
        x = vars(base).get(name)
        if x is not None: yield getattr(x, "fget", None) or getattr(x, "__func__", x)


def said(f):
    "By parameter, and by `return`: whether a comment of its own or the NumPy-style docstring says something of it; answers of None are left out."
    source = dedent(inspect.getsource(f))
    tree = ast.parse(source).body[0]
    listed = re.findall(r"\w+", " ".join(re.findall(r"^ *([\w, ]+?)(?: : .*)?\n {4,}", (f.__doc__ or "").partition("Parameters\n")[2], re.M)))
    comments = {token.start[0] for token in generate_tokens(io.StringIO(source).readline) if token.type == COMMENT}
    if isinstance(tree, ast.ClassDef): lines = {x.target.id: x.end_lineno for x in tree.body if isinstance(x, ast.AnnAssign)}
    else:
        a = tree.args
        lines = {x.arg: x.end_lineno for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x and x.arg not in ("self", "cls")}
        if tree.returns and ast.unparse(tree.returns) != "None": lines["return"] = tree.returns.end_lineno
    own = Counter(lines.values()) # a comment behind two parameters belongs to neither
    return {name: name in listed or (line in comments and own[line] == 1) for name, line in lines.items()}


def silent(f, *above):
    "Parameters, and `return`, that neither a function nor what it overrides says a word about."
    known = {name for one in above for name, told in said(one).items() if told}
    return [name for name, told in said(f).items() if not told and name not in known]


def gaps(name, x):
    "What of a public function or class is not documented."
    if not inspect.isclass(x): return [f"{name}: {p}" for p in silent(inspect.unwrap(x))] + [f"{name}: docstring"] * (not x.__doc__)
    found = [] if x.__doc__ else [f"{name}: docstring"]
    fields = "__dataclass_params__" in vars(x)
    if fields or "__init__" in vars(x) and not getattr(x, "_is_protocol", False): found += [f"{name}: {p}" for p in silent(x if fields else x.__init__)]
    for method, f, is_property in methods(x):
        above = [b for b in bases(x, method) if inspect.isfunction(b)]
        # what a network does is said by its class; a method that overrides another is described there
        if not (f.__doc__ or method == "forward" or any(b.__doc__ for b in above)): found.append(f"{name}.{method}: docstring")
        own = getattr(f, "__annotations__", {}).get("return") in (name, x) # the answer is of the class itself
        found += [f"{name}.{method}: {p}" for p in silent(f, *above) if not (p == "return" and (is_property or own))]
    return found


@cache
def used():
    "Every name that a lesson cell of some page uses: one that is run and is not exported."
    names = set()
    for path in (ROOT / "nbs").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or EXPORTED.search(source) or source.lstrip().startswith("%%"): continue
            for node in ast.walk(ast.parse(re.sub(r"^[!%].*$", "", source, flags=re.M))):
                if isinstance(node, ast.Name): names.add(node.id)
                elif isinstance(node, ast.Attribute): names.add(node.attr)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented(module):
    found = [gap for name, x in public(module).items() for gap in gaps(name, x)]
    assert not found, "write a comment behind each of these parameters or answers, or a docstring"


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_an_example(module):
    found = [name for name in importlib.import_module(f"gsdnet.{module}").__all__ if name not in used()]
    assert not found, "show each of these names in a lesson cell, or export its cell with `#| exporti`, which makes it no part of the interface"


def test_the_checks_see_a_gap():
    def bare(
        x,
        y: int, # said
    ) -> int: return x + y
    class Half:
        "A class."
        def __init__(self, a): self.a = a
        def method(self): return 1
        @property
        def size(self) -> int: "How large."
    class Whole(Half):
        "The same."
        def method(self): return 2
    assert gaps("bare", bare) == ["bare: x", "bare: return", "bare: docstring"]
    assert gaps("Half", Half) == ["Half: a", "Half.method: docstring"]
    assert gaps("Whole", Whole) == ["Whole.method: docstring"]
    assert "export_program" in used() and "no_such_name" not in used()
