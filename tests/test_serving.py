"A model in a service: threads that share it, folders that were half written, output that nobody reads or that cannot be spelt."
import io
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gsdnet import cli
from gsdnet.data import SyntheticConversations, save_dataset
from gsdnet.model import GSDConfig, GSDNet


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=20, length=(6, 6), seed=0).dataset()


def made(data, seed=0):
    torch.manual_seed(seed)
    net = GSDNet(GSDConfig.of(data, latent=8, hidden=16, width=16, denoiser_width=16, n_samples=2)).eval()
    net.fit_standardization(data.train)
    return net


def test_threads_may_share_a_model(data):
    net = made(data)
    for call in (lambda talk: net.embed([talk], data.available), lambda talk: net.predict([talk], data.available).probabilities):
        alone = [call(talk) for talk in data.conversations]
        with ThreadPoolExecutor(4) as threads: together = list(threads.map(call, [*data.conversations] * 3))
        assert all(np.array_equal(a, b) for a, b in zip(together, alone * 3))


def test_halves_of_two_models_are_no_model(data, tmp_path):
    "As a process leaves them that is stopped between the two files."
    for name, seed in (("one", 0), ("other", 1)): made(data, seed).save_pretrained(tmp_path / name)
    kept = GSDNet.from_pretrained(tmp_path / "one").state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in made(data).state_dict().items())
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "one/model.safetensors")
    with pytest.raises(ValueError, match="damaged or were not saved together"): GSDNet.from_pretrained(tmp_path / "one")


def test_a_model_of_before_the_code_is_read(data, tmp_path):
    made(data).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "weights"}))
    GSDNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [None, True, "2.0", []])
def test_calibration_is_numbers(data, tmp_path, value):
    made(data).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": value}))
    with pytest.raises(ValueError, match="expected numbers"): GSDNet.from_pretrained(tmp_path)


def test_a_reader_that_has_gone_is_no_fault(monkeypatch, capsys):
    "As in `gsdnet info | head -1`."
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        assert cli.main(["info"]) == 0
    assert not capsys.readouterr().err


def test_a_terminal_without_a_sign_gets_its_table(data, tmp_path, monkeypatch):
    save_dataset(data, tmp_path / "talks")
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert cli.main(["benchmark", str(tmp_path / "talks"), "--models", "bigru", "--rates", "0", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    assert b"bigru" in raw.getvalue() and b" ? " in raw.getvalue()


@pytest.mark.parametrize("command, word", [("info", "stopped before it was done"), ("train synthetic --run x", "--resume"), ("benchmark synthetic --out x", "the same command goes on")])
def test_what_is_said_of_a_stop_is_of_the_command(monkeypatch, capsys, command, word):
    def stopped(*about): os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(cli, "read_kit", stopped)
    monkeypatch.setattr("gsdnet.benchmark.versions", stopped)
    assert cli.main(command.split()) == 128 + signal.SIGTERM and word in capsys.readouterr().err


@pytest.mark.parametrize("out, word", [("folder", "a folder, expected the name of a file"), ("file.txt/answers.csv", "cannot be used")])
def test_answers_that_could_not_be_written_are_refused_before_the_work(data, tmp_path, monkeypatch, capsys, out, word):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("")
    monkeypatch.setattr(cli, "read_run", lambda *about: pytest.fail("the work had begun"))
    assert cli.main(["predict", "run", "synthetic", "--out", str(tmp_path / out)]) == 2 and word in capsys.readouterr().err
