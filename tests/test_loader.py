"""Folders of every kind: broken ones are refused with the reason, unusual ones work."""
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from gsdnet.conversation import AddSpectrum, Conversation, ConversationBatch, dense_graphs
from gsdnet.data import ConversationDataset, SyntheticConversations, folds, load_dataset, save_dataset, standardization
from gsdnet.missing import MaskKit, MixedMissing, RandomMissing, draw_mask

quick = settings(deadline=None, max_examples=30, derandomize=True)


def good(n=12, sizes=(5, 4, 3), dims=(("text", 3), ("audio", 2)), seed=0):
    "The arrays of a small, good data set."
    rng = np.random.default_rng(seed)
    dialogue = np.repeat(np.arange(len(sizes)), sizes)
    return dict({m: rng.normal(size=(n, d)).astype(np.float32) for m, d in dims}, label=rng.integers(0, 3, n), dialogue_id=dialogue,
                position=np.concatenate([np.arange(s) for s in sizes]), speaker=rng.integers(0, 2, n), split=(dialogue % 3).astype(np.int8))


META = dict(name="small", label_names=["a", "b", "c"], modalities=["text", "audio"])


def write(folder, meta=META, **changes):
    "A folder with the good arrays, some replaced, or left out where None."
    folder.mkdir(exist_ok=True)
    np.savez(folder / "data.npz", **{k: x for k, x in (good() | changes).items() if x is not None})
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def at(rows, value, name="text"):
    "A good array with `value` in some rows."
    x = good()[name].copy()
    x[rows] = value
    return x


def test_the_good_folder_is_good(tmp_path):
    ds = load_dataset(write(tmp_path / "here"))
    assert (ds.name, ds.title, len(ds), ds.n_utterances, ds.dims) == ("here", "small", 3, 12, {"text": 3, "audio": 2})
    assert [c.key for c in ds] == ["small/0", "small/1", "small/2"] and ds.task == "classification"


