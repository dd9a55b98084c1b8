"What a user may do by mistake: each is refused with words, or does what was meant."
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import gsdnet
from gsdnet import cli, formats
from gsdnet.answers import Online
from gsdnet.architectures import MODELS
from gsdnet.benchmark import Benchmark, plan, run
from gsdnet.checkpoint import write_whole
from gsdnet.conversation import Conversation
from gsdnet.data import ConversationDataset, SyntheticConversations, load_dataset, save_dataset, standardization
from gsdnet.diffusion import covariance_root
from gsdnet.estimator import ConversationClassifier, to_dataset
from gsdnet.missing import FixedMissing, MaskKit, RandomMissing
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.trainer import Record, TrainConfig, fit

TINY = dict(latent=8, hidden=8, width=8, denoiser_width=8, denoiser_blocks=1, n_samples=2)
ONCE = TrainConfig(epochs=1)


def small(dataset, **options): return GSDNet(GSDConfig.of(dataset, **{**TINY, **options}))


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=10, length=(2, 4), dims=(3, 2, 2)).dataset()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_named_model_keeps_its_own_settings(name, data, tmp_path, monkeypatch):
    made = []
    def caught(dataset, model, **rest):
        made.append((dataset, model(dataset)))
        raise ValueError("caught")
    monkeypatch.setattr("gsdnet.trainer.fit", caught)
    save_dataset(data, tmp_path / "data")
    assert cli.main(["train", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--model", name, "--architecture.encoder_dropout", "0.25"]) == 2
    (dataset, model), = made
    assert model.config == MODELS[name](dataset, encoder_dropout=.25).config


def test_a_trained_rank_is_the_rank(tmp_path, data):
    save_dataset(data, tmp_path / "data")
    assert cli.main(["train", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--model", "rank_4", "--training.epochs", "1", "--architecture.latent", "8"]) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["rank"] == 4 and config["latent"] == 8


def test_a_finished_run_is_not_another(tmp_path, data, capsys):
    save_dataset(data, tmp_path / "data")
    words = ["train", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--training.epochs", "1", "--architecture.latent", "8"]
    assert cli.main(words) == 0 == cli.main([*words, "--resume"])
    assert cli.main([*words, "--resume", "--seed", "7"]) == 2 and "seed 0, asked for 7" in capsys.readouterr().err
    assert cli.main([*words[:3], str(tmp_path / "other"), "--model", "gsdnet,bigru"]) == 2 and "expected one" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "run"), str(tmp_path / "data"), "--seeds", "0"]) == 2 and "at least 1" in capsys.readouterr().err


def test_a_kit_of_another_order_is_refused(tmp_path, data):
    turned = data.with_modalities(data.modalities[::-1])
    kit = MaskKit.draw(turned, (.33,), (0,), lambda r: FixedMissing(("text",), turned.modalities))
    with pytest.raises(ValueError, match="in their order"): fit(data, model=small, kit=kit, config=ONCE, progress=False)
    with pytest.raises(ValueError, match="in their order"):
        plan(Benchmark((data,), {"m": small}, tmp_path, rates=(.33,), seeds=1, protocols=(RandomMissing, kit)))
    fit(data.use(kit), model=small, kit=kit, config=ONCE, progress=False)


def test_a_data_set_comes_back_with_its_task(tmp_path):
    arrays = SyntheticConversations(n_dialogues=5, length=(2, 4), with_score=True).dataset().arrays()
    saved = ConversationDataset(arrays, label_names=list("abcd"), task="classification")
    assert load_dataset(save_dataset(saved, tmp_path / "a")).task == "classification"
    assert load_dataset(tmp_path / "a", task="regression").task == "regression"
    with pytest.raises(ValueError, match="distinct"): ConversationDataset(arrays, label_names=list("abac"), task="classification")


def test_standardisation_knows_no_units(data):
    big = standardization(data.train)
    talks = [talk.clone() for talk in data.train]
    for talk in talks: talk["text"] = talk["text"] * 1e-9
    for a, b in zip(standardization(talks)["text"], big["text"]): torch.testing.assert_close(a * 1e9, b)
    for talk in talks: talk["text"] = torch.full_like(talk["text"], .1)
    assert (standardization(talks)["text"][1] == 1).all()


def test_a_split_without_labels_is_refused(data):
    arrays = data.arrays()
    arrays["label"] = np.where(arrays["split"] == 1, -1, arrays["label"])
    with pytest.raises(ValueError, match="validation split"): fit(ConversationDataset(arrays, label_names=data.label_names), model=small, config=ONCE, progress=False)


def test_a_rate_that_a_batch_cannot_reach():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 2, 40)
    X[rng.random(40) > .6, 3:] = np.nan
    ConversationClassifier({"text": 3, "audio": 2}, model=small, epochs=3, missing_rate=.2, batch_size=4, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="unreachable"): ConversationClassifier({"text": 3, "audio": 2}, model=small, epochs=1, missing_rate=.6, random_state=0).fit(X, y)


def test_the_estimator_reads_groups_where_they_stand():
    rng = np.random.default_rng(1)
    X, y, g = rng.standard_normal((24, 5)).astype(np.float32), rng.integers(0, 2, 24), np.repeat(np.arange(6), 4)
    model = ConversationClassifier({"text": 3, "audio": 2}, model=small, epochs=1, random_state=0).fit(X, y, g)
    assert model.score(X, y, g) == model.score(X, y, groups=g) == (model.predict(X, g) == y).mean()
    with pytest.raises(ValueError, match="words"): to_dataset(X, {"text": 3, "audio": 2}, groups=g, positions=[str(i) for i in range(24)])
    with pytest.raises(ValueError, match="missing values"): to_dataset(X, {"text": 3, "audio": 2}, groups=np.where(g > 3, np.nan, g))
    with pytest.raises(ValueError, match="validation_fraction"): ConversationClassifier({"text": 3, "audio": 2}, model=small, validation_fraction=-.1).fit(X, y)
    with pytest.raises(ValueError, match="by name"): ConversationClassifier(["text", "audio"], model=small).fit(X, y)


def test_a_tensor_is_a_speaker_like_any_other(data):
    torch.manual_seed(0)
    model, talk = small(data).eval(), max(data.test, key=lambda c: c.num_nodes)
    answers = []
    for kind in (int, lambda s: s):
        online = Online(model)
        answers.append([online.add({m: talk[m][i] for m in talk.modalities}, speaker=kind(talk.speaker[i])).probabilities for i in range(talk.num_nodes)])
    assert np.array_equal(*map(np.concatenate, answers))
    with pytest.raises(TypeError): online.add({m: talk[m][0] for m in talk.modalities}, speaker=["A"])
    assert online.count == talk.num_nodes
    online.add({m: talk[m][0] for m in talk.modalities}, speaker="A")


@pytest.mark.parametrize("wrong", [dict(latent=0), dict(width=-4), dict(smoothing=2.), dict(path_drop=2.), dict(spread=0.), dict(decay=float("inf")), dict(max_length=100000)])
def test_settings_that_no_model_can_have(data, wrong):
    with pytest.raises(ValueError, match=f"got {next(iter(wrong))}="): GSDConfig.of(data, **wrong)


@pytest.mark.parametrize("wrong", [dict(clip=-1.), dict(clip=0.), dict(average=2.), dict(lr=0.), dict(choose_from=45), dict(weight_decay=-1.)])
def test_settings_that_no_training_can_have(wrong):
    with pytest.raises(ValueError, match=f"got {next(iter(wrong))}="): TrainConfig(**wrong)


def test_numbers_of_numpy_are_kept(data, tmp_path):
    model = small(data, latent=np.int64(8), decay=np.float64(2.))
    model.save_pretrained(tmp_path)
    assert GSDNet.from_pretrained(tmp_path).config == model.config


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "target").write_text("old")
    os.symlink("target", tmp_path / "link")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "x")
    assert os.read(reader, 10) == b"x" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


