"""Other people's files: malicious pickles run nothing, damaged files are refused, good ones come out as they went in."""
import inspect
import io
import json
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsdnet import pickles
from gsdnet.baselines import gsdnet
from gsdnet.benchmark import with_validation
from gsdnet.data import SyntheticConversations, load_dataset
from gsdnet.formats import (LAYOUTS, RefusedPickle, convert, example, load_npy, load_npz, load_pickle, meld_table,
                            read_gcnet, read_meld, read_mmgcn, read_mmsa)
from gsdnet.trainer import TrainConfig, fit
from test_hostile import mutated

quick = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
BLANK = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


def text(x): return b"X" + struct.pack("<I", len(x)) + x.encode()


def dtype(code="f4", order="<", tail=b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"):
    return b"cnumpy\ndtype\n(" + text(code) + b"K\x00K\x01tR(K\x03" + text(order) + tail + b"tb"


def array(shape, code=dtype(), raw=b"C\x04abcd", order=b"\x89"):
    "A pickled array with any shape, type and bytes."
    return BLANK + b"(K\x01(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t" + code + order + raw + b"tb."


def call(module, name, *arguments):
    "A protocol-0 pickle of a call."
    return f"c{module}\n{name}\n(".encode() + b"".join(text(a) for a in arguments) + b"tR."


def attacks(canary):
    "Name -> bytes: each would do harm to a reader that believes it."
    shell = f"touch {canary}"
    run = f"open({str(canary)!r}, 'w')"

    class System:
        def __reduce__(self): return os.system, (shell,)

    class State:
        def __reduce__(self): return OrderedDict, (), None, None, iter([("a", System())])

    def nested(protocol): return pickle.dumps({"a": [np.array([1, System()], object)]}, protocol)

    stack = lambda module, name: text(module) + text(name) + b"\x93"
    args = b"(" + text(shell) + b"t"
    code = {
        **{f"reduce, protocol {p}": pickle.dumps(System(), p) for p in range(6)},
        **{f"in an object array, protocol {p}": nested(p) for p in (0, 2, 4, 5)},
        **{f"call {m}.{n}": call(m, n, a) for m, n, a in (
            ("os", "system", shell), ("posix", "system", shell), ("nt", "system", shell), ("subprocess", "getoutput", shell),
            ("__builtin__", "eval", run),
            ("builtins", "exec", run), ("builtins", "compile", run), ("builtins", "__import__", "os"),
            ("builtins", "open", str(canary)), ("builtins", "getattr", "a"),
            ("builtins", "globals", ""), ("builtins", "breakpoint", ""), ("builtins", "print", "x"), ("functools", "partial",
                "a"), ("functools", "reduce", "a"), ("operator", "attrgetter", "a"),
            ("operator", "methodcaller", "a"), ("copyreg", "_reconstructor", "a"), ("copy_reg", "__newobj__", "a"),
            ("importlib", "import_module", "os"), ("runpy", "run_path", "a"),
            ("pickle", "loads", "a"), ("_pickle", "loads", "a"), ("types", "FunctionType", "a"), ("types", "CodeType", "a"),
            ("ctypes", "CDLL", "a"), ("pty", "spawn", "a"), ("shutil", "rmtree", "a"),
            ("webbrowser", "open", "a"), ("socket", "socket", "a"), ("code", "interact", "a"), ("timeit", "timeit", run),
            ("marshal", "loads", "a"), ("logging.config", "listen", "a"),
            ("numpy", "load", str(canary)), ("numpy", "fromfile", "/etc/passwd"), ("numpy", "memmap", str(canary)),
            ("numpy.testing", "rundocs", "a"), ("numpy.f2py.crackfortran", "eval", run),
            ("numpy.f2py.diagnose", "run_command", shell), ("numpy.distutils.exec_command", "exec_command", shell),
            ("numpy.core.multiarray", "fromfile", "a"), ("numpy._core.multiarray", "frombuffer", "a"),
            ("numpy.core.multiarray._reconstruct", "__globals__", "a"), ("numpy.core", "multiarray.fromstring", "a"),
            ("numpy.random._pickle", "__generator_ctor", "a"), ("numpy", "recarray", "a"),
            ("collections", "namedtuple", "a"), ("collections", "ChainMap", "a"), ("codecs", "decode", "a"),
            ("_codecs", "decode", "a"), ("pandas.io.pickle", "read_pickle", "a"),
            ("torch._utils", "_rebuild_tensor_v2", "a"), ("torch", "load", "a"), ("torch.storage", "_load_from_bytes", "a"),
            ("joblib.numpy_pickle", "NumpyArrayWrapper", "a"), ("gsdnet.formats", "convert", "a"),
            ("__main__", "x", "a"), ("builtins", "set.__init__", "a"), ("builtins", "list", "abc"), ("builtins", "dict", "a"),
            ("builtins", "type", "a"), ("numpy", "ndarray", "a"))},
        "inst": b"(" + text(shell) + b"ios\nsystem\n.", "obj": b"(cos\nsystem\n" + text(shell) + b"o.",
        "newobj": b"cos\nsystem\n" + args + b"\x81.",
        "newobj of an allowed name": b"cnumpy\nndarray\n)\x81.", "newobj_ex": b"\x80\x04" + stack("os", "system") + args
        + b"}\x92.", "stack global": b"\x80\x04" + stack("os", "system") + args + b"R.",
        "stack global, dotted": b"\x80\x04" + stack("os.path", "os.system") + args + b"R.",
        "stack global of bytes": b"\x80\x04C\x02osC\x06system\x93" + args + b"R.",
        "stack global of a list": b"\x80\x04]]\x93.", "stack global through numpy": b"\x80\x04" + stack("numpy",
            "_core.multiarray.os.system") + args + b"R.",
        "name with spaces": b"c os \n system \n" + args + b"R.", "name in other letters": "c\u00f8s\nsystem\n".encode() + args
        + b"R.", "empty name": b"c\n\n" + args + b"R.",
        "call of text": text("os.system") + args + b"R.", "call of a dictionary": b"}" + args + b"R.",
        "arguments no tuple": b"cos\nsystem\n" + text(shell) + b"R.",
        "reconstruct of another class": b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nset\n(K\x00tC\x01btR.",
        "reconstruct of a subclass": BLANK.replace(b"ndarray", b"matrix") + b".",
        "extension registry": b"\x80\x02\x82\x01.", "extension registry 2": b"\x80\x02\x83\x01\x00.",
        "extension registry 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"Pos.system\n.", "binary persistent id": text("os.system") + b"Q.", "next buffer": b"\x80\x05\x97.",
        "read-only buffer": b"\x80\x05C\x01a\x98.",
        "items of an OrderedDict": pickle.dumps(State(), 2), "defaultdict with a factory": pickle.dumps(defaultdict(int),
            2).replace(b"__builtin__\nint", b"posix\nsystem"),
        "default factory called": b"c__builtin__\nlist\n)R.", "build on a list": b"]}b.", "build on a dictionary": b"}("
        + text("__class__") + text("x") + b"d}\x86b.",
        "build with __setstate__": b"}}" + text("__setstate__") + b"cos\nsystem\nsb" + text(shell) + b"b.",
        "build on a name": b"cnumpy\nndarray\n}b.", "build twice": array([1])[:-1] + b"(K\x01tb.",
        "name among the data": b"cnumpy\nndarray\n.", "name in a list": b"](cnumpy\nndarray\ne.", "begun array": BLANK + b".",
        "begun array fetched": BLANK + b"q\x000h\x00.", "array in itself": BLANK + b"q\x00(K\x01(K\x01t" + dtype("O", "|")
        + b"\x89](h\x00etb.",
    }
    bombs = {
        "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 10 << 30) + b"a.", "bytes": b"B" + struct.pack("<I", 2**32 - 1) + b"a.",
        "unicode": b"X" + struct.pack("<I", 2**31) + b"a.",
        "unicode8": b"\x8d" + struct.pack("<Q", 2**63) + b"a.", "bytearray8": b"\x96" + struct.pack("<Q", 2**40) + b"a.",
        "string": b"T" + struct.pack("<I", 2**31 - 1) + b"a.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 10 << 30) + b"\x8e" + struct.pack("<Q", 10 << 30) + b".", "long4": b"\x8b"
        + struct.pack("<I", 2**31 - 1) + b"a.", "long of 200 bytes": b"\x8a\xc8" + b"\xff" * 200 + b".",
        "long line": b"L" + b"9" * 100_000 + b"L\n.", "int line": b"I" + b"9" * 5_000 + b"\n.",
        "memo index": b"Nr\xff\xff\xff\xff0h\x01.", "memo index in words": b"Np99999999999999999999999999\n.",
        "memo of everything": b"\x80\x04N" + b"\x94" * 60_000 + b".", "containers": b"(" + b"]" * 60_000 + b"t.",
        "billion laughs": laughs(), "very deep": b"]" * 30_000 + b"a" * 29_999 + b".",
        "tuples very deep": b")" + b"\x85" * 30_000 + b".", "deep tuple as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
        "deep tuple in a set": b"\x8f(" + b")" + b"\x85" * 100_000 + b"\x90.",
        "marks": b"(" * 100_000 + b".", "list in itself": b"]q\x00h\x00a.", "dictionary in itself": b"}q\x00" + text("a")
        + b"h\x00s.", "list as a key": b"}]Ns.", "array as a key": b"}" + array([1])[:-1] + b"Ns.",
        "shape": array([2**31 - 1, 2**31 - 1]), "shape that overflows": array([2**62, 4]), "shape below zero": array([-1]),
        "shape of nothing": array([0, 2**39, 2**39]), "shape too long": array([1] * 40),
        "shape times nothing": array([2**39], dtype("U0")), "wide strings": array([2**20], dtype("U1000000")),
        "too few bytes": array([2]), "too many bytes": array([1], raw=b"C\x08abcdabcd"), "text as bytes": array([1],
            raw=text("\u20ac\u20ac")),
        "objects as bytes": array([1], dtype("O8", "|")), "objects from a number": array([1], dtype("O8", "|"), b"K\x05"),
        "fewer objects": array([3], dtype("O8", "|"), b"]"), "bytes as a list": array([1], raw=b"](K\x01e"),
        "void": array([1], dtype("V4", "|")), "dates": array([1], dtype("M8")), "complex": array([1], dtype("c8")),
        "long double": array([1], dtype("f16")), "type by another name": array([1], dtype("float32, object")),
        "type with fields": array([1], dtype(tail=b"N(" + text("a") + b"t}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")),
        "type with a subarray": array([1], dtype(tail=b"(K\x01)tNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00")),
        "type with metadata": array([1], dtype(tail=b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}")),
        "type of another size": array([1], dtype(tail=b"NNNM\x00\x10M\x00\x10K\x00")), "no such order": array([1],
            dtype(order="!")),
        "bools that are none": array([4], dtype("b1", "|")), "characters that are none": array([1], dtype("U1"),
            b"C\x04\xff\xff\xff\xff"), "surrogates": array([1], dtype("U1"), b"C\x04\x00\xd8\x00\x00"),
            "surrogate text": b"V\\ud800\n.",
        "broken utf-8": b"X\x01\x00\x00\x00\xff.", "protocol 99": b"\x80\x63N.", "empty": b"", "stop": b".",
        "two values": b"NN.", "trailing": b"N.N.", "no mark": b"Nt.", "odd dictionary": b"(Nd.",
        "append to a number": b"K\x01Na.",
        "pop of nothing": b"0.", "unknown opcode": b"\xff.", "quotes": b"S'abc\n.", "float": b"Fabc\n.", "odd line": b"I1",
        "state of nothing": BLANK + b")b.", "zip": b"PK\x03\x04aaaa", "gzip": b"\x1f\x8baaaa", "npy": b"\x93NUMPY\x01\x00aa",
    }
    return code | bombs


def laughs():
    "Lists of ten references to the one before: 1e13 values in 200 bytes."
    out = b"]q\x00"
    for i in range(13): out += b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1])
    return out + b"."


CASES = attacks(Path("canary"))


@pytest.mark.parametrize("name", CASES)
def test_attacks_are_refused_and_nothing_runs(tmp_path, monkeypatch, name):
    "A clear refusal; no file made, no module imported, memory in proportion to the file. Limits a hundredth of the true ones."
    for limit in ("_CONTAINERS", "_MEMO"): monkeypatch.setattr(pickles, limit, getattr(pickles, limit) // 100)
    canary, path = tmp_path / "canary", tmp_path / "attack.pkl"
    content = attacks(canary)[name]
    path.write_bytes(content)
    modules = set(sys.modules)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(RefusedPickle) as refusal: load_pickle(path)
        seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert "attack.pkl" in str(refusal.value) and len(str(refusal.value)) < 800
    assert not canary.exists() and not {m for m in set(sys.modules) - modules if not m.startswith("encodings")}
    assert seconds < 10 and peak < 30e6 + 300 * len(content), (seconds, peak)


def test_there_are_many_attacks_and_pickle_itself_falls_for_some(tmp_path):
    assert len(CASES) >= 150
    canary = tmp_path / "canary"
    pickle.loads(attacks(canary)["reduce, protocol 2"])
    assert canary.exists()


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"): load_pickle(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a file"): load_pickle("/dev/zero")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(list(range(1000))))
    with pytest.raises(ValueError, match="raise `limit`"): load_pickle(tmp_path / "a.pkl", limit=100)
    torch.save({"x": torch.ones(2)}, tmp_path / "t.pkl")
    with pytest.raises(ValueError, match="torch.load"): load_pickle(tmp_path / "t.pkl")
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"x": torch.ones(2)}))
    with pytest.raises(ValueError, match="torch tensors.*x.numpy"): load_pickle(tmp_path / "t.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_cut_of_a_good_pickle_is_refused(tmp_path, protocol):
    content = pickle.dumps(GOOD, protocol)
    path = tmp_path / "cut.pkl"
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(ValueError): load_pickle(path)


GOOD = ({"Ses01": ["a", "b"], "x": {"n": np.arange(4, dtype=np.float32).reshape(2, 2), "o": np.array(["a", None, 3.5], object)}},
        {"Ses01"}, frozenset([1, 2]), [np.float64(1.5), np.int64(7), np.bool_(True), True, None, -1, 2**60, 1e300, b"raw",
                                       "caf\u00e9"],
        OrderedDict(a=1), defaultdict(list, b=[2]), np.array(["sad", "glad"]),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)), np.zeros((0, 3)), np.array(2.5), bytearray(b"ab"), b"")


