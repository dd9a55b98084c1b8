"Files are whole, belong together, and are not deleted unread; a folder that cannot be written is found out first; the code that wrote a checkpoint is named."
import errno
import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import gsdnet
from gsdnet import benchmark, checkpoint
from gsdnet.architectures import MODELS
from gsdnet.audit import audit
from gsdnet.checkpoint import PARTS, Checkpoints, commit, writable, write_whole
from gsdnet.conversation import Conversation, ConversationBatch, dense_graphs
from gsdnet.data import ConversationDataset, SyntheticConversations, load_dataset, save_dataset
from gsdnet.diffusion import GraphNoise, noise_everywhere
from gsdnet.features import features
from gsdnet.missing import MaskKit
from gsdnet.trainer import Record, TrainConfig, fit

DATA = SyntheticConversations(n_dialogues=10, length=(2, 5), dims=(4, 3, 2), seed=3).dataset()


@pytest.fixture
def little_room():
    "A disk with room for files of 2000 bytes, by the operating system."
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, heard)


@pytest.fixture
def read_only(monkeypatch):
    "Nothing can be written."
    def refuse(path, mode): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)


def names(folder): return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


# ---- writing

def test_a_full_disk_is_named(tmp_path, little_room):
    write_whole(tmp_path / "old", "old")
    with pytest.raises(OSError) as error: write_whole(tmp_path / "old", bytes(3000))
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "old") and str(tmp_path / "old") in str(error.value)
    assert names(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_that_is_full_is_named():
    with pytest.raises(OSError, match="/dev/full") as error: write_whole("/dev/full", "x" * 10)
    assert error.value.errno == errno.ENOSPC


def test_an_error_that_names_its_file_is_left_as_it_is(tmp_path, monkeypatch):
    def refuse(path, mode): raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match="'elsewhere'"): write_whole(tmp_path / "a", "x")


def test_a_kit_is_saved_whole_or_not_at_all(tmp_path, little_room):
    kit = MaskKit.draw(DATA, (0., .5), (0,))
    kit.save(tmp_path / "kit.npz")
    assert names(tmp_path) == ["kit.npz"]
    with pytest.raises(OSError, match="kit.npz"): MaskKit.draw(DATA, [i / 100 for i in range(50)], range(20)).save(tmp_path / "kit.npz")
    assert MaskKit.load(tmp_path / "kit.npz").hash == kit.hash and names(tmp_path) == ["kit.npz"]


def test_a_benchmark_saves_its_masks_under_their_name(tmp_path, monkeypatch):
    saved, save = [], MaskKit.save
    monkeypatch.setattr(MaskKit, "save", lambda self, path: saved.append(Path(path).name) or save(self, path))
    grid = benchmark.Benchmark((DATA,), {"zero_fill": MODELS["zero_fill"]}, tmp_path, rates=(0., .5), seeds=1)
    benchmark.plan(grid)
    assert saved == ["masks.npz"] and names(tmp_path) == ["masks.npz"]


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    writable(tmp_path)
    writable(tmp_path / "new" / "newer")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, read_only):
    for place in (tmp_path, tmp_path / "new" / "newer"):
        with pytest.raises(ValueError, match="cannot be used .Read-only file system.*choose another"): writable(place)
    assert names(tmp_path) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(ValueError, match="file is no folder"): writable(place)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("out", ["new", "deep/er/new", "there"])
def test_features_find_out_before_they_extract(tmp_path, read_only, out):
    class Never:
        reads, files, dims = "transcript", False, 2
        def __call__(self, items): raise AssertionError("something was extracted")
    (tmp_path / "table.csv").write_text("conversation,position,speaker,transcript,label\na,0,A,hello,joy\n")
    (tmp_path / "there").mkdir()
    before = names(tmp_path)
    with pytest.raises(ValueError, match="cannot be used"): features(tmp_path / "table.csv", tmp_path / out, {"text": Never()})
    assert names(tmp_path) == before


# ---- two files of one data set