def test_another_run_keeps_what_it_writes(data, tmp_path):
    (tmp_path / "records").mkdir()
    young, old = tmp_path / "records/young.tmp", tmp_path / "records/old.tmp"
    for file in (young, old): file.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    run(Benchmark((data,), {"m": small}, tmp_path, rates=(0.,), seeds=1, config=ONCE))
    assert young.exists() and not old.exists()


@pytest.mark.skipif(os.name != "posix", reason="limits of the system")
def test_a_data_set_is_whole_or_as_it_was(data, tmp_path):
    "The operating system refuses to let the larger file grow."
    import resource
    import signal
    save_dataset(data, tmp_path / "data")
    larger = SyntheticConversations(n_dialogues=60).dataset()
    before, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"): save_dataset(larger, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert load_dataset(tmp_path / "data").hash == data.hash


@pytest.mark.parametrize("numbers,label,score", [([2, -1, 0, 3, 1], [2, -1, 0, 3, 1], None), ([1, -1, 0], [1, 0, 1], [1., -1., 0.]), ([.5, 2, -1], [1, 1, 0], [.5, 2., -1.])])
def test_minus_one_among_classes_is_unlabelled(numbers, label, score):
    talk = formats._Talk("gcnet", "labels")
    formats._target(talk, np.array(numbers, float), "labels")
    assert talk.label == label and talk.score == score