def same(a, b):
    "Equal in value and, containers of our kind aside, in type."
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.shape == b.shape and a.dtype == b.dtype.newbyteorder("=") and (
            all(same(x, y) for x, y in zip(a.flat, b.flat)) if b.dtype == object
            else a.tobytes() == b.astype(b.dtype.newbyteorder("=")).tobytes())
    if isinstance(b, dict): return isinstance(a, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(b, (bytearray, bytes)): return bytes(a) == bytes(b)
    return type(a) is type(b) and (a == b or a != a and b != b)


@pytest.mark.parametrize("protocol", range(6))
def test_good_pickles_come_back_as_they_were(tmp_path, protocol):
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(GOOD, protocol))
    assert same(load_pickle(tmp_path / "good.pkl"), GOOD)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2**100, 2**100) | st.floats() | st.binary(max_size=20)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.builds(lambda n, d, t: np.arange(n * d).reshape(n, d).astype(t), st.integers(0, 3), st.integers(1, 3),
                st.sampled_from(["<f4", ">f8", "i8", ">u2", "U5", "S4", "?"])),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
                                                        | st.integers(), x, max_size=4) | st.tuples(x, x), max_leaves=12)


@settings(quick, max_examples=300)
@given(x=plain, protocol=st.integers(0, 5))
def test_whatever_is_plain_comes_back(tmp_path, x, protocol):
    "pickle itself is the judge."
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps([x, x], protocol))
    assert same(load_pickle(tmp_path / "plain.pkl"), [x, x])


