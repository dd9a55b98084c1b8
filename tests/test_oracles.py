"""Our spectra and our probability flow against programs that nobody here wrote: PyGSP, networkx, scipy."""
import networkx as nx
import numpy as np
import pytest
import torch
from pygsp import graphs
from scipy.integrate import solve_ivp
from scipy.linalg import eigh

from gsdnet.sampling import dpm_solver, heun, timesteps, velocity
from gsdnet.sde import CosineSDE, VESDE, VPSDE, gaussian_denoiser
from gsdnet.spectrum import gft, igft, normalize, rayleigh, recompose, spectrum

GRAPHS = {
    "karate club": nx.karate_club_graph(),
    "weighted small world": nx.watts_strogatz_graph(30, 4, .3, seed=1),
    "bipartite": nx.complete_bipartite_graph(4, 7),
    "with isolated nodes": nx.disjoint_union(nx.path_graph(6), nx.empty_graph(3)),
}
for number, (u, v) in enumerate(GRAPHS["weighted small world"].edges):
    GRAPHS["weighted small world"][u][v]["weight"] = .5 + number % 7


def weights(graph):
    return torch.from_numpy(nx.to_numpy_array(graph)).double()


@pytest.mark.parametrize("name", GRAPHS)
def test_normalisation_against_networkx(name):
    graph = GRAPHS[name]
    laplacian = nx.normalized_laplacian_matrix(graph).toarray() # rows of isolated nodes are zero in networkx
    connected = np.diag(weights(graph).sum(-1) > 0).astype(float)
    torch.testing.assert_close(normalize(weights(graph)), torch.from_numpy(connected - laplacian))


@pytest.mark.parametrize("name", ["karate club", "weighted small world", "bipartite"])
def test_spectrum_against_networkx(name):
    graph = GRAPHS[name]
    theirs = np.sort(1 - nx.normalized_laplacian_spectrum(graph))
    np.testing.assert_allclose(spectrum(normalize(weights(graph))).values, theirs, atol=1e-10)


@pytest.mark.parametrize("name", ["karate club", "weighted small world", "bipartite"])
def test_spectrum_and_transform_against_pygsp(name):
    W = weights(GRAPHS[name])
    theirs = graphs.Graph(W.numpy(), lap_type="normalized")
    theirs.compute_fourier_basis()
    ours = spectrum(normalize(W))
    np.testing.assert_allclose(1 - ours.values.numpy()[::-1], theirs.e, atol=1e-10)
    x = torch.randn(len(W), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # a basis is free within an eigenspace, so filters and energies per eigenvalue are compared, not coefficients
    response = lambda values: np.exp(2 * values)
    filtered = theirs.igft(response(1 - theirs.e) * theirs.gft(x[:, 0].numpy()))
    np.testing.assert_allclose(igft(torch.exp(2 * ours.values)[:, None] * gft(x, ours), ours)[:, 0], filtered, atol=1e-9)
    for value in np.unique(np.round(theirs.e, 8)):
        mine = gft(x, ours)[:, 0].numpy()[np.abs(1 - ours.values.numpy() - value) < 1e-6]
        their_share = theirs.gft(x[:, 0].numpy())[np.abs(theirs.e - value) < 1e-6]
        np.testing.assert_allclose(np.sum(mine**2), np.sum(their_share**2), atol=1e-10)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_pygsp_ring_and_path_in_closed_form(n):
    for graph, values in ((graphs.Path(n), np.cos(np.pi * np.arange(n) / (n - 1))),
                          (graphs.Ring(n + 1), np.cos(2 * np.pi * np.arange(n + 1) / (n + 1)))):
        W = torch.from_numpy(graph.W.toarray()).double()
        np.testing.assert_allclose(spectrum(normalize(W)).values, np.sort(values), atol=1e-10)


def test_low_rank_against_numpy_svd():
    S = normalize(weights(GRAPHS["karate club"]))
    U, s, Vt = np.linalg.svd(S.numpy())
    for k in (1, 5, 20, 34):
        theirs = np.linalg.norm(S.numpy() - (U[:, :k] * s[:k]) @ Vt[:k])
        assert np.linalg.norm(S.numpy() - recompose(spectrum(S, k)).numpy()) == pytest.approx(theirs, abs=1e-10)


def test_rayleigh_of_a_pencil_against_scipy():
    "In the basis that scipy's generalised solver returns for (A, I), the quotients are its eigenvalues."
    A = normalize(weights(GRAPHS["weighted small world"]))
    values, vectors = eigh(A.numpy(), np.eye(len(A)))
    ours = spectrum(A)
    ours.vectors = torch.from_numpy(vectors)
    np.testing.assert_allclose(rayleigh(A, ours), values, atol=1e-10)


MEAN = torch.tensor([.5, -1., 2.], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.2, .8, 0.], [.8, .9, .1], [0., .1, .25]], dtype=torch.float64)


def flow_by_scipy(sde, denoise, x, t_start, t_end):
    "The probability flow from `t_start` to `t_end`, by scipy's adaptive eighth-order Runge-Kutta."
    def slope(t, flat):
        t, state = torch.tensor(t, dtype=torch.float64), torch.from_numpy(flat).reshape(x.shape)
        return velocity(sde, state, denoise(state, t), t).numpy().ravel()
    solved = solve_ivp(slope, (t_start, t_end), x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    assert solved.success
    return torch.from_numpy(solved.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("sde", [CosineSDE(), VPSDE(), VESDE()], ids=["cosine", "vp", "ve"])
def test_flow_of_gaussian_data_in_closed_form_against_scipy(sde):
    denoise, start = gaussian_denoiser(sde, MEAN, COVARIANCE), torch.tensor(sde.t_max, dtype=torch.float64)
    x = sde.sample_prior(torch.zeros(20, 3, dtype=torch.float64), torch.Generator().manual_seed(0))
    values, U = torch.linalg.eigh(COVARIANCE)
    end = torch.tensor(.01, dtype=torch.float64)
    ratio = ((sde.alpha(end)**2 * values + sde.sigma(end)**2) / (sde.alpha(start)**2 * values + sde.sigma(start)**2)).sqrt()
    exact = sde.alpha(end) * MEAN + ((x - sde.alpha(start) * MEAN) @ U * ratio) @ U.mT
    torch.testing.assert_close(flow_by_scipy(sde, denoise, x, 1., .01), exact, rtol=1e-6, atol=1e-6)


def mixture(sde, centres, width):
    "Conditional mean for an equal mixture of normals: a flow without a closed form."
    def denoise(x, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = alpha**2 * width**2 + sigma**2
        off = x[..., None] - alpha * centres
        weight = (-off**2 / (2 * variance)).softmax(-1)
        return (weight * (centres + alpha * width**2 / variance * off)).sum(-1)
    return denoise


@pytest.mark.parametrize("sampler", [heun, dpm_solver])
def test_solvers_against_scipy_where_no_closed_form_exists(sampler):
    sde = CosineSDE()
    denoise = mixture(sde, torch.tensor([-1., .3, 1.5], dtype=torch.float64), .3)
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = flow_by_scipy(sde, denoise, x, 1., .02)
    coarse, fine = (sampler(denoise, x, timesteps(n, 1., .02), sde=sde) for n in (100, 400))
    assert (fine - theirs).abs().max() < 2e-3
    assert (fine - theirs).abs().max() < (coarse - theirs).abs().max() / 5 # order above one: a fourth of the step, well under a fourth of the error