def torn(folder):
    "A folder of which the saving of other data was cut short: new arrays beside old names."
    save_dataset(DATA, folder)
    names = [f"mood{i}" for i in range(DATA.n_classes)]
    other = ConversationDataset(SyntheticConversations(n_dialogues=10, length=(2, 5), dims=(4, 3, 2), seed=4).dataset().arrays(), DATA.modalities, label_names=names)
    data = (save_dataset(other, folder.parent / "other") / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(data)
    return folder


def test_files_that_were_not_saved_together_are_refused(tmp_path):
    folder = torn(tmp_path / "talks")
    with pytest.raises(ValueError, match="not saved together.*save the data set anew, or take .hash. out of meta.json"): load_dataset(folder)
    found = [f for f in audit(str(folder)).findings if "not saved together" in f.text]
    assert [f.severity for f in found] == ["error"]
    meta = json.loads((folder / "meta.json").read_text())
    for unknown in ({k: v for k, v in meta.items() if k != "hash"}, meta | {"hash": None}):
        (folder / "meta.json").write_text(json.dumps(unknown))
        assert load_dataset(folder).hash != DATA.hash


def test_what_belongs_together_is_read(tmp_path):
    "In every way that a folder can be asked for, and whatever further is written into it."
    arrays = DATA.arrays() | {"score": np.linspace(-1, 1, DATA.n_utterances).astype(np.float32)}
    scored = ConversationDataset(arrays, DATA.modalities, label_names=DATA.label_names, task="classification")
    folder = save_dataset(scored, tmp_path / "talks")
    assert {load_dataset(folder, task=task).hash for task in (None, "classification", "regression")} == {scored.hash}
    assert load_dataset(folder, modalities=list(reversed(DATA.modalities))).hash != scored.hash
    assert load_dataset(folder, modalities=[DATA.modalities[1]]).modalities == (DATA.modalities[1],)
    np.savez(folder / "data.npz", **arrays | {"split": np.full_like(arrays["split"], 2)}, further=np.zeros(3)) # a hash leaves out the split
    (folder / "meta.json").write_text(json.dumps(json.loads((folder / "meta.json").read_text()) | {"features": {"text": "mine"}}))
    assert load_dataset(folder).about == {"features": {"text": "mine"}}


# ---- dialogues

def test_dialogues_of_one_key_are_compared():
    x = {"text": torch.randn(3, 2), "audio": torch.randn(3, 2)}
    a, b = Conversation.build(x), Conversation.build({m: x[m] for m in ("audio", "text")})
    wide = Conversation.build(x | {"audio": torch.randn(3, 5)})
    for talks in ([a, b], [b, a], [a, a, b], [a, wide]):
        with pytest.raises(ValueError, match="differ in modalities"): ConversationBatch.collate(talks)
    assert ConversationBatch.collate([a, a]).keys == ["", ""]


# ---- noise

def test_noise_does_not_follow_the_default_type():
    graph = dense_graphs(DATA.train[:2])
    hidden = graph.valid[..., None].expand(-1, -1, 3)

    def drawn():
        generators = [[torch.Generator().manual_seed(s) for s in (1, 2)] for _ in range(2)]
        packed = torch.zeros(2, 2 * (9 * hidden.shape[1] + 3 * graph.spectrum.rank), dtype=torch.float32)
        noise = GraphNoise(generators[0], hidden, graph.spectrum.valid, (4, 3, 2), 2)(packed)
        return noise, *noise_everywhere(generators[1], graph, 2, 9, 3), *noise_everywhere(torch.Generator().manual_seed(3), graph, 2, 9, 3)
    usual = drawn()
    torch.set_default_dtype(torch.float64)
    try: other = drawn()
    finally: torch.set_default_dtype(torch.float32)
    assert all(x.dtype == torch.float32 and x.any() and torch.equal(x, y) for x, y in zip(usual, other, strict=True))


# ---- checkpoints

@pytest.fixture
def run(tmp_path):
    "A run with two checkpoints."
    kept = Checkpoints(tmp_path / "run/checkpoints")
    for step in (4, 8): kept.save(step, {"w": torch.full((3,), float(step))}, {"step": step})
    return tmp_path / "run"


def test_checkpoints_that_may_not_be_read_are_kept(run, monkeypatch):
    "The user of the tests may be one who may read everything."
    before, record = names(run), Record(run, Accelerator(cpu=True))

    def forbidden(path): raise PermissionError(errno.EACCES, "Permission denied", str(path))
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError): record.checkpoints.read(8)
    with pytest.raises(PermissionError): record.checkpoints.newest()
    with pytest.raises(ValueError, match="cannot be used .*Permission denied.*step-00000008"): record.begin(True)
    record.release()
    monkeypatch.undo()
    assert names(run) == before and record.checkpoints.newest()[0]


def test_damaged_checkpoints_are_set_aside(run):
    for path in run.rglob("*.sha256"): path.write_text("")
    damaged = [run / name for name in names(run / "checkpoints")]
    record = Record(run, Accelerator(cpu=True))
    stored, reasons = record.begin(True)
    record.release()
    assert stored is None and len(reasons) == 3 and "step 8 is left out" in reasons[0] and ".damaged" in reasons[-1]
    assert record.checkpoints.steps == [] and names(run / "checkpoints") == [f"{path.name}.damaged" for path in damaged]
    record.checkpoints.save(2, {"w": torch.ones(1)}, {})
    assert record.checkpoints.steps == [2] and len(list(run.rglob("*.damaged"))) == 2 * len(PARTS)


def test_one_whole_checkpoint_is_enough(run):
    Checkpoints(run / "checkpoints").path(8, "json").unlink()
    record = Record(run, Accelerator(cpu=True))
    stored, reasons = record.begin(True)
    record.release()
    assert json.loads(stored.state) == {"step": 4} and len(reasons) == 1 and not list(run.rglob("*.damaged"))


def test_a_commit_has_one_home():
    assert benchmark.commit is commit and commit.__module__ == "gsdnet.checkpoint"
    assert commit() == gsdnet.__version__ or len(commit().rstrip("+")) == 12


def test_a_run_of_other_code_goes_on_and_says_so(tmp_path, capsys):
    def train(resume): return fit(DATA, model=lambda d: MODELS["zero_fill"](d, width=8, hidden=8, latent=8), config=TrainConfig(epochs=1, batch_size=8), progress=False,
                                  run=tmp_path, resume=resume)
    train(False)
    kept = Checkpoints(tmp_path / "checkpoints")
    stored = kept.newest()[0]
    assert json.loads(stored.state)["sessions"][-1]["gsdnet"] == commit()
    train(True)
    assert "bit for bit" not in capsys.readouterr().err
    for code, words in (({"gsdnet": "0123456789ab"}, "was '0123456789ab'"), ({}, "was None")): # the second by a version that did not write it down
        state = json.loads(stored.state)
        state["sessions"][-1] = {k: v for k, v in state["sessions"][-1].items() if k != "gsdnet"} | code
        kept.save(state["step"], stored.tensors, state)
        train(True)
        assert f"not bit for bit the uninterrupted training, as gsdnet is {commit()!r}, {words}" in capsys.readouterr().err
