"""Properties of graph operators and their spectra for random graphs, drawn by hypothesis."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from gsdnet.spectrum import (Spectrum, davis_kahan_bound, eigengaps, gft, igft, normalize, rayleigh, recompose, spectrum,
                             weyl_bound)

repeatable = settings(max_examples=60, deadline=None, derandomize=True)

WEIGHTS = st.one_of(st.just(0.), st.floats(1e-3, 1e3)) # absent links and strengths over six decades


@st.composite
def adjacencies(draw, max_nodes=9):
    n = draw(st.integers(1, max_nodes))
    A = np.triu(draw(hnp.arrays(np.float64, (n, n), elements=WEIGHTS)))
    return torch.from_numpy(A + np.triu(A, 1).T)


@st.composite
def symmetric_pairs(draw):
    "An operator and a symmetric perturbation of the same size."
    A = normalize(draw(adjacencies()))
    E = draw(hnp.arrays(np.float64, A.shape, elements=st.floats(-1, 1)))
    return A, torch.from_numpy(E + E.T) * draw(st.sampled_from([1e-4, 1e-2, 1.]))


def signal(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@repeatable
@given(adjacencies())
def test_spectrum_lies_within_one_and_reaches_it(A):
    S = normalize(A)
    assert S.dtype == torch.float64 and S.equal(S.mT) and S.isfinite().all()
    values = spectrum(S).values
    assert values.abs().max() <= 1 + 1e-12 and values.diff().ge(0).all()
    if A.any(): assert values[-1] == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(S[A.sum(-1) == 0], torch.zeros_like(S[A.sum(-1) == 0]))


@repeatable
@given(adjacencies(), st.floats(1e-3, 1e3))
def test_the_unit_of_weights_does_not_matter(A, unit):
    torch.testing.assert_close(normalize(A * unit), normalize(A))


@repeatable
@given(adjacencies())
def test_transform_is_invertible_and_keeps_energy(A):
    spec, x = spectrum(normalize(A)), signal(len(A))
    torch.testing.assert_close(igft(gft(x, spec), spec), x)
    torch.testing.assert_close(gft(x, spec).square().sum(), x.square().sum())
    torch.testing.assert_close(recompose(spec), normalize(A), atol=1e-10, rtol=0)
    torch.testing.assert_close(spec.vectors.mT @ spec.vectors, torch.eye(len(A), dtype=torch.float64), atol=1e-10, rtol=0)


@repeatable
@given(adjacencies(), st.randoms(use_true_random=False))
def test_relabelling_nodes_permutes_operators_and_filters(A, random):
    order = list(range(len(A)))
    random.shuffle(order)
    S, P = normalize(A), normalize(A[order][:, order])
    torch.testing.assert_close(P, S[order][:, order])
    ours, theirs = spectrum(S), spectrum(P)
    torch.testing.assert_close(theirs.values, ours.values, atol=1e-10, rtol=0)
    filtered, x = recompose(ours, ours.values.exp()), signal(len(A))
    torch.testing.assert_close(recompose(theirs, theirs.values.exp()), filtered[order][:, order], atol=1e-9, rtol=0)
    torch.testing.assert_close(recompose(theirs, theirs.values.exp()) @ x[order], (filtered @ x)[order], atol=1e-8, rtol=0)


@repeatable
@given(adjacencies(), st.integers(0, 2**9 - 1))
def test_signs_of_eigenvectors_do_not_matter(A, bits):
    spec, x = spectrum(normalize(A)), signal(len(A))
    sign = torch.tensor([1. - 2 * (bits >> k & 1) for k in range(len(A))], dtype=torch.float64)
    flipped = Spectrum(spec.values, spec.vectors * sign)
    assert recompose(flipped).equal(recompose(spec))
    torch.testing.assert_close(rayleigh(normalize(A), flipped), rayleigh(normalize(A), spec))
    assert gft(x, flipped).abs().equal(gft(x, spec).abs())


@repeatable
@given(adjacencies(), adjacencies())
def test_padding_changes_nothing(A, B):
    size = max(len(A), len(B))
    specs = [spectrum(normalize(M)) for M in (A, B)]
    pads = [size - len(M) for M in (A, B)]
    pad = torch.nn.functional.pad
    batch = Spectrum(torch.stack([pad(s.values, (0, p)) for s, p in zip(specs, pads)]),
                     torch.stack([pad(s.vectors, (0, p, 0, p)) for s, p in zip(specs, pads)]))
    assert batch.valid.sum(-1).tolist() == [len(A), len(B)]
    x = torch.stack([pad(signal(len(M), seed=i), (0, 0, 0, p)) for i, (M, p) in enumerate(zip((A, B), pads))])
    for i, (M, spec) in enumerate(zip((A, B), specs)):
        n = len(M)
        torch.testing.assert_close(gft(x, batch)[i, :n], gft(x[i, :n], spec), atol=1e-12, rtol=0)
        assert not gft(x, batch)[i, n:].any() and not recompose(batch)[i, n:].any()
        k = min(2, size)
        torch.testing.assert_close(recompose(batch.truncate(k))[i, :n, :n], recompose(spec.truncate(k)), atol=1e-12, rtol=0)


@repeatable
@given(adjacencies(), st.integers(1, 9))
def test_truncation_keeps_the_most_energy_that_rank_k_can(A, k):
    S = normalize(A)
    values = spectrum(S).values.abs().sort(descending=True).values
    kept = spectrum(S, k)
    assert len(kept) == kept.rank == min(k, len(A)) and kept.values.diff().ge(0).all()
    torch.testing.assert_close((S - recompose(kept)).square().sum(), values[k:].square().sum(), atol=1e-10, rtol=0)


@repeatable
@given(symmetric_pairs())
def test_rayleigh_is_the_best_diagonal(pair):
    A, E = pair
    spec, other = spectrum(A), A + E
    best = rayleigh(other, spec)
    residual = (other - recompose(spec, best)).square().sum()
    torch.testing.assert_close(best.square().sum() + residual, other.square().sum(), atol=1e-9, rtol=1e-9)
    for seed in range(3): assert (other - recompose(spec, best + .1 * signal(len(A), 1, seed)[:, 0])).square().sum() >= residual


@repeatable
@given(symmetric_pairs())
def test_rayleigh_passes_gradients_to_the_operator(pair):
    A, E = pair
    spec, operator = spectrum(A), (A + E).requires_grad_()
    rayleigh(operator, spec)[-1].backward()
    u = spec.vectors[:, -1]
    torch.testing.assert_close(operator.grad, torch.outer(u, u))


@repeatable
@given(symmetric_pairs())
def test_bounds_of_weyl_and_davis_kahan_hold(pair):
    A, E = pair
    clean, noisy = spectrum(A), spectrum(A + E)
    assert (noisy.values - clean.values).abs().max() <= weyl_bound(E) + 1e-9
    if len(A) < 2: return
    sine = (1 - (clean.vectors * noisy.vectors).sum(0).square()).clamp_min(0).sqrt()
    gaps = eigengaps(clean.values)
    isolated = gaps > 1e-6 # where an eigenvalue repeats, an eigenvector is not defined and the bound says nothing
    assert (sine <= davis_kahan_bound(E, gaps) + 1e-6)[isolated].all()


@repeatable
@given(adjacencies(max_nodes=6), adjacencies(max_nodes=6))
def test_a_batch_is_its_members(A, B):
    n = min(len(A), len(B))
    both = torch.stack([A[:n, :n], B[:n, :n]])
    S = normalize(both)
    for i in range(2):
        torch.testing.assert_close(S[i], normalize(both[i]))
        torch.testing.assert_close(recompose(spectrum(S, 3))[i].square().sum(), recompose(spectrum(S[i], 3)).square().sum())


@repeatable
@given(adjacencies(), st.floats(1e-3, 1e3))
def test_asymmetry_and_negative_weights_are_refused(A, amount):
    if len(A) == 1: return
    crooked = A.clone()
    crooked[0, 1] += max(amount, 1e-3 * float(A.max()))
    with pytest.raises(ValueError, match="asymmetric"): normalize(crooked)
    with pytest.raises(ValueError, match="asymmetric"): spectrum(crooked)
    with pytest.raises(ValueError, match="negative"): normalize(-A - amount)
    with pytest.raises(ValueError, match="NaN"): normalize(A / 0)
