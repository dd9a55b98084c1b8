"""Every fault that the audit promises to find is put into a clean data set, and found; a clean one has none."""
import json
import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsdnet.audit import Audit, Finding, audit
from gsdnet.data import ConversationDataset, SyntheticConversations, load_dataset, save_dataset
from gsdnet.formats import convert, example

CLEAN = SyntheticConversations(n_dialogues=60, seed=1).dataset()
TRAIN, VALID, TEST = (np.flatnonzero(CLEAN.split.numpy() == s) for s in range(3))


def folder(path, change=lambda a: None, meta=None):
    "A folder with the clean arrays after a change."
    arrays = {k: x.copy() for k, x in CLEAN.arrays().items()}
    change(arrays)
    path.mkdir(exist_ok=True)
    np.savez(path / "data.npz", **{k: x for k, x in arrays.items() if x is not None})
    meta = {"label_names": list(CLEAN.label_names), "modalities": list(CLEAN.modalities)} if meta is None else meta
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def put(name, rows, value):
    "A change: some rows of an array."
    def change(a): a[name][rows] = value
    return change


def copy_row(a, to, of):
    for m in CLEAN.modalities: a[m][to] = a[m][of]


def both(*changes):
    def change(a):
        for c in changes: c(a)
    return change


def missing(name, rows):
    def change(a):
        a[f"{name}_present"] = np.ones(CLEAN.n_utterances, np.uint8)
        a[f"{name}_present"][rows] = 0
    return change


def drop_class(split):
    def change(a): a["label"][(a["split"] == split) & (a["label"] == 2)] = 0
    return change


