"""Independent starts, and what of the recovery an answer needs: GSDNet and its twin on IEMOCAP, every training with first weights of its own.

The trainings of `results.py` begin with the same weights in every fold, as one seed belongs to all folds, so that five seeds are five starts. Here each fold has seeds that no other fold has: as many pairs, as many starts.
Both models are judged with all text gone and with entries hidden at random. GSDNet is also judged, with the same weights, when it answers from less than its recovery, or from something else in its place. Rows go to
`starts.csv` as a training ends; those that are there are not made again.

Expected before the first run, in points of weighted F1. All text gone: GSDNet less twin +1.5 (as over ten shared seeds), above zero over trainings and over sessions; at random rates of .3 to .5 +.3. All text gone, less GSDNet as it is:
the samples' mean -.2, one sample -1, nothing in their place -1.5 (that the twin is no worse than that says that the gain comes from what is recovered, and not from what training with it did to the weights),
samples of other utterances of the dialogue -3, the observed graph's spectrum in the place of the recovered one 0 (within .2).

`--models regression,wide_twin --starts 5` asks the same of what else was compared without text on shared seeds (`iemocap4_no_text_parts`: +1.8 and +2.6). Expected, when 32 pairs with the twin had shown .45 in the place of 1.5: they shrink as well, to +.6 against regression and +1 against the wide twin.
`--models bigru,transformer --starts 5` asks it of the two yardsticks whose lead is large. Expected: it stays, within half a point of what shared seeds had at random rates (+3.2 and +4.1), and above zero without text (+2.4 and +7.0).
`--first 10 --starts 5` asks GSDNet and its twin once more, with starts 10 to 14 of each fold, when fifty pairs had shown .60 (-.06 to 1.28) with all text gone and .26 (.11 to .42) at random. Expected: .6 and .25 again. And samples of another *dialogue*, where others'
of the same had cost .24 and .02: if answers read what fillings say of the dialogue at large, these cost as much as nothing in their place (about 1 and .35); expected is less than half of that, as fillings then are a regularisation.
`--models bigru,transformer --starts 5 --tuned results/tuning32.csv` gives the two yardsticks the best of 32 trials where GSDNet has the settings it has, on the four sessions that did not judge the trials. Expected: GSDNet stays ahead at random rates, by +1.9 and +3, and over four sessions
the interval has zero in it against the recurrent network; without text nothing is shown against it. `--models gcnet_like --starts 2`: +3.5 at random, +2 without text.
`--models elsewhere --starts 5` asks whether what recovery adds comes from fillings as such: GSDNet that is trained on what was recovered for *other* utterances, nearly always of other dialogues, and answers from that, so that fillings have the right law and say nothing of the utterance.
Expected: level with GSDNet, within .15 at random rates, and ahead of the twin there by about .2, whose interval over 25 trainings has zero in it; without text nothing shown against either.
"""
import csv
from pathlib import Path
from unittest import mock

from compare import keep, options

chosen = options(__doc__, starts=(int, 10, "trainings of each model in each fold"), first=(int, 0, "number of the first of them"), jobs=(int, 1, "trainings at a time"),
                 models=(str, "gsdnet,zero_fill", "which models, comma-separated"),
                 tuned=(str, None, "table of trials: each model with the settings of its best, on folds that judged no trial"))

import joblib
import pandas as pd
import torch

from gsdnet.architectures import MODELS
from gsdnet.benchmark import best_trials, commit, with_settings
from gsdnet.data import folds, load_dataset
from gsdnet.metrics import evaluate
from gsdnet.missing import FixedMissing, MaskKit, RandomMissing, draw_mask
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.trainer import TrainConfig, fit

KEY = ("model", "answers_from", "fold", "seed", "protocol", "rate")
RATES = (0., .1, .2, .3, .4, .5)


def one_sample(model, batch, recovery):
    "The first of the samples in the place of each."
    recovery.values, recovery.spectra = (x[:1].expand_as(x) for x in (recovery.values, recovery.spectra))
    return recovery


def one_mean(model, batch, recovery):
    "The samples' mean in the place of each sample."
    recovery.values = recovery.mean.expand_as(recovery.values)
    return recovery


def nothing(model, batch, recovery):
    "Blanks in the place of what was recovered, as training shows them to some dialogues; the spectrum stays."
    recovery.values = recovery.values * recovery.known
    return recovery