@pytest.mark.parametrize("name", ["text", "audio", "dialogue_id", "position", "split"])
def test_a_missing_array_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` is missing"): load_dataset(write(tmp_path, **{name: None}))


@pytest.mark.parametrize("changes, words", [
    (dict(text=good()["text"][:, 0]), r"`text` has shape \[12\], expected \[12, d\]"),
    (dict(text=good()["text"][None]), r"`text` has shape \[1, 12, 3\]"),
    (dict(text=good()["text"][:11]), r"`text` has shape \[11, 3\], expected \[12, d\]"),
    (dict(text=np.zeros((12, 0), np.float32)), r"`text` has shape \[12, 0\]"),
    (dict(text=np.ones((12, 3), np.int64)), "`text` has dtype int64, expected float16 or float32"),
    (dict(text=np.full((12, 3), "x")), "`text` has dtype <U1"),
    (dict(text=np.ones((12, 3), np.complex64)), "`text` has dtype complex64"),
    (dict(text=at([1, 5], np.nan)), r"`text` has NaN or infinity in 2 of 12 rows \(first: row 1\)"),
    (dict(audio=at([7], -np.inf, "audio")), "`audio` has NaN or infinity in 1 of 12 rows"),
    (dict(text=np.full((12, 3), 1e300)), "`text` has NaN or infinity in 12 of 12 rows"),
    (dict(label=good()["label"][:5]), r"`label` has shape \[5\], expected \[12\]"),
    (dict(label=good()["label"].astype(float)), "`label` has dtype float64, expected integers"),
    (dict(label=np.full(12, 3)), r"`label` has 12 values out of range \(first: 3\); expected 0..2"),
    (dict(label=np.where(np.arange(12) == 4, -2, 0)), "`label` has 1 values out of range"),
    (dict(position=np.zeros(12, int)), "9 positions are taken twice"),
    (dict(position=np.arange(12.0)), "`position` has dtype float64"),
    (dict(speaker=np.zeros((12, 1), int)), r"`speaker` has shape \[12, 1\]"),
    (dict(dialogue_id=np.zeros((3, 4), int)), r"`dialogue_id` has shape \[3, 4\]"),
    (dict(split=(np.arange(12) % 3).astype(np.int8)), "3 dialogues are cut by the split"),
    (dict(split=np.full(12, 3)), "0 .train., 1 .valid. and 2 .test."),
    (dict(score=np.full(12, np.inf, np.float32)), "`score` has infinity in 12 of 12 rows"),
    (dict(score=np.zeros(11, np.float32)), r"`score` is float32 of shape \[11\]"),
    (dict(score=np.zeros(12, int)), "`score` is int64"),
    (dict(group=np.zeros(5, int)), r"`group` has shape \[5\]"),
    (dict(text_present=np.zeros(12, int), audio_present=np.zeros(12, int)), "12 utterances have nothing recorded"),
    (dict(text_present=np.full(12, 2)), "`text_present` is"),
    (dict(text_present=np.ones(3, int)), r"`text_present` is int64 of shape \[3\]"),
    (dict(**{k: x[:0] for k, x in good().items()}), "there are no utterances"),
])
def test_broken_arrays(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words): load_dataset(write(tmp_path, **changes))


@pytest.mark.parametrize("name", ["text", "label", "split", "extra"])
def test_objects_are_refused_and_never_run(tmp_path, name):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self): return ran.touch, ()

    folder = write(tmp_path / "data", **{name: np.array([Trap()] * 12, dtype=object)})
    with pytest.raises(ValueError, match=f"`{name}` holds pickled objects .*it was not loaded"): load_dataset(folder)
    (folder / "data.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="no .npz archive"): load_dataset(folder)
    assert not ran.exists()


def test_files_that_are_not_there_or_not_what_they_say(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.npz is missing"): load_dataset(tmp_path / "nowhere")
    folder = write(tmp_path / "data")
    archive = (folder / "data.npz").read_bytes()
    (folder / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="meta.json is no JSON"): load_dataset(folder)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match="meta.json holds a list"): load_dataset(folder)
    (folder / "meta.json").write_text('{"label_names": "abc"}')
    with pytest.raises(ValueError, match="label_names is 'abc', expected a list"): load_dataset(folder)
    (folder / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="`label_names` is missing"): load_dataset(folder)
    (folder / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match="meta.json is missing"): load_dataset(folder)
    write(folder)
    for broken in (b"", b"hello", archive[:200], archive[:-60], archive[:300] + archive[500:]):
        (folder / "data.npz").write_bytes(broken)
        with pytest.raises(ValueError, match="no .npz archive|damaged"): load_dataset(folder)
    (folder / "data.npz").unlink()
    with pytest.raises(FileNotFoundError, match="data.npz is missing"): load_dataset(folder)


@quick
@given(st.data())
def test_damaged_bytes_are_refused_or_harmless(tmp_path_factory, data):
    "One byte changed anywhere in the archive: a ValueError, or a data set whose checks all passed."
    folder = write(tmp_path_factory.mktemp("data"))
    content = bytearray((folder / "data.npz").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "data.npz").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: assert load_dataset(folder).n_utterances == 12
        except ValueError: pass


@pytest.mark.parametrize("call, error, words", [
    (dict(modalities=["text", "smell"]), ValueError, "`smell` is missing; the modalities to be had are"),
    (dict(modalities=[]), ValueError, "one or more distinct names"),
    (dict(modalities=["text", "text"]), ValueError, "distinct names"),
    (dict(modalities="text"), TypeError, "list of names"),
    (dict(task="regression"), ValueError, "`score` is missing, which a regression needs"),
    (dict(task="ranking"), ValueError, "'ranking', expected 'classification' or 'regression'"),
])
def test_wrong_requests(tmp_path, call, error, words):
    with pytest.raises(error, match=words): load_dataset(write(tmp_path), **call)


def test_what_was_never_recorded_is_not_looked_at(tmp_path):
    present = np.arange(12) % 2
    ds = load_dataset(write(tmp_path, text=at(present == 0, np.nan), text_present=present))
    assert torch.equal(ds.available, torch.tensor(present).bool()[:, None] | torch.tensor([False, True]))
    assert all(not c.text[~c.present[:, 0]].any() for c in ds)
    clean = load_dataset(write(tmp_path, text=at(present == 0, 5.0), text_present=present))
    assert clean.hash == ds.hash != load_dataset(write(tmp_path)).hash


def test_other_arrays_and_metadata_are_nobodys_business(tmp_path):
    meta = META | dict(sources=[{"a": 1}], visual="none")
    ds = load_dataset(write(tmp_path, meta, vad=np.full((12, 3), np.nan, np.float32), start_s=np.zeros(12), video_present=np.zeros(3), words=np.array(["a"] * 12)))
    assert ds.modalities == ("text", "audio") and ds.hash == load_dataset(write(tmp_path)).hash


def test_without_a_list_every_float_matrix_is_a_modality(tmp_path):
    meta = {k: v for k, v in META.items() if k != "modalities"}
    ds = load_dataset(write(tmp_path, meta, text_cnn=np.ones((12, 4), np.float16), start_s=np.zeros(12)))
    assert ds.dims == {"text": 3, "audio": 2, "text_cnn": 4} and load_dataset(tmp_path, ["audio"]).dims == {"audio": 2}


def test_scores_make_a_regression_and_need_no_label_names(tmp_path):
    score = np.where(np.arange(12) == 3, np.nan, 1.5).astype(np.float32)
    ds = load_dataset(write(tmp_path, {"modalities": ["text"]}, score=score))
    assert ds.task == "regression" and ds.n_classes >= 1 and ds[0].score.isnan().sum() == 1 and ds.title is None
    assert load_dataset(write(tmp_path, score=score), task="classification").task == "classification"


@st.composite
def datasets(draw):
    "Data sets of every size that is allowed."
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5)) + draw(st.sampled_from([[], [400]]))
    n, m, s, c = sum(sizes), draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    dims = [(name, draw(st.integers(1, 6))) for name in ("text", "audio", "visual", "text_minilm", "face")[:m]]
    arrays = good(n, sizes, dims) | dict(label=rng.integers(-1, c, n), speaker=rng.integers(0, s, n))
    ids = np.array(rng.permutation(1000)[:len(sizes)])
    arrays["dialogue_id"], arrays["split"] = ids[np.repeat(np.arange(len(sizes)), sizes)], (np.repeat(rng.integers(0, 3, len(sizes)), sizes)).astype(np.int8)
    if draw(st.booleans()): arrays["score"] = rng.normal(size=n).astype(np.float32)
    if m > 1 and draw(st.booleans()): arrays[f"{dims[0][0]}_present"] = np.isin(arrays["split"], draw(st.sampled_from([[0], [2], [0, 1], []]))).astype(np.uint8)
    shuffle = rng.permutation(n)
    return {k: x[shuffle] for k, x in arrays.items()}, [str(i) for i in range(c)]


@quick
@given(datasets(), st.integers(0, 99))
def test_every_allowed_size_works_to_the_batch(tmp_path_factory, case, seed):
    "From folder to batch and back: 1 to 5 modalities, 1 to 9 speakers, 1 to 400 utterances, a modality absent from whole splits."
    arrays, label_names = case
    made = ConversationDataset(arrays, label_names=label_names, title="any")
    ds = load_dataset(save_dataset(made, tmp_path_factory.mktemp("data")))
    assert ds.hash == made.hash and ds.modalities == made.modalities and torch.equal(ds.split, made.split) and [c.key for c in ds] == [c.key for c in made]
    rows = torch.cat([c.rows for c in ds])
    assert torch.equal(rows, ds.order) and torch.equal(rows.sort().values, torch.arange(ds.n_utterances))
    for c in ds:
        assert (c.position.diff() > 0).all() and len(set(ds.dialogue[c.rows].tolist())) == 1 and torch.equal(c.y, ds.y[c.rows])
        for i, m in enumerate(ds.modalities):
            assert torch.equal(c[m], torch.from_numpy(arrays[m][c.rows.numpy()]).masked_fill(~c.present[:, [i]], 0))
    ds.attach(AddSpectrum(k=16))
    mask = draw_mask(ds.available, MixedMissing(), ds.dialogue, seed=seed)
    batch = ConversationBatch.collate(ds.conversations, [mask[c.rows] for c in ds], targets=True)
    assert batch.lengths == [c.num_nodes for c in ds] and batch.graph.spectrum.rank <= 16
    assert torch.equal(batch.observed[batch.valid], mask[rows]) and torch.equal((batch.observed | batch.target_mask)[batch.valid], ds.available[rows])
    for m, x in batch.complete().features.items(): assert torch.equal(x[batch.valid], torch.cat([c[m] for c in ds]))
    assert all(mean.isfinite().all() and (std > 0).all() for mean, std in standardization(ds.conversations).values())


def test_a_modality_absent_from_the_whole_test_split(tmp_path):
    absent = (good()["split"] != 2).astype(np.uint8)
    ds = load_dataset(write(tmp_path, audio_present=absent))
    kit = MaskKit.draw(ds, (0.0,), (0,))
    assert torch.equal(kit.observed(0, 0), ds.available) and not kit.observed(0, 0)[ds.split == 2, 1].any()
    ready = ds.use(kit)
    batch = ConversationBatch.collate(ready.test)
    assert not batch.features["audio"].any() and batch.features["text"].any()
    with pytest.raises(ValueError, match="at most 0.0000 of the 3 recorded"): MaskKit.draw(ds, (0.25,), (0,))
    with pytest.raises(ValueError, match="3 utterances have nothing recorded"): ds.with_modalities(["audio"])


def test_a_kit_is_used_only_on_its_own_data(tmp_path):
    ds = load_dataset(write(tmp_path / "a"))
    kit = MaskKit.draw(ds.with_modalities(["audio", "text"]), (0.0, 0.5), (0,))
    assert ds.use(kit).modalities == ("audio", "text") and ds.use(kit).use(kit).hash == kit.data_hash
    with pytest.raises(ValueError, match="hash"): load_dataset(write(tmp_path / "b", text=at([0], 9.0))).use(kit)
    with pytest.raises(ValueError, match="load it with the kit's modalities"): ds.with_modalities(["text"]).use(kit)
    short = load_dataset(write(tmp_path / "c", **{k: x[:9] for k, x in good().items()}))
    with pytest.raises(ValueError, match="12 utterances, but the data set has 9"): short.use(kit)


@quick
@given(st.lists(st.integers(1, 20), min_size=3, max_size=12), st.integers(3, 12), st.booleans())
def test_folds_move_whole_units_and_test_each_once(sizes, k, by_group):
    arrays = good(sum(sizes), sizes)
    if by_group: arrays["group"] = arrays["dialogue_id"] // 2
    units = len(set(arrays["group" if by_group else "dialogue_id"]))
    ds = ConversationDataset(arrays, label_names="abc")
    if not 3 <= k <= units:
        with pytest.raises(ValueError, match=f"{k} folds of {units}"): list(folds(ds, k))
        return
    splits = torch.stack([d.split for _, d in folds(ds, k)])
    assert len(splits) == k and ((splits == 2).sum(0) == 1).all() and ((splits == 1).sum(0) == 1).all()
    for unit in set(arrays["group"] if by_group else arrays["dialogue_id"]):
        rows = torch.from_numpy(arrays["group" if by_group else "dialogue_id"] == unit)
        assert (splits[:, rows] == splits[:, rows][:, :1]).all()
    assert all((s == part).any() for s in splits for part in (0, 1, 2))


def test_a_group_that_cuts_a_dialogue_is_refused():
    ds = ConversationDataset(good() | dict(group=np.arange(12) // 3), label_names="abc")
    with pytest.raises(ValueError, match="group: .*cut"): next(folds(ds))


@pytest.mark.parametrize("weight, words", [([1.0, 2.0], "asymmetric"), ([-1.0, -1.0], "negative"), ([float("nan")] * 2, "NaN")])
def test_bad_adjacencies_are_refused(weight, words):
    graph = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_attr=torch.tensor(weight), num_nodes=2)
    with pytest.raises(ValueError, match=words): dense_graphs([graph])
    with pytest.raises(ValueError, match="expected \\[2\\] or \\[2, 1\\]"): dense_graphs([Data(edge_index=graph.edge_index, edge_attr=torch.ones(2, 3), num_nodes=2)])


@quick
@given(st.integers(0, 99), st.integers(1, 12))
def test_nothing_hidden_or_padded_enters_a_batch(seed, n):
    "Garbage where the mask hides, bit for bit, in company of a longer dialogue."
    g = torch.Generator().manual_seed(seed)
    make = lambda n: {"text": torch.randn(n, 3, generator=g), "audio": torch.randn(n, 2, generator=g)}
    longer, features = Conversation.build(make(13)), make(n)
    mask = draw_mask(torch.ones(n, 2, dtype=torch.bool), RandomMissing(0.5), seed=seed)
    dirty = {m: x.masked_fill(~mask[:, [i]], 1e30) for i, (m, x) in enumerate(features.items())}
    a, b = (ConversationBatch.collate([longer, Conversation.build(f)], [longer.present, mask]) for f in (features, dirty))
    for m in a.modalities:
        assert torch.equal(a.features[m], b.features[m]) and not a.features[m][~a.valid].any() and torch.equal(a.features[m][1, :n][mask[:, a.modalities.index(m)]], features[m][mask[:, a.modalities.index(m)]])


@pytest.mark.parametrize("settings", [dict(length=(1, 1)), dict(n_speakers=(1, 1)), dict(n_speakers=(9, 9)), dict(length=(200, 200), n_dialogues=1), dict(n_classes=2), dict(contagion=0.0, inertia=0.0)])
def test_the_synthetic_law_at_its_edges(settings):
    law = SyntheticConversations(**dict(n_dialogues=5) | settings)
    ds = law.dataset()
    talk = ds[0] if ds[0].num_nodes < 50 else Conversation.build({m: ds[0][m][:20] for m in ds.modalities}, speaker=ds[0].speaker[:20])
    mask = draw_mask(talk.present, RandomMissing(0.5), seed=0)
    mean, cov = law.posterior(talk, mask)
    hidden = ~mask.repeat_interleave(torch.tensor(law.dims), 1)
    assert mean.shape == hidden.shape and cov.shape == (hidden.sum(), hidden.sum())
    assert torch.linalg.eigvalsh(cov).min() > 0 and cov.diag().max() < 1
    torch.testing.assert_close(law.recognise(talk, mask, n_samples=50).sum(1), torch.ones(talk.num_nodes, dtype=torch.float64))
    torch.testing.assert_close(law.covariance(talk).diag(), torch.ones(hidden.numel(), dtype=torch.float64))