FAULTS = {
    "nan": (put("text", 3, np.nan), "error", "not finite", "1 recorded rows"),
    "infinity": (put("audio", [3, 9], np.inf), "error", "not finite", "2 recorded rows"),
    "zero rows": (put("visual", slice(0, 7), 0), "warning", "zero rows", "7 recorded rows are zero"),
    "constant column": (put("text", (slice(None), 2), 4.0), "warning", "constant columns", "1 of 8 columns never change"),
    "zero column": (put("text", (slice(None), [0, 1]), 0.0), "warning", "constant columns", "2 of 8 columns"),
    "wide column": (lambda a: put("audio", (slice(None), 1), a["audio"][:, 1] * 1e5)(a), "note", "scale", "spreads"),
    "outlier": (put("audio", (5, 1), 1e6), "note", "scale", "1 rows have a value"),
    "large modality": (lambda a: put("text", slice(None), a["text"] * 1e3)(a), "note", "scale", "differ in size"),
    "copy across": (lambda a: copy_row(a, TEST[0], TRAIN[0]), "error", "leak", "2 utterances are equal in text and audio and "
                    "visual"),
    "copy within": (lambda a: copy_row(a, TRAIN[1], TRAIN[0]), "warning", "duplicates", "1 utterances repeat"),
    "copy of text": (put("text", TEST[:1], CLEAN.arrays()["text"][TRAIN[0]]), "note", "duplicates", "text: 1 rows repeat an "
                     "earlier one, 2 rows have an equal"),
    "cut dialogue": (put("split", TRAIN[-1], 2), "error", "leak", "1 dialogues are in several splits"),
    "no split": (put("split", TRAIN[-1], 7), "error", "splits", "in no split"),
    "place taken": (put("position", 1, 0), "error", "positions", "1 places are taken twice"),
    "gap": (lambda a: put("position", slice(None), a["position"] * 2)(a), "note", "positions", "gaps"),
    "label": (put("label", 0, 9), "error", "labels", "outside of -1..3"),
    "unlabelled": (put("label", 0, -1), "note", "labels", "1 utterances are unlabelled"),
    "class not in train": (drop_class(0), "error", "classes", "train has no emotion2"),
    "class not in test": (drop_class(2), "warning", "classes", "test has no emotion2"),
    "rare class": (lambda a: put("label", np.flatnonzero(a["label"] == 1)[1:], 0)(a), "note", "classes", "times as frequent"),
    "missing": (missing("audio", TRAIN[:9]), "note", "missing", "audio was not recorded"),
    "absent from test": (missing("audio", TEST), "warning", "missing", "absent from all of test"),
    "missing by class": (missing("audio", np.flatnonzero(CLEAN.y.numpy() == 1)), "warning", "missing",
                         "missingness tells the class"),
    "missing by speaker": (both(put("speaker", slice(None), np.arange(CLEAN.n_utterances) % 2),
                                missing("audio", slice(1, None, 2))), "note", "missing", "100% of speaker 1"),
    "nothing recorded": (both(*(missing(m, [4]) for m in CLEAN.modalities)), "error", "missing", "1 utterances have nothing "
                         "recorded"),
    "no test": (put("split", TEST, 0), "warning", "splits", "test has no labelled"),
    "no train": (put("split", TRAIN, 1), "error", "splits", "train has no labelled"),
    "array absent": (lambda a: a.update(position=None), "error", "refused", "`position` is missing"),
    "wrong type": (lambda a: a.update(label=a["label"].astype(float)), "error", "refused", "`label` has dtype float64"),
    "wrong shape": (lambda a: a.update(text=a["text"][:-3]), "error", "refused", "`text` has shape"),
    "shared group": (lambda a: a.update(group=np.zeros(CLEAN.n_utterances, int) + (a["dialogue_id"] % 2)), "note", "groups",
                     "are in train too"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(tmp_path, name):
    change, severity, check, words = FAULTS[name]
    report = audit(folder(tmp_path / "talks", change))
    found = [f for f in report.findings if (f.severity, f.check) == (severity, check) and words in f.text]
    assert len(found) == 1, str(report)
    assert report.status() == any(f.severity == "error" for f in report.findings) >= (severity == "error")
    assert words in str(report) and json.loads(report.to_json())["totals"][severity] >= 1
    clean = audit(folder(tmp_path / "clean"))
    assert not [f for f in clean.findings if (f.severity, f.check) == (severity, check) and words in f.text]


def test_a_clean_data_set_has_notes_only(tmp_path):
    report = audit(CLEAN)
    assert {f.severity for f in report.findings} <= {"note"} and report.status() == report.status(strict=True) == 0
    again = audit(str(save_dataset(CLEAN, tmp_path / "synthetic")))
    assert again.findings == report.findings and again.counts == report.counts
    assert report.counts["utterances"] == CLEAN.n_utterances and report.counts["splits"]["test"]["utterances"] == len(TEST)


@pytest.mark.parametrize("name, n, classes, severity, words", [
    ("iemocap4", 5531, 4, "note", "as published for IEMOCAP, 4"), ("IEMOCAP", 7433, 6, "note", "as published for IEMOCAP, 6"),
    ("iemocap", 5530, 4, "warning", "5530 utterances, but IEMOCAP, 4 classes has 5531"),
    ("my-meld", 13708, 7, "note", "as published for MELD"), ("mosei_x", 22856, 2, "note", "as published for CMU-MOSEI"),
    ("mosi", 2199, 2, "note", "as published for CMU-MOSI"), ("mosi", 2198, 2, "warning", "has 2199"),
    ("nobody", 2281, 2, "note", "as published for CH-SIMS"), ("nobody", 100, 2, "note", "no published data set")])
def test_published_counts(name, n, classes, severity, words):
    talks = {"IEMOCAP": 151, "iemocap4": 151, "iemocap": 151, "my-meld": 1432, "mosi": 93}.get(name, 10)
    dialogue = np.arange(n) * talks // n
    ds = ConversationDataset(dict(text=np.random.default_rng(0).normal(size=(n, 1)).astype("f4"), label=np.arange(n) % classes,
                                  dialogue_id=dialogue, position=np.arange(n), speaker=np.zeros(n, int),
                                  split=(dialogue % 3).astype("i1")),
                             label_names=[str(c) for c in range(classes)], name=name)
    found = [f for f in audit(ds).findings if f.check == "counts" and words in f.text]
    assert [f.severity for f in found] == [severity]


def test_wrong_number_of_dialogues():
    ds = CLEAN.with_split(CLEAN.split)
    ds.name = ds.title = "x"
    assert not [f for f in audit(ds).findings if f.severity == "warning"]
    n = 2199
    ds = ConversationDataset(dict(text=np.random.default_rng(0).normal(size=(n, 1)).astype("f4"), label=np.arange(n) % 2,
                                  dialogue_id=np.arange(n) // 100, position=np.arange(n), speaker=np.zeros(n, int),
                                  split=np.zeros(n, "i1")), label_names="ab", name="mosi")
    assert any("22 dialogues, but CMU-MOSI has 93" in f.text for f in audit(ds).findings)


@pytest.mark.parametrize("break_it, words", [
    (lambda p: (p / "data.npz").unlink(), "is not a file"), (lambda p: (p / "meta.json").unlink(), "meta.json is missing"),
    (lambda p: (p / "meta.json").write_text("{"), "no JSON"), (lambda p: (p / "meta.json").write_text("[1]"), "holds a list"),
    (lambda p: (p / "meta.json").write_text('{"modalities": [1, {}], "label_names": 3}'), "label_names is 3"),
    (lambda p: (p / "meta.json").write_text("[" * 100_000), "JSON|recursion"),
    (lambda p: (p / "data.npz").write_bytes(b"PK\x03\x04"), "no .npz archive"),
    (lambda p: np.savez(p / "data.npz", label=np.array([{}], object)), "objects"),
    (lambda p: np.savez(p / "data.npz", nothing=np.zeros(3)), "is missing"),
    (lambda p: (p / "meta.json").write_bytes(b"\xff\xfe"), "JSON|decode"),
])
def test_folders_that_are_refused_are_audited(tmp_path, break_it, words):
    path = folder(tmp_path / "talks")
    break_it(path)
    report = audit(path)
    assert report.status() == 1 and report.findings[0].check == "refused" and re.search(words,
        report.findings[0].text), report.findings[0]
    assert str(report) and json.loads(report.to_json())["status"] == 1


def test_an_archive_that_unpacks_without_end_is_a_finding(tmp_path, monkeypatch):
    import gsdnet.audit
    from gsdnet.files import load_npz
    monkeypatch.setattr(gsdnet.audit, "load_npz", lambda p: load_npz(p, limit=1000))
    assert "would unpack to" in audit(folder(tmp_path / "talks")).findings[0].text


def test_no_folder_is_the_callers_fault():
    with pytest.raises(FileNotFoundError, match="is no folder"): audit("/nowhere")


def test_refused_folders_are_looked_into_all_the_same(tmp_path):
    report = audit(folder(tmp_path / "talks", both(put("text", 3, np.nan), put("split", TRAIN[-1], 2))))
    assert {"refused", "not finite", "leak"} <= {f.check for f in report.findings if f.severity == "error"}


def test_without_names_of_classes_or_modalities(tmp_path):
    report = audit(folder(tmp_path / "talks", meta={}))
    assert report.counts["modalities"].keys() == set(CLEAN.modalities) and report.findings[0].check == "refused"


@pytest.mark.parametrize("layout", ["gcnet", "mmgcn", "mmsa", "meld"])
def test_converted_examples_have_no_errors(tmp_path, layout):
    source, truth = example(layout, tmp_path / "source", seed=3)
    convert(source, tmp_path / "out", features={m: tmp_path / "source" / m for m in truth.modalities} if layout == "meld"
            else None)
    assert not [f for f in audit(tmp_path / "out").findings if f.severity == "error" and f.check not in ("classes",)]


@settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_folders_never_raise(tmp_path, data):
    "Bytes of the archive changed: an audit, whatever they are; errors where load_dataset refuses."
    path = folder(tmp_path / "talks")
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    content = bytearray((path / "data.npz").read_bytes())
    for _ in range(rng.randint(1, 3)): content[rng.randrange(len(content))] = rng.randrange(256)
    (path / "data.npz").write_bytes(content)
    report = audit(path)
    try: load_dataset(path)
    except ValueError: assert report.status() == 1
    assert isinstance(report, Audit) and str(report) and report.to_json()


def test_the_worst_comes_first():
    order = [f.severity for f in audit(CLEAN).findings + [Finding("error", "x", "y")]]
    assert sorted(order, key=["error", "warning", "note"].index)[0] == "error"
    assert Audit("x", [Finding("warning", "a", "b")], {}).status() == 0 and Audit("x", [Finding("warning", "a", "b")],
        {}).status(strict=True) == 1


def test_the_report_names_a_data_set_once(tmp_path):
    assert str(audit(save_dataset(CLEAN, tmp_path / CLEAN.title))).startswith(f"{CLEAN.title}: ")
    assert str(audit(save_dataset(CLEAN, tmp_path / "other"))).startswith(f"other {CLEAN.title}: ")