def test_masks_that_are_not_those_of_the_data_set(data):
    model = small(data).eval()
    with pytest.raises(ValueError, match="in brackets"): model.predict(data.test[0])
    rows = sum(talk.num_nodes for talk in data.test)
    for wrong in (torch.ones(rows, 3, dtype=torch.bool), torch.ones(len(data.split), 1, dtype=torch.bool), torch.ones(len(data.split), dtype=torch.bool)):
        with pytest.raises(ValueError, match="whole data set"): model.predict(data.test, wrong)
    kit = MaskKit.draw(data, iter((0., .3)), map(int, ("0", "1")))
    assert kit.rates == (0., .3) and kit.seeds == (0, 1)


@pytest.mark.parametrize("name", ["wav2vec2.0", "type", "train", "values", "training", "file"])
def test_names_that_no_part_can_have(name):
    with pytest.raises(ValueError, match="rename"): Conversation.build({name: torch.ones(2, 3)}, speaker=torch.tensor([0, 1]))


def test_modalities_and_masks_that_differ(data, tmp_path, capsys):
    save_dataset(data, tmp_path / "data")
    MaskKit.draw(data.with_modalities(["text", "audio"]), (.3,), (0,)).save(tmp_path / "kit.npz")
    assert cli.main(["train", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--masks", str(tmp_path / "kit.npz"), "--modalities", "text,audio,visual"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err


def other(**kind): return SyntheticConversations(n_dialogues=10, length=(2, 6), **{"dims": (3, 2, 2), **kind}).dataset()


def test_a_column_is_not_spread_over_a_wider_modality():
    for asked in (lambda m, d: m.predict(d.test), gsdnet.evaluate):
        with pytest.raises(ValueError, match="'text' has 1 channels, the model was trained on 3"): asked(small(other()), other(dims=(1, 2, 2)))


def test_a_model_of_other_data_is_refused_before_training():
    brief = gsdnet.TrainConfig(epochs=1)
    for model, said in [(small(other()), "expected a function"), ("gsdnet", "expected a function"), (lambda d: small(other(dims=(4, 2, 2))), "channels of text 4, the data have 3"),
                        (lambda d: small(other(with_score=True)), "task regression"), (lambda d: small(other().with_modalities(["text"])), "channels of audio None")]:
        with pytest.raises(ValueError, match=said): gsdnet.fit(other(), model=model, config=brief, progress=False)
    with pytest.raises(ValueError, match="channels of visual 2, the data have None"): gsdnet.fit(other().with_modalities(["text", "audio"]), model=lambda d: small(other()), config=brief, progress=False)
    with pytest.raises(ValueError, match="got a config of type dict"): gsdnet.fit(other(), model=small, config={"epochs": 1}, progress=False)
    with pytest.raises(ValueError, match="load_dataset"): gsdnet.fit("folder", model=small, config=brief, progress=False)


def test_a_diverged_training_is_no_success(tmp_path):
    with pytest.raises(ValueError, match="has diverged"): gsdnet.fit(other(), model=small, config=gsdnet.TrainConfig(epochs=2, lr=1e8), progress=False, run=tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_numbers_of_numpy_and_threads_change_nothing(tmp_path):
    how = gsdnet.TrainConfig(epochs=np.int64(1), lr=np.float64(1.5e-3), trackers=())
    once = lambda seed: gsdnet.fit(other(), model=small, seed=seed, config=how, progress=False).fusion.head.weight.detach().numpy().tobytes()
    with ThreadPoolExecutor(2) as pool: assert len({once(0), once(np.int64(0)), *pool.map(once, [0] * 3)}) == 1
    for wrong in (1.5, -1, 2**62):
        with pytest.raises(ValueError, match="expected a whole number"): gsdnet.fit(other(), model=small, seed=wrong, config=how, progress=False)


def test_a_folder_has_one_training_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    record = Record(tmp_path, Accelerator(cpu=True))
    record.begin(False)
    with pytest.raises(ValueError, match="in use by another training"): gsdnet.fit(other(), model=small, config=gsdnet.TrainConfig(epochs=1), progress=False, run=tmp_path)
    record.release()
    gsdnet.fit(other(), model=small, config=gsdnet.TrainConfig(epochs=1), progress=False, run=tmp_path)


def test_what_is_handed_out_is_a_copy():
    data = other()
    kit, hashed = MaskKit.draw(data, rates=[.3], seeds=[0]), data.hash
    data.arrays()["label"][:] = -1
    kit.observed(.3, 0)[:] = True
    assert (data.y >= 0).any() and kit.hash == MaskKit.draw(data, rates=[.3], seeds=[0]).hash and hashed == ConversationDataset(data.arrays(), label_names=data.label_names).hash
    whole = data.arrays() | {"audio": np.ones((data.n_utterances, 2), np.int64)}
    with pytest.raises(ValueError, match="`audio` is int64"): ConversationDataset(whole, label_names=data.label_names)


def test_answers_replace_no_file_of_the_data_or_the_model(tmp_path, capsys):
    small(other()).save_pretrained(tmp_path / "run")
    save_dataset(other(), tmp_path / "data")
    for out in (tmp_path / "data" / "meta.json", tmp_path / "run" / "config.json"):
        before = out.read_bytes()
        assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "data"), "--out", str(out)]) == 2 and out.read_bytes() == before
        assert "would be gone" in capsys.readouterr().err
    for _ in range(2): assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "data"), "--out", str(tmp_path / "run" / "answers.csv")]) == 0