def test_python_2_pickles(tmp_path):
    "Written by hand: text as bytes, arrays as escaped text, numpy.core as the place."
    raw = struct.pack("<2f", 1.5, -2)
    as_text = b"S" + repr(raw)[1:].encode() + b"\n"
    old = b"(dp1\nS'Ses01F_impro01'\np2\n(lp3\n" + BLANK + b"p4\n(I1\n(I2\ntp5\n" + dtype() + b"p6\nI00\n" + as_text + b"tbas."
    (tmp_path / "old.pkl").write_bytes(old)
    mine, judge = load_pickle(tmp_path / "old.pkl"), pickle.loads(old, encoding="latin1")
    assert same(mine, judge) and mine["Ses01F_impro01"][0].tolist() == [1.5, -2]


# ---- damaged files of every layout


def sources(folder):
    "Every layout's example, with the features to name."
    out = {}
    for layout in LAYOUTS:
        path, truth = example(layout, folder / layout)
        out[layout] = path, truth, {m: folder / layout / m for m in truth.modalities} if layout == "meld" else None
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory): return sources(tmp_path_factory.mktemp("good"))


def check(dataset, truth, names=None):
    "The data set holds what the example was made from, conversation by conversation."
    order = sorted(range(len(truth)), key=lambda i: names(i, truth)) if names else range(len(truth))
    assert len(dataset) == len(truth) and set(dataset.modalities) == set(truth.modalities) and dataset.task == truth.task
    for c, i in zip(dataset, order):
        t = truth[i]
        for m in truth.modalities: torch.testing.assert_close(c[m], t[m], rtol=1e-5, atol=1e-6)
        assert bool(c.present.all()) and c.position.tolist() == list(range(t.num_nodes))
        assert dataset.split[c.rows[0]] == truth.split[t.rows[0]]
        if truth.score is not None: torch.testing.assert_close(c.score, t.score)
        else: assert torch.equal(c.y, t.y)
        if dataset.report["layout"] != "mmsa":
            assert torch.equal(c.speaker[:, None] == c.speaker, t.speaker % 2 == (t.speaker % 2)[:, None])


