"What the trainer offers beside a training: early stop, mixed precision, compilation, trackers, a log, a bar."
import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gsdnet.architectures import MODELS
from gsdnet.data import ConversationDataset, SyntheticConversations
from gsdnet.missing import MaskKit, MixedMissing, RandomMissing, draw_mask
from gsdnet.trainer import TrainConfig, Trainer, fit, validation_masks

SMALL = dict(width=16, denoiser_width=16, hidden=16, latent=8, n_samples=2)
BRIEF = TrainConfig(epochs=3, batch_size=4, choose_from=0.7)


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=15, length=(2, 6), seed=3).dataset()


def train(data, model="gsdnet", config=BRIEF, **options):
    return fit(data, model=lambda d: MODELS[model](d, **SMALL), config=config, **{"progress": False, **options})


def weights(model): return torch.cat([x.flatten().double() for x in model.state_dict().values()])


def test_early_stop_is_off_by_default_and_counts_eligible_epochs(data, monkeypatch):
    scores = iter([.1, .5, .4, .45, .3, .9])
    monkeypatch.setattr(Trainer, "validate", lambda self: next(scores))
    model = train(data, config=replace(BRIEF, epochs=8, choose_from=.75, patience=3))
    assert [row["valid_score"] for row in model.history["log"]] == [None, None, .1, .5, .4, .45, .3]
    assert (model.history["epoch"], model.history["epochs"], model.history["valid_score"]) == (4, 7, .5)
    scores = iter([.1, .5, .4, .45, .3, .9])
    assert train(data, config=replace(BRIEF, epochs=8, choose_from=.75)).history["epoch"] == 8


def test_a_run_that_patience_ended_stays_ended(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda self: -self.step_count)
    config = replace(BRIEF, epochs=8, choose_from=1., patience=2)
    first = train(data, config=config, run=tmp_path / "run")
    monkeypatch.setattr(Trainer, "step", None)
    again = train(data, config=config, run=tmp_path / "run", resume=True)
    assert again.history == first.history and first.history["epochs"] == 3 and torch.equal(weights(again), weights(first))


def test_bf16_stays_near_single_precision(data):
    plain, half = (train(data, config=replace(BRIEF, precision=p)) for p in ("no", "bf16"))
    assert not torch.equal(weights(plain), weights(half)) and {x.dtype for x in half.parameters()} == {torch.float32}
    for a, b in zip(plain.history["log"], half.history["log"]):
        # eigenvalue offsets are differences of nearly equal numbers, in units of a tenth: half precision is felt there first
        for name, rel in dict(masked=.05, complete=.05, feature=.05, eigenvalue=.3).items(): assert b[name] == pytest.approx(a[name], rel=rel)


def test_bf16_loses_no_gradient(data):
    "What autocast casts without gradients is not handed to code that needs them."
    def trained(precision):
        model = MODELS["gsdnet"](data, **SMALL)
        trainer = Trainer(model, data, [], MixedMissing(), config=replace(BRIEF, precision=precision))
        trainer.model.train()
        trainer.step(trainer.train_set[:4])
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    torch.manual_seed(0)
    plain = trained("no")
    torch.manual_seed(0)
    assert plain == trained("bf16") and plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_on_a_gpu(data):
    model = train(data, config=replace(BRIEF, precision="fp16"))
    assert np.isfinite([row["masked"] for row in model.history["log"]]).all() and weights(model).isfinite().all()


