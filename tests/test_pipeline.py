"From a table straight to answers: names, order, splits, scores, and descriptions that do not fit or are damaged."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from test_features import Length, Size, utterances, write

from gsdnet import answers, cli
from gsdnet.data import load_dataset
from gsdnet.features import features, read_table
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.pipeline import answer, extractors_of
from gsdnet.sharing import from_pretrained, save_pretrained
from gsdnet.trainer import TrainConfig, fit

OWN = {"text": Length(), "audio": Size()}


def kept(folder, rows):
    "A model trained for a moment on a table of lengths and sizes, as it is read back."
    (folder / "calls/wav").mkdir(parents=True)
    for i, r in enumerate(rows): (folder / "calls" / r["audio"]).write_bytes(b"x" * (i + 1))
    features(write(folder / "calls", rows), folder / "data", OWN)
    small = lambda dataset: GSDNet(GSDConfig.of(dataset, width=16, denoiser_width=16, hidden=16, latent=8))
    model = fit(load_dataset(folder / "data"), model=small, config=TrainConfig(epochs=1), progress=False)
    save_pretrained(model, folder / "run", data=folder / "data")
    return from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def place(tmp_path_factory): return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def model(place): return kept(place, utterances())


def own(columns=""): return ["--own", f"text={Length.__module__}:Length,audio={Size.__module__}:Size", *(["--columns", columns] if columns else [])]


def test_answers_are_those_of_the_folder(model, place):
    lines, talks = answer(model, place / "calls", own=OWN, seed=3, n_samples=2), list(load_dataset(place / "data"))
    whole = answers.table(model, talks, model.predict(talks, seed=3, n_samples=2))
    pd.testing.assert_frame_equal(lines[whole.columns[3:]], whole[whole.columns[3:]])


def test_a_score_and_its_interval(tmp_path):
    rows = [{**r, "score": i - 9.5} for i, r in enumerate(utterances())]
    for r in rows: del r["label"]
    lines = answer(kept(tmp_path, rows), tmp_path / "calls", own=OWN)
    assert {"score", "low", "high"} < set(lines) and lines.score.notna().all()


def test_the_tables_own_names_come_back(model, place, capsys):
    rows = [dict(talk=f"Gespräch {t}", start=f"0:{7 * i:02d}.5", who=f"Sprecherin {i % 2}", said="" if (t, i) == (1, 2) else "oh ja" * (i + 1), id=f"{t}/{i}",
                 label=["weder", "noch"][i % 2], split=["train", "test"][t]) for t in (1, 0) for i in (2, 0, 1)]
    pd.DataFrame(rows).to_csv(place / "calls/other.csv", index=False, sep=";", encoding="cp1252")
    words = ["predict", str(place / "run"), str(place / "calls/other.csv"), "--json", "--encoding", "cp1252", *own("conversation=talk,speaker=who,transcript=said")]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    found = pd.DataFrame(json.loads(said.out))
    assert "1 utterances have no answer" in said.err and "line 2" in said.err and len(found) == 5
    assert list(found.columns[:5]) == ["conversation", "start", "speaker", "id", "line"] and found.recovered_audio.all()
    by_id = found.set_index("id")
    for i, r in enumerate(rows):
        if not r["said"]: continue
        line = by_id.loc[r["id"]]
        assert (line.conversation, line.start, line.speaker, line.line) == (r["talk"], r["start"], r["who"], i + 2)
    assert found.start[found.conversation == "Gespräch 0"].is_monotonic_increasing
    assert cli.main([*words, "--split", "train"]) == 0
    assert {r["conversation"] for r in json.loads(capsys.readouterr().out)} == {"Gespräch 0"}
    assert cli.main([*words, "--split", "valid"]) == 2 and "'valid' is empty" in capsys.readouterr().err