def elsewhere(recovery, groups):
    "What was recovered of another utterance with the same hole, half a group of utterances away: the right law, the wrong place."
    values, hidden = recovery.values.clone(), ~recovery.known
    for b, n in groups:
        for columns in hidden[b, n].unique(dim=1).T: # the columns of a modality have the same holes
            rows, which = torch.nonzero(columns)[:, 0], (hidden[b, n] == columns[:, None]).all(0).nonzero()[:, 0]
            to, source = (torch.stack((b[r], n[r])) for r in (rows, rows.roll(len(rows) // 2)))
            values[:, to[0, :, None], to[1, :, None], which] = recovery.values[:, source[0, :, None], source[1, :, None], which]
    recovery.values = values
    return recovery


def others(model, batch, recovery):
    "Samples of another utterance of the same dialogue."
    b, n = torch.nonzero(batch.valid, as_tuple=True)
    return elsewhere(recovery, [(b[b == i], n[b == i]) for i in range(len(batch.valid))])


def strangers(model, batch, recovery):
    "Samples of another utterance half a batch away, nearly always of another dialogue; in a test session of IEMOCAP the same two people speak in all of them."
    return elsewhere(recovery, [torch.nonzero(batch.valid, as_tuple=True)])


class Elsewhere(GSDNet):
    "GSDNet that learns and answers from what was recovered for another utterance."
    def __init__(self, config):
        super().__init__(config)
        own = self.diffusion.recover

        def recover(x, observed, graph, **options):
            found = own(x, observed, graph, **options)
            return found if found.whole else elsewhere(found, [torch.nonzero(graph.valid, as_tuple=True)])

        self.diffusion.recover = recover

    @classmethod
    def of(cls, data, **options): return cls(GSDConfig.of(data, **options))


def observed_spectrum(model, batch, recovery):
    "The spectrum of what is observed in the place of the recovered one."
    offsets = model.diffusion.offsets(model.encode(batch).flatten(-2), batch.graph, batch.observed)
    recovery.spectra = (batch.graph.spectrum.values[..., None] + model.config.spread * offsets).expand_as(recovery.spectra)
    return recovery


WAYS = {"one sample": one_sample, "the samples' mean": one_mean, "nothing": nothing, "others' samples": others, "another dialogue's samples": strangers,
        "the observed spectrum": observed_spectrum}


def answering(model, way):
    "Inside, a model's recovery is changed before the fusion network reads it."
    whole = model.recover
    return mock.patch.object(model, "recover", lambda batch, *more, **named: way(model, batch, whole(batch, *more, **named)))


def masks(data, seed):
    "What is observed, by protocol and rate: all of the text hidden, or entries at random."
    kit = MaskKit.draw(data, RATES, (seed,), RandomMissing)
    without = draw_mask(data.available, FixedMissing(("text",), data.modalities), data.dialogue, seed=seed)
    return kit, {("fixed(text)", .5): without} | {("random", rate): kit.observed(rate, seed) for rate in RATES}


def trained(name, fold, data, seed, config, own):
    "Rows of one training, judged in every way under every mask; `own` are tuned settings, or None."
    torch.set_num_threads(chosen.threads)
    kit, seen = masks(data, seed)
    build, config = with_settings({**MODELS, "elsewhere": Elsewhere.of}[name], config, own or {})
    model = fit(data, model=build, seed=seed, kit=kit, config=config, progress=False)
    row = lambda how, hidden: dict(dataset=data.name, protocol=f"{hidden[0]}/mixed", rate=hidden[1], fold=fold, seed=seed, model=named(name), answers_from=how,
                                   weighted_f1=round(evaluate(model, data, observed=seen[hidden], seed=seed)["weighted_f1"], 5),
                                   mask_hash=kit.hash, data_hash=data.hash, epoch=model.history["epoch"], commit=chosen.commit or commit())
    rows = [row("as it is", hidden) for hidden in seen]
    if name != "gsdnet": return rows
    for how, way in WAYS.items():
        with answering(model, way): rows += [row(how, hidden) for hidden in (("fixed(text)", .5), ("random", .3), ("random", .5))]
    return rows


TRIALS = pd.read_csv(chosen.tuned) if chosen.tuned else None


def named(name): return name if TRIALS is None else f"{name}, best of {TRIALS['trial'].nunique()} trials"


def main():
    path = Path(chosen.out) / "starts.csv"
    done = {(row["model"], row["fold"], int(row["seed"])) for row in csv.DictReader(path.open(encoding="utf-8", newline=""))} if path.is_file() else set()
    config = TrainConfig(epochs=2) if chosen.quick else TrainConfig()
    data = load_dataset(chosen.data)
    own, judged = ({}, set()) if TRIALS is None else (best_trials(TRIALS, data.name), set(" ".join(TRIALS["folds"]).split()))
    todo = [(name, str(fold), part, 1000 * (1 + i) + start, config, own.get(name)) for start in range(chosen.first, chosen.first + (1 if chosen.quick else chosen.starts))
            for i, (fold, part) in enumerate(folds(data, 5)) if str(fold) not in judged for name in chosen.models.split(",")]
    todo = [t for t in todo if (named(t[0]), t[1], t[3]) not in done]
    for rows in joblib.Parallel(n_jobs=chosen.jobs, return_as="generator_unordered")(joblib.delayed(trained)(*t) for t in todo):
        keep(chosen, rows, path.name, KEY)
        print(*(f"{rows[0][k]}" for k in ("model", "fold", "seed")), *(f"{r['answers_from']} {r['weighted_f1']:.3f};" for r in rows if r["protocol"] == "fixed(text)/mixed"), flush=True)


if __name__ == "__main__": main()
