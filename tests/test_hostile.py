"""Files made to do harm: more than two thousand of them, each read or refused in one sentence; nothing run, nothing overwritten, memory bounded."""
import hashlib
import io
import json
import pickle
import random
import resource
import shutil
import sys
import tracemalloc
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors

from gsdnet.audit import audit
from gsdnet.benchmark import read_record
from gsdnet.checkpoint import Checkpoints
from gsdnet.data import SyntheticConversations, load_dataset, save_dataset
from gsdnet.files import load_json, load_npz
from gsdnet.formats import example, meld_table
from gsdnet.missing import MaskKit
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.sharing import check_features, from_pretrained, result_table, save_pretrained

# Every test counts the files that it made and asserts its number here; the sum is asserted at the end.
CASES = {"hand-made archives": 63, "cut archives": 250, "changed bytes": 500, "changed members": 400, "any array": 120, "any metadata": 150,
         "mask kits": 250, "settings of models": 245, "weights of models": 200, "checkpoints": 200, "tables": 150, "records": 100,
         "descriptions": 150, "results": 100}
TINY = GSDConfig(dims={"text": 3, "audio": 2}, label_names=("a", "b"), latent=8, hidden=8, width=8, denoiser_width=8, denoiser_blocks=1)
REFUSAL = (ValueError, FileNotFoundError)
quick = lambda n: settings(deadline=None, derandomize=True, max_examples=n, database=None,
                           suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Trap:
    "Unpickled, it would leave a file behind."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


def state(folder):
    "Every file below a folder with its content."
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def guarded(folder, megabytes=300):
    "Inside, no file below the folder may change, and the process may not grow by more than so many megabytes."
    before, most = state(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    unit = 2**20 if sys.platform == "darwin" else 2**10
    assert state(folder) == before
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) / unit < megabytes


def outcome(read, *given):
    "What was read, or None where it was refused by a short message; any other exception is the test's failure."
    try: return read(*given)
    except REFUSAL as error:
        assert 10 < len(str(error)) < 1200 and "Traceback" not in str(error)


def npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def zipped(members, method=zipfile.ZIP_STORED):
    "An archive of (name, bytes) pairs."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members: archive.writestr(name, content)
    return file.getvalue()


def mutated(content, rng):
    "The bytes with a few of them changed, cut out, doubled or made up."
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, n = rng.randrange(len(data)), rng.randint(1, 40)
        kind = rng.randrange(5)
        if kind == 0: data[at] = rng.randrange(256)
        elif kind == 1: data[at] ^= 1 << rng.randrange(8)
        elif kind == 2: del data[at:at + n]
        elif kind == 3: data[at:at] = data[at:at + n]
        else: data[at:at + n] = rng.randbytes(n)
        if not data: data = bytearray(b"\0")
    return bytes(data)


@pytest.fixture(scope="module")
def arrays():
    return SyntheticConversations(n_dialogues=5, length=(2, 4), dims=(3, 2, 2), seed=3).dataset().arrays()


@pytest.fixture
def talks(tmp_path):
    "A small data folder."
    return save_dataset(SyntheticConversations(n_dialogues=5, length=(2, 4), dims=(3, 2, 2), seed=3).dataset(), tmp_path / "talks")


def read_folder(folder):
    "A data set that was read is a whole one."
    data = load_dataset(folder)
    assert all(torch.isfinite(c[m]).all() for c in data for m in data.modalities) and data.n_utterances == len(data.y)
    return data


def hand_made(arrays, trap):
    "Archives by name, made by hand, none of which may be read."
    members = {f"{k}.npy": npy(x) for k, x in arrays.items()}
    put = lambda **changed: zipped((members | changed).items())
    objects = npy(np.array([Trap(trap)] * len(arrays["label"]), object))
    header = lambda old, new: put(**{"text.npy": members["text.npy"].replace(old, new, 1)})
    found = {f"objects in {k}": put(**{f"{k}.npy": objects}) for k in (*arrays, "extra")}
    found |= {f"named {name!r}": zipped([*members.items(), (name, npy(np.ones(1)))]) for name in
              ("../evil.npy", "/etc/evil.npy", "a/../../evil.npy", "..", "C:evil.npy", "a\\..\\evil.npy", "x" * 300, ".npy", "a\tb.npy", "./a.npy")}
    found |= {f"member {what}": zipped([*members.items(), ("extra.npy", content)]) for what, content in
              dict(text=b"hello", empty=b"", pickle=pickle.dumps(Trap(trap)), zip=put(), header=b"\x93NUMPY\x01\x00\xff\xff{", version=b"\x93NUMPY\x09\x00" + bytes(80),
                   long=npy(np.ones(1)) + b"more").items()}
    rows = str(arrays["text"].shape).encode()
    found |= {f"shape {new}": header(rows, new) for new in (b"(4611686018427387904, 3)", b"(99999999, 3)", b"(0, 3)", b"(-1, 3)", b"(1e9, 3)", b"(1, 1, 1, 1, 1, 1, 1, 1, 1)",
                                                         b"(" + b"9" * 150 + b",)", b"()", b"(3,)")}
    found |= {f"type {new}": header(b"'<f4'", new) for new in (b"'|O'", b"'<f8'", b"'|V4'", b"'<M8[s]'", b"[('a','<f4')]", b"'<c8'", b"'<U1'", b"__import__('os')", b"'<i4'")}
    found |= {"order": header(b"False", b"exit()"), "no order": header(b"fortran_order", b"fortran_0rder")}
    big = npy(np.zeros(12_500_000))
    found |= {"bomb": zipped([*members.items(), ("big.npy", big)], zipfile.ZIP_DEFLATED), "lzma": zipped(members.items(), zipfile.ZIP_LZMA),
              "bz2": zipped(members.items(), zipfile.ZIP_BZIP2), "twice": zipped([*members.items(), ("text.npy", members["text.npy"])]),
              "twice less obviously": zipped([*members.items(), ("text", members["text.npy"])]), "many": zipped([(f"{i}.npy", b"") for i in range(10_001)]),
              "nothing": zipped([]), "no zip": b"PK\x03\x04" + bytes(100), "empty": b"", "pickle": pickle.dumps(Trap(trap)), "npy": members["text.npy"],
              "gzip": b"\x1f\x8b" + bytes(50), "prefixed and cut": b"#!/bin/sh\n" + put()[:-30]}
    for what, place in (("less", 24), ("more", 20)): # the directory lies about a size
        lie = bytearray(found["bomb"])
        at = lie.rindex(b"PK\x01\x02") + place
        lie[at:at + 4] = (1000).to_bytes(4, "little")
        found[f"declares {what}"] = bytes(lie)
    for name, value in (("NaN", np.nan), ("infinity", np.inf)):
        x = arrays["text"].copy()
        x[1, 1] = value
        found[name] = put(**{"text.npy": npy(x)})
    return found


def test_hand_made_archives_are_refused_unread(talks, arrays, tmp_path):
    trap, count = tmp_path / "sprung", 0
    for name, content in hand_made(arrays, trap).items():
        (talks / "data.npz").write_bytes(content)
        with guarded(tmp_path):
            tracemalloc.start()
            with pytest.raises(REFUSAL) as refusal: load_dataset(talks)
            held = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert held < (24 << 20 if name == "many" else 8 << 20), name
            assert len(str(refusal.value)) < 1000 and audit(talks).status() == 1, name
        count += 1
    assert not trap.exists() and not (tmp_path / "evil.npy").exists()
    assert count == CASES["hand-made archives"]


def test_foreign_byte_orders_are_converted(talks, arrays):
    "Big-endian data are the same data."
    with guarded(talks.parent): little = load_dataset(talks)
    np.savez(talks / "data.npz", **{k: x.astype(x.dtype.newbyteorder(">")) for k, x in arrays.items()})
    with guarded(talks.parent): assert load_dataset(talks).hash == little.hash


def test_archives_cut_anywhere(talks, tmp_path):
    whole, count = (talks / "data.npz").read_bytes(), 0
    for n in np.linspace(0, len(whole) - 1, CASES["cut archives"]).astype(int):
        (talks / "data.npz").write_bytes(whole[:n])
        with pytest.raises(ValueError, match="no .npz archive|is damaged"): load_dataset(talks)
        count += 1
    assert count == CASES["cut archives"]


def test_changed_bytes_of_an_archive(talks, arrays, tmp_path):
    rng, count, whole = random.Random(1), 0, zipped([(f"{k}.npy", npy(x)) for k, x in arrays.items()])
    for _ in range(CASES["changed bytes"]):
        (talks / "data.npz").write_bytes(mutated(whole, rng))
        with guarded(tmp_path): outcome(read_folder, talks)
        count += 1
    assert count == CASES["changed bytes"]


def test_changed_members_with_right_checksums(talks, arrays, tmp_path):
    "The archive is whole, its arrays are not: what zip's checksums cannot see."
    rng, count, kept = random.Random(2), 0, 0
    members = {f"{k}.npy": npy(x) for k, x in arrays.items()}
    for _ in range(CASES["changed members"]):
        which = rng.choice(list(members))
        (talks / "data.npz").write_bytes(zipped((members | {which: mutated(members[which], rng)}).items()))
        with guarded(tmp_path): kept += outcome(read_folder, talks) is not None
        count += 1
    assert count == CASES["changed members"] and 0 < kept < count # both ways out were taken


def test_any_array_in_the_place_of_any_other(talks, arrays, tmp_path):
    seen, n = [], len(arrays["label"])
    kinds = ["?", "i1", "u8", ">i4", "f2", ">f8", "f8", "c16", "S3", "U2", "O", "M8[s]", "V3", "f4", "i8"]

    @quick(CASES["any array"])
    @given(st.sampled_from([*arrays, "extra", "text_present", "score"]), st.sampled_from(kinds), st.lists(st.sampled_from([0, 1, 3, n]), max_size=4), st.integers(0, 2**32 - 1))
    def check(name, kind, shape, seed):
        x = np.frombuffer(np.random.default_rng(seed).bytes(int(np.prod(shape)) * max(np.dtype(kind).itemsize, 1)), "u1")
        x = np.full(shape, {}, object) if kind == "O" else x[:int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.savez(talks / "data.npz", **{**arrays, name: x})
        with guarded(tmp_path): outcome(read_folder, talks)
        seen.append(name)
    check()
    assert len(seen) >= CASES["any array"]


def test_any_metadata(talks, tmp_path):
    seen, file = [], talks / "meta.json"
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(leaf, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=12)

    @quick(CASES["any metadata"] - 10)
    @given(st.fixed_dictionaries({}, optional={k: values for k in ("name", "task", "modalities", "label_names", "hash", "other")}) | values)
    def check(meta):
        file.write_text(json.dumps(meta))
        with guarded(tmp_path): outcome(read_folder, talks)
        seen.append(meta)
    check()
    for content in (b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b'{"label_names": [' + b'"a",' * 2_000_000 + b'"b"]}',
                    b'{"label_names": ' + b"9" * 100_000 + b"}", b'{"name": "\\ud800", "label_names": 5}', b"nul"):
        file.write_bytes(content)
        with guarded(tmp_path): assert outcome(load_dataset, talks) is None
        seen.append(content)
    with file.open("wb") as hollow: hollow.truncate(500 << 20) # half a gigabyte that takes no room on the disk
    tracemalloc.start()
    assert outcome(load_dataset, talks) is None and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    seen.append(hollow)
    assert len(seen) >= CASES["any metadata"]


def test_mask_kits(arrays, talks, tmp_path):
    rng, count, path = random.Random(4), 0, tmp_path / "kit.npz"
    data = load_dataset(talks)
    MaskKit.draw(data, (0.0, 0.3), (0, 1)).save(path)
    members = {f"{k}.npy": npy(x) for k, x in load_npz(path).items()}
    for i in range(CASES["mask kits"]):
        which = rng.choice(list(members))
        content = zipped((members | {which: mutated(members[which], rng)}).items())
        path.write_bytes(content if i % 2 else mutated(content, rng))
        with guarded(tmp_path):
            kit = outcome(MaskKit.load, path)
            if kit is not None: outcome(data.use, kit)
        count += 1
    path.write_bytes(zipped([*members.items(), ("observed_r0_s99.npy", npy(np.array([Trap(tmp_path / "sprung")], object)))]))
    with pytest.raises(ValueError, match="pickled objects"): MaskKit.load(path)
    assert count == CASES["mask kits"] and not (tmp_path / "sprung").exists()


@pytest.fixture
def model(tmp_path):
    "A kept model, as small as it gets."
    GSDNet(TINY).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_settings_of_models(model, tmp_path):
    "Any setting at any value, and damaged bytes: a model that works, or a refusal before memory is asked for."
    file, count = model / "config.json", 0
    good = json.loads(file.read_text())
    values = (-1, 10**9, 10**30, 1.5, float("nan"), "x", None, [], {}, True)
    changed = [{**good, name: value} for name in [f for f in good if f != "class"][:20] for value in values]
    rng = random.Random(5)
    texts = [json.dumps(c) for c in changed] + [mutated(file.read_bytes(), rng) for _ in range(40)] + ["[]", "{}", "[" * 100_000, json.dumps({**good, "os": 1}), json.dumps({**good, "class": "os"})]
    for text in texts:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with guarded(tmp_path): outcome(GSDNet.from_pretrained, model)
        count += 1
    assert count == CASES["settings of models"]


def test_weights_of_models(model, tmp_path):
    file, count, rng = model / "model.safetensors", 0, random.Random(6)
    whole = file.read_bytes()
    head = int.from_bytes(whole[:8], "little")
    for i in range(CASES["weights of models"] - 4):
        text = mutated(whole[8:8 + head], rng) # half of them: a changed header of the right length
        file.write_bytes(mutated(whole, rng) if i % 2 else len(text).to_bytes(8, "little") + text + whole[8 + head:])
        with guarded(tmp_path): outcome(GSDNet.from_pretrained, model)
        count += 1
    nan = {k: torch.full_like(x, torch.nan) for k, x in GSDNet(TINY).state_dict().items()}
    for content in (b"", (2**63 - 1).to_bytes(8, "little") + b"{}", pickle.dumps(Trap(tmp_path / "sprung")), safetensors(nan)):
        file.write_bytes(content)
        with guarded(tmp_path), pytest.raises(ValueError): GSDNet.from_pretrained(model)
        count += 1
    assert count == CASES["weights of models"] and not (tmp_path / "sprung").exists()


def test_checkpoints(tmp_path):
    "A damaged checkpoint is left out and the one before it taken; garbage under the right checksum is refused when it is read."
    kept, rng, count = Checkpoints(tmp_path / "good"), random.Random(7), 0
    for step in (1, 2): kept.save(step, {"w": torch.arange(6.0)}, {"step": step})
    for i in range(CASES["checkpoints"] - 20):
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        bad = Checkpoints(tmp_path / "bad")
        path = bad.path(2, ("safetensors", "json", "sha256")[i % 3])
        content = mutated(path.read_bytes(), rng)
        path.write_bytes(content)
        with guarded(tmp_path): stored, reasons = bad.newest()
        assert json.loads(stored.state)["step"] == (1 if reasons else 2) and stored.tensors["w"].tolist() == list(range(6))
        count += 1
    for _ in range(20):
        content = {"safetensors": mutated(safetensors({"w": torch.arange(6.0)}), rng), "json": b"{}"}
        for part, data in content.items(): bad.path(9, part).write_bytes(data)
        sums = "".join(f"{hashlib.sha256(x).hexdigest()}  {bad.path(9, part).name}\n" for part, x in content.items())
        bad.path(9, "sha256").write_text(sums)
        with guarded(tmp_path): outcome(lambda: bad.read(9).tensors)
        count += 1
    assert count == CASES["checkpoints"]


def test_tables_of_utterances(tmp_path):
    rng, count = random.Random(8), 0
    example("meld", tmp_path / "meld", seed=0)
    file = next((tmp_path / "meld").rglob("train_sent_emo.csv"))
    whole = file.read_bytes()
    for i in range(CASES["tables"] - 4):
        file.write_bytes(mutated(whole, rng))
        with guarded(tmp_path): outcome(meld_table, file.parent)
        count += 1
    for content in (b"", b"\0" * 1000, b'"' + b"a" * 300_000, b"Utterance\n../../etc/passwd\n"):
        file.write_bytes(content)
        with guarded(tmp_path): outcome(meld_table, file.parent)
        count += 1
    assert count == CASES["tables"]


def test_records_of_results(tmp_path):
    "A record of a benchmark that is damaged counts as none: its training is done anew."
    rng, file, count = random.Random(9), tmp_path / "r.json", 0
    whole = json.dumps({"rows": [{"model": "gsdnet", "rate": 0.3, "accuracy": 0.7}]}).encode()
    for _ in range(CASES["records"]):
        file.write_bytes(mutated(whole, rng))
        with guarded(tmp_path): found = read_record(file)
        assert found is None or isinstance(found["rows"], list)
        count += 1
    assert count == CASES["records"]


def test_descriptions_of_features(talks, tmp_path):
    "features.json of somebody else's model, and meta.json of somebody else's data: compared, or refused in a sentence; never believed to be of any form."
    data, seen = load_dataset(talks), []
    folder = save_pretrained(GSDNet(GSDConfig.of(data, latent=8, hidden=8, width=8, denoiser_width=8, denoiser_blocks=1)), tmp_path / "shared", data=talks)
    file, meta = folder / "features.json", json.loads((talks / "meta.json").read_text())
    whole, rng = file.read_bytes(), random.Random(10)
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    anything = st.recursive(leaf, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=8)
    one = anything | st.fixed_dictionaries({"channels": st.sampled_from([2, 3]) | anything, "made_by": anything})

    def ask():
        with guarded(tmp_path):
            model = outcome(from_pretrained, folder)
            if model is not None: outcome(check_features, model, data, talks)

    @quick(CASES["descriptions"] - 60)
    @given(st.dictionaries(st.sampled_from(list(data.dims)) | st.text(max_size=5), one, max_size=4) | anything, anything | st.dictionaries(st.sampled_from(list(data.dims)), anything))
    def check(described, origin):
        file.write_text(json.dumps(described))
        (talks / "meta.json").write_text(json.dumps(meta | {"features": origin}))
        ask()
        seen.append(described)
    check()
    (talks / "meta.json").write_text(json.dumps(meta | {"features": {"text": "x" * 100_000}}))
    for _ in range(60):
        file.write_bytes(mutated(whole, rng))
        ask()
        seen.append(file)
    long = {name: {"channels": d, "made_by": "y" * 100_000} for name, d in data.dims.items()}
    file.write_text(json.dumps(long))
    with pytest.raises(ValueError, match="other features") as refusal: check_features(from_pretrained(folder), data, talks)
    assert len(str(refusal.value)) < 1200 and len(seen) >= CASES["descriptions"]


def test_tables_of_results(tmp_path):
    "A results.csv for a model's card: words where numbers belong, other columns, damaged bytes."
    file, rng, count = tmp_path / "results.csv", random.Random(11), 0
    whole = ("dataset,protocol,rate,seed,model,accuracy,weighted_f1,mask_hash,commit\n"
             "talks,random/mixed,0.5,0,gsdnet,0.61,0.60,0a1b,abc\ntalks,random/mixed,0.5,1,gsdnet,0.65,0.64,0a1b,abc\n").encode()
    for content in (b"", b"\0" * 100, b"a,b\n1,2\n", whole.replace(b"0.61", b"high"), whole.replace(b"commit", b"author"), b"\xff\xfe" + whole,
                    *(mutated(whole, rng) for _ in range(CASES["results"] - 6))):
        file.write_bytes(content)
        with guarded(tmp_path): found = outcome(result_table, file, "gsdnet")
        assert found is None or len(found)
        count += 1
    with pytest.raises(FileNotFoundError): result_table(tmp_path / "none.csv", "gsdnet")
    assert count == CASES["results"]


def test_settings_larger_than_settings_are(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert load_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(ValueError, match="has 8 bytes, expected at most 4"): load_json(tmp_path / "a.json", limit=4)


def test_two_thousand_files_at_the_least():
    assert sum(CASES.values()) >= 2000