@pytest.mark.parametrize("rows, unanswered", [(slice(0, 1), []), (slice(0, 4), []), (slice(3, 17), [])])
def test_parts_of_conversations_are_answered(model, place, rows, unanswered):
    lines = answer(model, write(place / "calls", utterances()[rows], "part.jsonl"), own=OWN)
    assert len(lines) == len(utterances()[rows]) and lines.attrs["unanswered"] == unanswered


def test_python_and_the_command_line_agree(model, place, tmp_path):
    assert cli.main(["predict", str(place / "run"), str(place / "calls/utterances.csv"), "--out", str(tmp_path / "a.csv"), *own()]) == 0
    expected = answer(model, place / "calls", own=OWN)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), expected.astype({"position": int}), atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("words, said", [
    (["--masks", "kit.npz", "--rate", "0.3"], "make one with gsdnet features"), (["--rate", "0.3"], "without a mask kit"),
    (["--text", "somewhere"], "an extractor of your own"), (["--own", "text=nowhere:Thing"], "cannot be imported"),
    (["--own", "smell=test_features:Length"], "no modality 'smell'"), (["--encoding", "klingon"], "is not known")])
def test_refusals_are_one_line(model, place, words, said, capsys):
    assert cli.main(["predict", str(place / "run"), str(place / "calls"), "--json", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_options_of_tables_are_refused_for_folders(model, place, capsys):
    for option, word in (("--text", "x"), ("--visual", "x"), ("--own", "a=b:c"), ("--columns", "a=b")):
        assert cli.main(["predict", str(place / "run"), str(place / "data"), "--json", option, word]) == 2
        assert option in capsys.readouterr().err


@pytest.mark.parametrize("made_by", [None, 7, [], "openSMILE", {}, {"reads": 3}, {"extractor": "openSMILE", "reads": "audio"}, {"extractor": ["x"], "reads": "audio"},
                                     {"extractor": "openSMILE", "reads": "audio", "model": "eGeMAPSv09", "settings": {}}, {"extractor": "os.system", "reads": "audio", "model": "true"},
                                     {"extractor": "openSMILE", "reads": "audio", "model": "eGeMAPSv02", "settings": {"sampling_rate": "x", "silence": None, "seconds": 3}}])
def test_a_damaged_description_is_refused(model, place, tmp_path, made_by):
    shutil.copytree(place / "run", tmp_path / "run")
    said = json.loads((tmp_path / "run/features.json").read_text())
    said["audio"]["made_by"] = made_by
    (tmp_path / "run/features.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="expected|damaged"):
        extractors_of(from_pretrained(tmp_path / "run"), read_table(place / "calls"), own={"text": Length()})


def test_what_the_extractor_says_now_is_compared_in_every_part(model, place):
    for changed in (dict(version="2"), dict(extractor="width"), dict(more=1)):
        class Other(Length):
            def describe(self): return super().describe() | changed
        with pytest.raises(ValueError) as error: answer(model, place / "calls", own=OWN | {"text": Other()})
        assert json.dumps(Length().describe()["version"]) in str(error.value) and str([*changed.values()][0]) in str(error.value)
    wide = type("Wide", (Length,), {"dims": 3})
    with pytest.raises(ValueError, match='"dims": 3'): answer(model, place / "calls", own=OWN | {"text": wide()})


def test_a_hole_gives_the_same_whatever_stands_in_the_file(model, place):
    "The transcript of another row changes nothing in a conversation that it is not in."
    rows = utterances()
    first = answer(model, place / "calls", own=OWN)
    rows[0]["transcript"] = "quite another sentence, and a long one"
    second = answer(model, write(place / "calls", rows, "changed.csv"), own=OWN)
    p = [c for c in first if c.startswith("p_")]
    assert not np.allclose(first[p][:4], second[p][:4], atol=1e-7)
    named = lambda lines: lines[lines.conversation != "call0"][p].to_numpy()
    np.testing.assert_allclose(named(first), named(second), atol=1e-6)