def test_compiled_is_near_plain(data, monkeypatch):
    """Two batches, of other sizes and lengths. Traced and differentiated as graphs, which our code can break, and run without Inductor, whose fifty C++ kernels cost more than a minute:
    `GSDNET_COMPILE=inductor` has them built as well."""
    backend = os.environ.get("GSDNET_COMPILE", "aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    still = dict(encoder_dropout=0, dropout=0, path_drop=0)
    plain, compiled = (fit(data, model=lambda d: MODELS["bigru"](d, width=16, **still), config=replace(BRIEF, epochs=1, batch_size=5, compile=c), progress=False)
                       for c in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for a, b in zip(plain.history["log"], compiled.history["log"]): assert b["masked"] == pytest.approx(a["masked"], rel=1e-3)


def test_deterministic_mode_holds_inside_and_is_left_again(data, monkeypatch):
    seen, step = [], Trainer.step

    def watched(self, talks):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(self, talks)
    monkeypatch.setattr(Trainer, "step", watched)
    a, b = (train(data, config=replace(BRIEF, deterministic=d)) for d in (True, False))
    assert seen == [True] * 9 + [False] * 9 and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("valid", [True, False])
def test_the_log_has_a_line_per_epoch(data, tmp_path, valid):
    used = data if valid else data.with_split(np.where(np.asarray(data.split) == 1, 2, np.asarray(data.split)).astype(np.int8))
    model = train(used, run=tmp_path / "run")
    rows = [json.loads(line, parse_constant=lambda x: pytest.fail(f"{x} is no JSON")) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    terms = ["feature", "eigenvalue", "masked", "complete", "distill", "unimodal"]
    assert all(list(row) == ["epoch", "step", "lr", "valid_score", "seconds", "utterances", "utterances_per_second", "loss", *terms, "norm_0", "norm_1"]
               for row in rows)
    assert [row["epoch"] for row in rows] == [1, 2, 3] and [row["step"] for row in rows] == [3, 6, 9]
    assert all(row["utterances"] == sum(c.num_nodes for c in used.train) for row in rows)
    for row, kept in zip(rows, model.history["log"]):
        assert row["loss"] == pytest.approx(sum(row[t] for t in terms)) and all(row[t] == kept[t] for t in terms)
        assert (row["valid_score"] is not None) == (valid and row["epoch"] > 1)
        assert row["norm_0"] > 0 and row["norm_1"] > 0 and 0 < row["lr"] <= BRIEF.lr and row["seconds"] > 0


def test_trackers_are_opt_in(data, tmp_path):
    with pytest.raises(ValueError, match="folder"): train(data, config=replace(BRIEF, trackers=("tensorboard",)))
    with pytest.raises(ValueError, match="not installed"): train(data, config=replace(BRIEF, trackers=("carrier_pigeon",)), run=tmp_path / "run")
    pytest.importorskip("tensorboard")
    plain = train(data)
    tracked = train(data, config=replace(BRIEF, trackers=("tensorboard",)), run=tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out*")).parent))
    events.Reload()
    assert [e.step for e in events.Scalars("masked")] == [1, 2, 3]
    assert [e.value for e in events.Scalars("masked")] == pytest.approx([row["masked"] for row in tracked.history["log"]])
    assert torch.equal(weights(plain), weights(tracked))


BAR = """
import sys
from gsdnet.architectures import MODELS
from gsdnet.data import ConversationDataset, SyntheticConversations
from gsdnet.trainer import TrainConfig, fit
for terminal in (False, True):
    sys.stderr.isatty = lambda: terminal
    fit(SyntheticConversations(n_dialogues=10, length=(2, 4)).dataset(), model=lambda d: MODELS["bigru"](d, width=16), config=TrainConfig(epochs=2))
    sys.stderr.write("the next")
"""


def test_the_bar_is_silent_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, timeout=200)
    silent, shown, _ = done.stderr.split("the next")
    assert done.returncode == 0 and not done.stdout and not silent
    assert all(word in shown for word in ("loss=", "valid=", "utterances/s")), shown


@pytest.mark.parametrize("options", [dict(accumulate=0), dict(patience=0), dict(checkpoint_every=0), dict(precision="fp8")])
def test_settings_that_cannot_be(options):
    with pytest.raises(ValueError, match=next(iter(options))): TrainConfig(**options)


def test_patience_needs_something_to_judge_by(data):
    with pytest.raises(ValueError, match="validation"):
        train(data.with_split(np.where(np.asarray(data.split) == 1, 0, np.asarray(data.split)).astype(np.int8)), config=replace(BRIEF, patience=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_without_a_gpu_is_refused(data):
    with pytest.raises(ValueError, match="fp16.*GPU"): train(data, config=replace(BRIEF, precision="fp16"))


def test_a_new_option_renames_no_earlier_run():
    "Configuration hashes of results that were published before these options existed."
    old = ["epochs", "lr", "weight_decay", "warmup", "batch_size", "clip", "average", "choose_from"]
    assert list(TrainConfig().settings()) == old
    assert TrainConfig(patience=3).settings() == {**{k: v for k, v in asdict(TrainConfig()).items() if k in old}, "patience": 3}


def test_rows_in_another_order_train_the_same_model(data):
    "Dialogues and positions say what belongs together, the order of rows says nothing."
    stored = data.arrays()
    mixed = np.random.default_rng(0).permutation(len(stored["label"]))
    other = ConversationDataset({name: x[mixed] for name, x in stored.items()}, label_names=data.label_names, name=data.name, title=data.title)
    assert torch.equal(weights(train(data)), weights(train(other)))


def test_other_seeds_of_a_kit_change_no_training(data):
    "A run's epoch is chosen under the masks of its own seed, whichever seeds the kit has besides; one seed more or less in a benchmark is the same run."
    kits = {seeds: MaskKit.draw(data, [0., .5], seeds) for seeds in ((2,), (1, 2), (2, 3, 4))}
    masks = [validation_masks(data, kit, "mixed", 2) for kit in kits.values()]
    assert all(np.array_equal(a, b) for other in masks[1:] for a, b in zip(masks[0], other)) and not np.array_equal(masks[0][1], validation_masks(data, kits[1, 2], "mixed", 1)[1])
    a, b = (train(data, seed=2, kit=kit) for kit in (kits[2,], kits[1, 2]))
    assert torch.equal(weights(a), weights(b)) and a.history["valid_score"] == b.history["valid_score"]


def test_noise_on_the_adjacency_is_spread_as_its_error_is(data):
    "The yardstick gets the measured law of its error too: without it two steps leave samples that are far too alike."
    model = train(data, model="adjacency_noise").eval()
    observed = draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0)
    (_, batch), = model.batches(data.test, observed, batch_size=len(data.test))
    spread = lambda: model.recover(batch, generator=torch.Generator().manual_seed(0), n_samples=8).std.square().sum()
    measured = spread()
    for name in ("error_channels", "error_levels"): getattr(model.diffusion, name).zero_()
    assert measured > 2 * spread() > 0


def test_weights_of_classes(data):
    "They change the weights of the network, no identity of a run without them, and are refused where there are no classes or no such rule."
    plain, weighed = train(data), train(data, config=replace(BRIEF, class_weights="balanced"))
    assert not torch.equal(weights(plain), weights(weighed)) and "class_weights" not in BRIEF.settings()
    assert not any("class_weights" in name for name in weighed.state_dict()) # nothing that answers need
    with pytest.raises(ValueError, match="balanced"): TrainConfig(class_weights="inverse")
    scored = SyntheticConversations(n_dialogues=15, length=(2, 6), seed=3, with_score=True).dataset()
    stored = ConversationDataset(scored.arrays(), label_names=scored.label_names, name="scored", task="regression")
    with pytest.raises(ValueError, match="regression"): train(stored, config=replace(BRIEF, class_weights="balanced"))