def test_features_that_no_float_can_hold_give_no_answer():
    data = other()
    arrays, row = data.arrays(), int(data.test[0].rows[0])
    arrays["text"][row] = 3e38 # finite, and in units of the training data it is not
    model, far = small(data), ConversationDataset(arrays, label_names=data.label_names)
    model.fit_standardization(data.train)
    with pytest.raises(ValueError, match="answers are no numbers"): model.predict(far.test)
    tiny = Conversation.build({"text": torch.tensor([[0.], [1e-40]] * 3)}, speaker=torch.zeros(6, dtype=torch.int64))
    assert standardization([tiny])["text"][1] == 1


def test_what_could_not_be_read_back_or_told_apart_is_refused(data, tmp_path):
    for name in ("a:b", "a/b", "x" * 200):
        with pytest.raises(ValueError, match="rename"): ConversationDataset(data.arrays() | {name: data.arrays()["text"]}, [name], label_names=data.label_names)
    with pytest.raises(ValueError, match="seed -1 of a mask"): MaskKit.draw(data, [.3], [-1])
    for seeds in (.5, (-1,), (0, .5)):
        with pytest.raises(ValueError, match="from 0 on"): Benchmark((data,), {"m": small}, tmp_path, seeds=seeds)
    assert Benchmark((data,), {"m": small}, tmp_path, seeds=tuple(np.arange(2))).seed_list == (0, 1)
    with pytest.raises(ValueError, match="pandas.factorize"): Conversation.build({"text": torch.ones(2, 3)}, speaker=["A", "B"])
    kit = MaskKit.draw(data, [.3], [0])
    for mask in (kit, kit.observed(.3, 0).float()):
        with pytest.raises(ValueError, match="expected bool"): small(data).predict(data.test, mask)


def test_determinism_leaves_warnings_as_they_were(data):
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for wanted in (False, True):
            fit(data, model=small, config=TrainConfig(epochs=1, deterministic=wanted), progress=False)
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally: torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_errors_that_are_no_numbers_are_a_diverged_training():
    with pytest.raises(ValueError, match="has diverged"): covariance_root(torch.full((4, 2), torch.nan))


def test_a_finished_run_of_other_settings_is_not_resumed(tmp_path, capsys):
    asked = ["train", "synthetic", "--run", str(tmp_path / "run"), "--model", "bigru", "--training.epochs", "1", "--architecture.width", "8"]
    assert cli.main(asked) == 0 == cli.main([*asked, "--resume"]) == cli.main([*asked[:6], "--resume"])
    assert cli.main([*asked[:-1], "9", "--resume"]) == 2 and "width 8, asked for 9" in capsys.readouterr().err
    assert cli.main([*asked[:6], "--training.epochs", "2", "--resume"]) == 2 and "epochs 1, asked for 2" in capsys.readouterr().err