FILE = {0: "train", 1: "dev", 2: "test"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_examples_come_out_as_they_went_in(good, tmp_path, layout):
    path, truth, features = good[layout]
    report = convert(str(path), str(tmp_path / "out"), features=[f"{m}={p}" for m, p in features.items()] if features else None)
    dataset = load_dataset(tmp_path / "out")
    dataset.report = report
    check(dataset, truth, (lambda i, t: (FILE[int(t.split[t[i].rows[0]])], i)) if layout == "meld" else None)
    assert dataset.hash == report["hash"] and json.loads((tmp_path / "out/report.json").read_text()) == report
    assert report["layout"] == layout and report["utterances"] == truth.n_utterances and not report["dropped"]
    again = convert(path, tmp_path / "again", features=features)
    assert again == report and (tmp_path / "again/utterances.csv").read_text() == (tmp_path / "out/utterances.csv").read_text()
    with pytest.raises(ValueError, match="has data.npz, .* already"): convert(path, tmp_path / "out", features=features)
    assert convert(path, tmp_path / "out", features=features, overwrite=True) == report


def test_readers_return_data_sets_and_name_what_they_expected(good, tmp_path):
    folders = {m: good["gcnet"][0].parent / "features" / m for m in ("text", "audio")}
    assert read_gcnet(good["gcnet"][0], folders).modalities == ("text", "audio")
    assert read_mmgcn(good["mmgcn"][0], label_names="abcd").label_names == tuple("abcd")
    assert read_mmsa(good["mmsa"][0]).task == "regression"
    assert len(meld_table(good["meld"][0])) == good["meld"][1].n_utterances
    for read, other, words in ((read_gcnet, "mmsa", "expected a list of 6 or 7"), (read_mmgcn, "gcnet", "expected a tuple of 9"),
                               (read_mmsa, "mmgcn", "expected a dictionary with train")):
        with pytest.raises(ValueError, match=words): read(good[other][0], *([{}] if read is read_gcnet else []))


MUTANTS = 300


@pytest.mark.parametrize("layout", ["gcnet", "mmgcn", "mmsa"])
def test_mutated_pickles_load_or_are_refused(good, tmp_path, layout):
    "A few bytes changed, cut, doubled or moved: a ValueError, or a data set whose checks passed."
    path, truth, _ = good[layout]
    content = path.read_bytes()
    rng, loaded = random.Random(0), 0
    target = tmp_path / "mutant.pkl"
    reader = (lambda p: read_gcnet(p, {"text": path.parent / "features/text"})) if layout == "gcnet" else {"mmgcn": read_mmgcn,
        "mmsa": read_mmsa}[layout]
    for _ in range(MUTANTS):
        target.write_bytes(mutated(content, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: loaded += reader(target).n_utterances > 0
            except ValueError: pass
    assert 0 < loaded < MUTANTS


@settings(quick, max_examples=600)
@given(data=st.data())
def test_mutated_small_pickles_never_raise_anything_else(tmp_path, data):
    "hypothesis looks for the byte that breaks the machine."
    content = bytearray(pickle.dumps(GOOD, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.pkl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: load_pickle(tmp_path / "m.pkl")
        except ValueError: pass


@settings(quick, max_examples=300)
@given(content=st.lists(st.sampled_from(list(b"(.0122FIJKLMNPQRSTUVXabcdeghijlopqrstu}]()G") + list(range(0x80, 0x99)))
                        | st.integers(0, 255), max_size=40).map(bytes))
def test_random_words_never_raise_anything_else(tmp_path, content):
    (tmp_path / "r.pkl").write_bytes(content + b".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: load_pickle(tmp_path / "r.pkl")
        except ValueError: pass


@settings(quick, max_examples=200)
@given(data=st.data())
def test_mutated_tables_and_arrays(good, tmp_path, data):
    "A CSV, an npz and an npy, each with a few bytes changed."
    seed, meld = data.draw(st.integers(0, 10**6)), good["meld"][0]
    rng = random.Random(seed)
    (tmp_path / "train_sent_emo.csv").write_bytes(mutated((meld / "train_sent_emo.csv").read_bytes(), rng))
    (tmp_path / "x.npz").write_bytes(mutated((meld / "text/train.npz").read_bytes(), rng))
    (tmp_path / "x.npy").write_bytes(mutated(npy(np.arange(6.0).reshape(2, 3)), rng))
    for read in (lambda: meld_table(tmp_path), lambda: load_npz(tmp_path / "x.npz"), lambda: load_npy(tmp_path / "x.npy")):
        try: read()
        except ValueError: pass


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


# ---- paths, archives, arrays


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b", "link",
                                  "x" * 300, ".hidden"])
def test_identifiers_that_leave_the_folder(tmp_path, name):
    folder = tmp_path / "text"
    folder.mkdir()
    np.save(tmp_path / "secret.npy", np.ones(2))
    (folder / "link.npy").symlink_to(tmp_path / "secret.npy")
    (tmp_path / "labels.pkl").write_bytes(pickle.dumps([{"d": [name]}, {"d": [0]}, {"d": ["F"]}, {"d": ["hello"]}, {"d"}, set()]))
    with pytest.raises(ValueError, match="lead out of the folder|leaves the folder"):
        read_gcnet(tmp_path / "labels.pkl", {"text": folder})


def test_links_of_folders_and_faces(tmp_path):
    "A folder of faces: the speaker's own are averaged; one that is a link elsewhere is refused."
    faces = tmp_path / "visual" / "u0"
    faces.mkdir(parents=True)
    for file, x in (("F_1", 1.0), ("F_2", 3.0), ("M_1", 100.0)): np.save(faces / f"{file}.npy", np.full((2, 3), x))
    (tmp_path / "labels.pkl").write_bytes(pickle.dumps([{"d": ["u0", "u1"]}, {"d": [0, 1]}, {"d": ["F", "M"]}, {"d": ["a", "b"]},
                                                        {"d"}, set()], 2))
    ds = read_gcnet(tmp_path / "labels.pkl", {"visual": tmp_path / "visual"})
    assert ds[0].visual.tolist() == [[2.0, 2.0, 2.0]] and ds.report["dropped"] == {"nothing recorded": 1}
    (tmp_path / "visual" / "u1").symlink_to("/etc")
    with pytest.raises(ValueError, match="leaves the folder"):
        read_gcnet(tmp_path / "labels.pkl", {"visual": tmp_path / "visual"})


def test_archives_that_claim_or_hold_too_much(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(30_000_000, np.uint8))
    tracemalloc.start()
    with pytest.raises(ValueError, match="would unpack to 30000128 bytes"): load_npz(tmp_path / "bomb.npz", limit=1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    content = bytearray((tmp_path / "bomb.npz").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24:entry + 28] = struct.pack("<I", 1000) # the directory now claims a thousand bytes
    (tmp_path / "liar.npz").write_bytes(content)
    with pytest.raises(ValueError): load_npz(tmp_path / "liar.npz", limit=1 << 20)
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as z:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2): z.writestr("a.npy", npy(np.ones(2)))
    with pytest.raises(ValueError, match="two arrays of one name"): load_npz(tmp_path / "twice.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="`a` holds pickled objects"): load_npz(tmp_path / "objects.npz")
    for x in (b"", b"abc", (tmp_path / "objects.npz").read_bytes()[:-30]):
        (tmp_path / "broken.npz").write_bytes(x)
        with pytest.raises(ValueError, match="no .npz archive"): load_npz(tmp_path / "broken.npz")
    with pytest.raises(FileNotFoundError): load_npz(tmp_path / "none.npz")


def test_arrays_cut_anywhere_and_in_either_byte_order(tmp_path):
    for x in (np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.arange(6, dtype="<i8").reshape(2, 3)),
              np.array(["a", "bc"]), np.array(1.5), np.zeros((0, 4)), np.ones(3, bool)):
        np.save(tmp_path / "x.npy", x)
        assert same(load_npy(tmp_path / "x.npy"), x)
    np.save(tmp_path / "x.npy", np.arange(6, dtype=">f4"))
    content = (tmp_path / "x.npy").read_bytes()
    for n in range(len(content)):
        (tmp_path / "x.npy").write_bytes(content[:n])
        with pytest.raises(ValueError): load_npy(tmp_path / "x.npy")
    for old, new in ((b"(6,)", b"(9999999999999,)"), (b"'>f4'", b"'|O'"), (b"'>f4'", b"'<M8[s]'"), (b"'descr'", b"'decsr'"),
                     (b"False", b"exit()")):
        (tmp_path / "x.npy").write_bytes(content.replace(old, new))
        with pytest.raises(ValueError): load_npy(tmp_path / "x.npy")


# ---- what the layouts vary in


def tuple_of(kind, speakers=None):
    "A feature tuple of any of the five orders, two dialogues of two utterances."
    keys, n = ([0, 1], 2) if "MELD" in kind else (["Ses01F_impro01", "Ses05M_script01"], 2)
    make = lambda f: {k: [f(k, i) for i in range(n)] for k in keys}
    ids, labels = make(lambda k, i: f"{k}_{i}"), {keys[0]: [0, 6 if "MELD" in kind else 5], keys[1]: [1, 2]}
    who = make(lambda k, i: [0] * i + [1] + [0] * (8 - i)) if "MELD" in kind else make(lambda k, i: "MF"[i])
    rng = np.random.default_rng(0)
    feature = lambda d: {k: rng.normal(size=(n, d)).astype(np.float32) for k in keys}
    text, audio, visual, words = feature(3), feature(2), feature(4), make(lambda k, i: f"say {i}")
    more = [feature(3) for _ in range(3)]
    train, test, second = [keys[0]], [keys[1]], make(lambda k, i: 0)
    return {"IEMOCAP 9": (ids, who, labels, text, audio, visual, words, train, test), "MELD 9": (ids, who, labels, text, audio,
        words, train, test, second),
            "MELD 10": (ids, who, labels, text, audio, visual, words, train, test, second), "IEMOCAP 12": (ids, who, labels,
                text, *more, audio, visual, words, train, test),
            "MELD 13": (ids, who, labels, text, *more, audio, visual, words, train, test, second)}[kind]


@pytest.mark.parametrize("kind", ["IEMOCAP 9", "MELD 9", "MELD 10", "IEMOCAP 12", "MELD 13"])
def test_the_five_orders_of_feature_pickles(tmp_path, kind):
    content = tuple_of(kind)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(content, 2))
    assert convert(tmp_path / "f.pkl", tmp_path / "out")["layout"] == "mmgcn"
    ds = read_mmgcn(tmp_path / "f.pkl")
    assert ds.modalities == (("text", "audio") if kind == "MELD 9" else ("text", "audio", "visual")) and ds.dims["text"] == 3
    assert ds.label_names == (("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger") if "MELD" in kind
                              else ("happy", "sad", "neutral", "angry", "excited", "frustrated"))
    assert torch.equal(ds[0].text, torch.from_numpy(content[3][list(content[3])[0]])) and ds[0].speaker.unique().numel() == 2
    if "IEMOCAP" in kind:
        assert sorted(set(ds.utterances.speaker)) == ["Ses01_F", "Ses01_M", "Ses05_F", "Ses05_M"] and ds.group.tolist() == [0, 0, 4, 4]
    assert (ds.group is None) == ("MELD" in kind) and ds.split.tolist() == [0, 0, 2, 2]
    assert not (tmp_path / "out2").exists()


def test_the_note_on_an_absent_validation_split_is_true(tmp_path):
    "What the note says of the command, of `fit` and of `with_validation`."
    ds = read_mmgcn(save(tmp_path / "meld_multimodal_features.pkl", tuple_of("MELD 13")))
    note, = [n for n in ds.report["notes"] if "validation split" in n]
    assert "gsdnet train" in note and "`fit` cuts none" in note
    many = SyntheticConversations(n_dialogues=60, length=(2, 3), dims=(2, 2, 2)).dataset()
    many = many.with_split(many.split.where(many.split != 1, 0))
    share = inspect.signature(with_validation).parameters["share"].default
    assert f"cut {share:.0%}".replace("%", " %") in note and len(with_validation(many)[0].valid) == round(share * len(many.train))
    small = partial(gsdnet, latent=4, hidden=4, width=4, denoiser_width=4, denoiser_blocks=1, n_samples=2)
    history = fit(many, model=small, config=TrainConfig(epochs=2), progress=False).history
    assert "keeps the last epoch" in note and history["epoch"] == history["epochs"] == 2


def test_gcnet_with_scores_and_a_validation_split(tmp_path):
    ids = {"v0": ["v0_1", "v0_2"], "v1": ["v1_1"], "v2": ["v2_1"], "v3": ["v3_1"]}
    labels = {"v0": [-1.5, 2.0], "v1": [0.0], "v2": [0.4], "v3": [1.0]}
    content = [ids, labels, {d: [""] * len(u) for d, u in ids.items()}, {d: ["words"] * len(u) for d, u in ids.items()}, {"v0"},
               {"v1"}, {"v2"}]
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps(content, 2))
    for folder, d in (("wav2vec-large-c-UTT", 3), ("deberta-large-4-UTT", 2)):
        (tmp_path / "features" / folder).mkdir(parents=True)
        for uids in ids.values():
            for u in uids: np.save(tmp_path / "features" / folder / f"{u}.npy", np.random.default_rng(0).normal(size=(4, d)))
    report = convert(tmp_path / "mosi.pkl", tmp_path / "out")
    ds = load_dataset(tmp_path / "out")
    assert set(ds.modalities) == {"audio",
                                  "text"} and ds.task == "regression" and report["dropped"] == {"dialogue in no split": 1}
    assert ds.score.tolist() == pytest.approx([-1.5, 2, 0, 0.4]) and ds.y.tolist() == [0, 1, 1, 1] and ds.split.tolist() == [0,
        0, 1, 2]


def mmsa(**changes):
    "A tiny MMSA dictionary; the training part with changes."
    rng = np.random.default_rng(0)
    part = lambda v: {"id": [f"{v}$_$10", f"{v}$_$9"], "raw_text": np.array(["b", "a"]),
                      "text": rng.normal(size=(2, 3, 4)).astype("f4"), "audio": rng.normal(size=(2, 3, 2)),
                      "vision": rng.normal(size=(2, 3, 5)),
                      "regression_labels": np.array([1.0, -1.0]), "classification_labels": np.array([2.0, 0.0]),
                      "annotations": ["Positive", "Negative"]}
    return {"train": part("v0") | changes, "valid": part("v1"), "test": part("v2")}


def save(path, x):
    path.write_bytes(pickle.dumps(x, 4))
    return path


def test_mmsa_order_padding_and_damage(tmp_path):
    path = tmp_path / "aligned_50.pkl"
    ds = read_mmsa(save(path, mmsa()))
    assert ds[0].score.tolist() == [-1, 1] and ds.utterances.id.tolist()[:2] == ["v0$_$10",
        "v0$_$9"], "clip 9 comes before clip 10"
    audio = np.zeros((2, 3, 2))
    audio[0, :2], audio[1, 2] = [[1, 2], [3, -np.inf]], [5, 6]
    ds = read_mmsa(save(path, mmsa(audio=audio, audio_lengths=[2, 1])))
    assert ds[0].audio.tolist() == [[5, 6], [2, 1]] and any("1 cells were not finite" in n for n in ds.report["notes"])
    ds = read_mmsa(save(path, mmsa(audio=np.zeros((2, 3, 2)), audio_lengths=[2, 0])))
    assert ds.report["modalities"]["audio"] | {"dim": 2} == dict(dim=2, utterances=6, present=4, absent=1, all_zero=1,
        not_finite=0)
    assert read_mmsa(path, zeros="keep").report["modalities"]["audio"]["present"] == 5
    bert = np.zeros((2, 3, 3), "f4")
    bert[:, 1, :1] = 1
    text = np.zeros((2, 3, 4), "f4")
    text[:, 0] = 7
    assert read_mmsa(save(path, mmsa(text_bert=bert, text=text)))[0].text.unique().tolist() == [7]
    text[:, 1:] = 9 # what a network makes of padding tokens
    assert read_mmsa(save(path, mmsa(text_bert=bert, text=text)))[0].text.unique().tolist() == [7]
    for changes, words in ((dict(audio_lengths=[1, 1]), "more frames than their length"), (dict(audio_lengths=[4, 1]),
        "within 0..3"),
                           (dict(audio_lengths=[1.5, 1]), "whole numbers"), (dict(id=["a", "b"]), r"expected video\$_\$clip"),
                           (dict(id=["v$_$1"]), "expected 1"), (dict(audio=np.zeros((2, 3), object)), "expected an array"),
                           (dict(regression_labels=np.array(["a", "b"])), "expected a number"),
                           (dict(regression_labels=np.array([np.inf, 0])), "infinite"), (dict(vision=np.ones((2, 3, 4))),
                               "one width"), (dict(id=["v0$_$1", "v0$_$1"]), "same place")):
        with pytest.raises(ValueError, match=words): read_mmsa(save(path, mmsa(**changes)))


def test_a_video_in_two_splits_is_cut_and_said(tmp_path):
    data = mmsa(id=["v1$_$1", "v1$_$2"], regression_labels_T=np.zeros(2))
    ds = read_mmsa(save(tmp_path / "sims.pkl", data))
    assert len(ds) == 3 and {"v1|train", "v1|valid"} <= set(ds.utterances.conversation)
    assert any("several splits" in n for n in ds.report["notes"]) and any("regression_labels_T" in n for n in ds.report["notes"])


@pytest.mark.parametrize("form", ["npz by split", "three dictionaries", "named dictionaries", "one dictionary"])
def test_every_form_of_meld_features(good, tmp_path, form):
    folder, truth, features = good["meld"]
    tables = {f: load_npz(features["text"] / f"{f}.npz") for f in FILE.values()}
    short = {f: {k.replace("dia", "").replace("utt", ""): x for k, x in t.items()} for f, t in tables.items()}
    path = {"npz by split": features["text"]}.get(form, tmp_path / "text.pkl")
    if form == "three dictionaries": save(path, [short[f] for f in FILE.values()])
    if form == "named dictionaries": save(path, {"train": tables["train"], "val": tables["dev"], "test": tables["test"]})
    if form == "one dictionary": save(path, {f"{f}_{k}": list(map(float, x)) for f, t in tables.items() for k, x in t.items()})
    ds = read_meld(folder, {"text": path})
    assert ds.available.all() and ds.report["utterances"] == truth.n_utterances


@pytest.mark.parametrize("form", ["folders", "names"])
def test_meld_features_with_a_file_per_utterance(good, tmp_path, form):
    folder, _, features = good["meld"]
    place = lambda f, uid: tmp_path / "text" / (f"{f}/{uid}.npy" if form == "folders" else f"{f}_{uid}.npy")
    for f in FILE.values():
        for uid, x in load_npz(features["text"] / f"{f}.npz").items():
            place(f, uid).parent.mkdir(parents=True, exist_ok=True)
            np.save(place(f, uid), np.stack([x - 1, x + 1])) # frames, whose mean is x
    (tmp_path / "text" / "._dia0_utt0.npy").write_bytes(b"left by a file manager")
    here, there = read_meld(folder, {"text": tmp_path / "text"}), read_meld(folder, {"text": features["text"]})
    assert here.available.all() and [c.key for c in here] == [c.key for c in there]
    for a, b in zip(here, there): torch.testing.assert_close(a.text, b.text)
    place("train", "dia0_utt0").unlink()
    assert read_meld(folder, {"text": tmp_path / "text", "audio": features["audio"]}).report["modalities"]["text"]["absent"] == 1
    np.save(tmp_path / "text/train_0_1.npy", np.ones(3))
    with pytest.raises(ValueError, match="train_dia0_utt1 has features twice"): read_meld(folder, {"text": tmp_path / "text"})
    (tmp_path / "text/train_0_1.npy").unlink()
    (tmp_path / "text/train_dia9_utt9.npy").symlink_to(features["text"] / "train.npz")
    with pytest.raises(ValueError, match="leaves the folder"): read_meld(folder, {"text": tmp_path / "text"})


def test_features_of_meld_in_no_form_name_all_forms(good, tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "odd.npz", first=np.ones(3))
    save(tmp_path / "odd.pkl", [1, 2])
    for path in ("empty", "odd.npz", "odd.pkl"):
        with pytest.raises(ValueError) as refusal: read_meld(good["meld"][0], {"text": tmp_path / path})
        assert all(form in str(refusal.value) for form in (path, "train, dev, test as .npz or .pkl", "train/dia0_utt0.npy", "train_dia0_utt0.npy", "three such dictionaries"))


def test_meld_without_some_emotions(good, tmp_path):
    "An empty cell is unlabelled and counted; a word that is none of the seven is refused by its line."
    folder, truth, features = good["meld"]
    for f in FILE.values(): (tmp_path / f"{f}_sent_emo.csv").write_bytes((folder / f"{f}_sent_emo.csv").read_bytes())
    lines = (folder / "train_sent_emo.csv").read_text().split("\n")
    emotions = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
    changed = lambda i, word: next(lines[i].replace(f",{e},neutral,", f",{word},neutral,") for e in emotions if f",{e},neutral," in lines[i])
    write = lambda i, word: (tmp_path / "train_sent_emo.csv").write_text("\n".join([*lines[:i], changed(i, word), *lines[i + 1:]]))
    write(2, " ")
    report = convert(tmp_path, tmp_path / "out", features=features)
    assert "1 utterances have no emotion in the tables and are unlabelled" in report["notes"] and report["splits"]["train"]["classes"][""] == 1
    y = load_dataset(tmp_path / "out").y
    assert (y == -1).sum() == 1 and len(y) == truth.n_utterances and report["dropped"] == {}
    assert any("1 utterances have no emotion" in note for note in convert(tmp_path, tmp_path / "table")["notes"])
    write(2, "bored")
    with pytest.raises(ValueError, match="train_sent_emo.csv: line 3: emotion 'bored', expected one of neutral"): meld_table(tmp_path)


def test_meld_tables_with_faults(good, tmp_path):
    content = (good["meld"][0] / "train_sent_emo.csv").read_bytes()
    path = tmp_path / "train_sent_emo.csv"
    path.write_bytes(content.replace(b"sentence 0", b"it\x92s"))
    assert "it\u2019s" in meld_table(tmp_path).transcript[0]
    for broken, words in ((b"", "Utterance is missing"), (content.replace(b"Emotion", b"Mood"), "column Emotion is missing"),
                          (content.replace(b",neutral,0,", b",neutral,x,"), "expected a whole number"),
                          (content + content.split(b"\n", 1)[1], "stand twice"), (content + b"1,2\n", "more or fewer fields"),
                          (content.replace(b"00:00", b"\0"), "NUL"), (content + b'"', "no readable CSV|fewer fields")):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=words): meld_table(tmp_path)
    path.write_bytes(content.replace(b"Emotion", b"Emotion", 1).replace(b",F,", b",F,").replace(b",00:00:00,000",
        b",\"00:00:00,000\""))
    with pytest.raises(ValueError, match="no train_sent_emo.csv"): meld_table(tmp_path / "..")


def test_convert_says_what_it_found_and_touches_nothing(tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps({"a": 1}))
    for source, words in ((tmp_path / "list.pkl", "known are gcnet"), (tmp_path / "nowhere", "neither a file nor a folder"),
                          (tmp_path, "expected|known")):
        with pytest.raises(ValueError, match=words): convert(source, tmp_path / "out")
    by_video = {"video0": {"text": np.ones((2, 3)), "label": [0, 1]}, "video1": {"text": np.ones((1, 3)), "label": [1]}}
    for content in (by_video, list(by_video.values()), {"train": list(by_video.values()), "dev": [], "test": []}): # a way out for every other packing
        with pytest.raises(ValueError, match="no known layout.*make the arrays yourself.*27_extending.*'From a table'"):
            convert(save(tmp_path / "list.pkl", content), tmp_path / "out")
    page = json.loads((Path(__file__).parent.parent / "nbs/27_extending.ipynb").read_text())
    assert any("### From a table\n" in cell["source"] for cell in page["cells"])
    (tmp_path / "second.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="2 pickles"): convert(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="MODALITY=PATH"): convert(tmp_path / "list.pkl", tmp_path / "out", features=["text"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected one of"): example("else", tmp_path)


@settings(quick, max_examples=100)
@given(st.binary(max_size=40) | st.text("\\'\"xn01789abfrtv\n ", max_size=20).map(str.encode))
def test_quoted_text_is_read_as_pickle_reads_it(tmp_path, raw):
    "Python 2 wrote bytes as quoted text with escapes."
    content = b"S" + repr(raw)[1:].encode() + b"\n."
    (tmp_path / "q.pkl").write_bytes(content)
    assert load_pickle(tmp_path / "q.pkl") == pickle.loads(content, encoding="latin1") == raw.decode("latin-1")


@pytest.mark.parametrize("key", [None, 1.5, ("a", 1), b"\xff", np.float64(2)])
def test_odd_names_of_dialogues(tmp_path, key):
    "Refused, or read as text: never another exception."
    for content in ([{key: ["u"]}, {key: [0]}, {key: ["F"]}, {key: ["words"]}, {key}, set()],
                    ({key: ["u"]}, {key: ["F"]}, {key: [0]}, {key: [np.ones(2)]}, {key: [np.ones(2)]}, {key: [np.ones(2)]},
                     {key: ["w"]}, {key}, [])):
        path = save(tmp_path / "odd.pkl", content)
        (tmp_path / "text").mkdir(exist_ok=True)
        np.save(tmp_path / "text/u.npy", np.ones(2))
        read = (lambda: read_gcnet(path, {"text": tmp_path / "text"})) if len(content) == 6 else (lambda: read_mmgcn(path))
        if isinstance(key, bytes): assert read().n_utterances == 1
        else:
            with pytest.raises(ValueError, match="names a dialogue"): read()


def test_options_that_do_not_apply_are_refused(good, tmp_path):
    for layout, options, words in (("mmsa", dict(features={"text": "x"}), "leave `features` out"),
                                   ("meld", dict(label_names=["a"]), "leave `label_names` out"), ("gcnet", dict(layout="huh"),
                                       "expected one of gcnet"),
                                   ("gcnet", dict(features={"label": good["gcnet"][0].parent / "features/text"}),
                                    "modality 'label'"), ("gcnet", dict(features={"text": "nowhere"}), "is no folder"),
                                   ("mmgcn", dict(label_names=["a"]), "out of range"), ("mmgcn", dict(zeros="x"),
                                       "'missing' or 'keep'")):
        with pytest.raises(ValueError, match=words): convert(good[layout][0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    convert(good["gcnet"][0], tmp_path / "out")
    with pytest.raises(ValueError, match="these tables have none"): convert(good["meld"][0], tmp_path / "out", overwrite=True)


def test_no_warning_even_from_extreme_numbers(tmp_path):
    "With warnings as errors: float64 that is infinite as float32, invalid escapes, NaN means."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = read_mmsa(save(tmp_path / "x.pkl", mmsa(audio=np.full((2, 3, 2), 1e300))))
        assert ds.report["modalities"]["audio"]["not_finite"] == 2
        (tmp_path / "q.pkl").write_bytes(rb"S'\q'" + b"\n.")
        assert load_pickle(tmp_path / "q.pkl") == r"\q"


ODD = [None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../x", b"\xff", [], [[]], {}, {"a": 1}, set(), (),
       (1, 2), np.array(3), np.array("a"),
       np.zeros(0), np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((2, 3, 4, 5)), np.array([np.nan, 1]), np.array(["a", "b"]),
       np.array([None, {}], object),
       np.array([True]), np.float32(2), np.str_("v$_$1"), [1, "a"], [np.ones(2)], {"train": {}}]


def replaced(x, rng, depth=0):
    "A copy of a structure with one part, somewhere, replaced, dropped or doubled."
    if not isinstance(x, (dict, list, tuple)) or not x or (depth and rng.random() < 0.15): return rng.choice(ODD)
    if isinstance(x, dict):
        key = rng.choice(list(x))
        if rng.random() < 0.1: return {k: v for k, v in x.items() if k != key}
        return {k: replaced(v, rng, depth + 1) if k == key else v for k, v in x.items()}
    i = rng.randrange(len(x))
    out = list(x[:i]) + [replaced(x[i], rng, depth + 1)] + list(x[i + 1:])
    if rng.random() < 0.1: out = list(x[:i]) + list(x[i + 1:])
    return type(x)(out)


@pytest.mark.parametrize("layout", ["gcnet", "mmgcn", "mmsa"])
def test_odd_contents_load_or_are_refused(good, tmp_path, layout):
    "Good pickles of odd contents: a part replaced by what does not belong there."
    path = good[layout][0]
    content, rng, loaded = load_pickle(path), random.Random(1), 0
    read = (lambda p: read_gcnet(p, {"text": path.parent / "features/text"})) if layout == "gcnet" else {"mmgcn": read_mmgcn,
        "mmsa": read_mmsa}[layout]
    for _ in range(400):
        odd = replaced(content, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: loaded += read(save(tmp_path / "odd.pkl", odd)).n_utterances > 0
            except ValueError: pass
    assert 0 < loaded < 400
