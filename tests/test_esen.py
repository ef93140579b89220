"""eSEN against the public package, from positions to forces, through stored numbers (fixtures/esen); and its symmetry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from triforces_deploy import derivatives
from triforces_deploy.backbones.esen import ESEN, ESENConfig
from triforces_deploy.config import BackboneConfig, ModelConfig, read
from triforces_deploy.errors import UserError
from triforces_deploy.model import Model
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.nn.edge_frames import EdgeFrames, frame_rows
from triforces_deploy.nn.sphere import SphereGrid
from triforces_deploy.nn.spherical import e3nn_component

FIXTURES = Path(__file__).parent / "fixtures" / "esen"
CUTOFF = 5.0
STRUCTURES = ["molecule", "crystal", "straight", "tiny", "triclinic", "isolated"]


def load(name: str) -> tuple[Model, dict[str, np.ndarray]]:
    """A model with this backbone alone and the public readout, which is the one we have."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        golden = dict(file)
    options = json.loads(str(golden["options"]))
    elements = ("H", "C", "O", "Na", "Si", "Cl", "Ca", "Ti", "Cu", "Xe")
    hidden = (options["hidden"],) * 2
    config = ModelConfig(elements, CUTOFF, BackboneConfig("esen", options), None, None, head_hidden=hidden)
    model = Model(config)
    weights = {f"interaction.{k.removeprefix('weight/')}": v for k, v in golden.items() if k.startswith("weight/")}
    weights |= {f"head.layers.{k.removeprefix('head/')}": v for k, v in golden.items() if k.startswith("head/")}
    state = {k: torch.from_numpy(v) for k, v in weights.items()}
    model.load_state_dict(state | {"references": model.references, "scale": model.scale})
    return model.eval().requires_grad_(False), golden


def backbone_of(model: Model) -> ESEN:
    assert isinstance(model.interaction, ESEN)
    return model.interaction


def rotations() -> list[Tensor]:
    """Proper and improper ones, (3, 3) float64: random, the inversion, and quarter turns that map axes onto axes."""
    random = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 3, 3)))[0]
    turns = [np.eye(3)[[1, 2, 0]], np.diag([-1.0, 1.0, -1.0]), -np.eye(3), np.diag([1.0, -1.0, 1.0])]
    return [torch.from_numpy(np.ascontiguousarray(r)) for r in [*random, *turns]]


def atoms_of(golden: dict[str, np.ndarray], key: str) -> Atoms:
    return Atoms(
        golden[f"numbers/{key}"],
        positions=golden[f"positions/{key}"],
        cell=golden[f"cell/{key}"],
        pbc=golden[f"pbc/{key}"],
    )


def deviation(found: Tensor, expected: np.ndarray) -> float:
    """Largest, relative to the largest value."""
    return float(np.abs(found.numpy() - expected).max() / max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize("key", STRUCTURES)
@pytest.mark.parametrize("name", ["small", "large", "grid"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_everything_equals_the_public_package(name: str, key: str, dtype: torch.dtype, tolerance: float) -> None:
    model, golden = load(name)
    model.set_network_dtype(dtype)
    atoms = atoms_of(golden, key)
    graph = graph_from_atoms(atoms, CUTOFF)
    found = derivatives.evaluate(model, graph)
    results = {
        "energies": found.energies,
        "forces": derivatives.forces(found.edge_forces, graph),
        "features": backbone_of(model).coefficients(graph),
    }
    if atoms.pbc.all():
        results["stress"] = derivatives.stress(found.edge_forces, graph)[0]
    for quantity, value in results.items():
        assert deviation(value, golden[f"{quantity}/{key}"]) <= tolerance, quantity


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("mirrors", [False, True])
def test_scalars_stay_and_vectors_turn_with_the_structure(name: str, mirrors: bool) -> None:
    """A molecule with edges exactly along x, y and z, whose axes some of the rotations exchange.

    The complex maps of eSEN tell a structure from its mirror image, as the public package's do; with real ones it does not.
    """
    model, golden = load(name)
    model.set_network_dtype(torch.float64)
    if mirrors:
        for layer_name, parameter in model.interaction.named_parameters():
            if ".pairs." in layer_name:
                parameter.chunk(2)[1].zero_()
    atoms = atoms_of(golden, "molecule")
    atoms += Atoms("OCu", positions=atoms.positions[1] + [[1.9, 0.0, 0.0], [0.0, -2.1, 0.0]])
    graph = graph_from_atoms(atoms, CUTOFF)
    expected = backbone_of(model).coefficients(graph)
    forces = derivatives.forces(derivatives.evaluate(model, graph).edge_forces, graph)
    for rotation in rotations():
        turned = graph._replace(edge_vector=graph.edge_vector @ rotation.T)
        found = backbone_of(model).coefficients(turned)
        if torch.linalg.det(rotation) < 0 and not mirrors:
            assert (found[:, 0] - expected[:, 0]).abs().max() > 1e-4
            continue
        torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[:, 1:4], rotation @ expected[:, 1:4], rtol=0, atol=1e-12)
        turned_forces = derivatives.forces(derivatives.evaluate(model, turned).edge_forces, graph)
        torch.testing.assert_close(turned_forces, forces @ rotation.T, rtol=0, atol=1e-11 * float(forces.abs().max()))


def test_frames_turn_every_direction_onto_the_axis() -> None:
    """All degrees, also at and beside the poles and where the construction changes (y = 0)."""
    for l_max, m_max in [(1, 0), (2, 2), (4, 3), (6, 6)]:
        frames = EdgeFrames(l_max, m_max)
        directions = torch.cat([torch.eye(3), -torch.eye(3), torch.randn(40, 3)]).double()
        directions[6:10, 1] = torch.tensor([0.0, 1e-12, -1e-12, 1e9])
        unit = directions / directions.norm(dim=1, keepdim=True)
        matrices = frames(unit)
        upright = e3nn_component(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), l_max)[0]
        rows = [degree * (degree + 1) + m for degree, m in frame_rows(l_max, m_max)]
        turned = matrices @ e3nn_component(unit, l_max)[:, :, None]
        torch.testing.assert_close(turned[:, :, 0], upright[rows].expand(len(unit), -1), rtol=0, atol=1e-13 * 4**l_max)
        identity = torch.eye(len(rows), dtype=torch.float64).expand(len(unit), -1, -1)
        torch.testing.assert_close(matrices @ matrices.transpose(1, 2), identity, rtol=0, atol=1e-13 * 4**l_max)


@pytest.mark.parametrize("name", ["small", "large"])
def test_gradients_at_the_poles_are_those_beside_them(name: str) -> None:
    """Dimers along ±x, ±y and ±z: the force lies along the bond and equals the central difference of the energy."""
    model, _ = load(name)
    model.set_network_dtype(torch.float64)
    for axis in torch.cat([torch.eye(3), -torch.eye(3)]).double().numpy():

        def energy(r: float, axis: np.ndarray = axis) -> tuple[float, np.ndarray]:
            graph = graph_from_atoms(Atoms("CO", positions=[[0.0, 0.0, 0.0], r * axis]), CUTOFF)
            found = derivatives.evaluate(model, graph)
            return float(found.energies.sum()), derivatives.forces(found.edge_forces, graph)[1].numpy()

        force = energy(1.3)[1]
        slope = (energy(1.3 + 1e-4)[0] - energy(1.3 - 1e-4)[0]) / 2e-4
        np.testing.assert_allclose(force, -slope * axis, rtol=0, atol=1e-8 * abs(slope))


def test_a_frozen_backbone_passes_on_what_forces_say_of_a_head() -> None:
    """Frozen, it computes again for the derivative what it does not remember; trained, it remembers everything."""
    gradients = []
    for trained in (False, True):
        model, golden = load("small")
        model.set_network_dtype(torch.float64)
        model.interaction.requires_grad_(trained)
        model.head.requires_grad_(True)
        graph = graph_from_atoms(atoms_of(golden, "molecule"), CUTOFF)
        found = derivatives.evaluate(model, graph, create_graph=True)
        loss = derivatives.forces(found.edge_forces, graph).square().sum()
        gradients.append(torch.autograd.grad(loss, [model.head.layers[0].weight, model.head.layers[2].weight]))
    for frozen, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(frozen, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_a_finer_grid_commutes_better_with_rotations() -> None:
    turn = rotations()[0]
    errors = []
    for resolution in (6, 20):
        torch.manual_seed(0)
        options = {"channels": 4, "hidden": 4, "edge_channels": 4, "n_layers": 1, "feed_forward": "grid"}
        config = read(ESENConfig, {**options, "grid_resolution": resolution}, "options")
        backbone = ESEN(config, CUTOFF).double().requires_grad_(False)
        graph = graph_from_atoms(molecule("CH3CH2OH"), CUTOFF)
        turned = graph._replace(edge_vector=graph.edge_vector @ turn.T)
        errors.append(float((backbone(turned) - backbone(graph)).abs().max()))
    assert errors[1] < 1e-8 < errors[0]


def test_tables_are_not_rounded_with_the_network() -> None:
    grid = SphereGrid(2, 6, 7).float().double()
    coefficients = torch.randn(3, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(grid.coefficients(grid.points(coefficients)), coefficients, rtol=0, atol=1e-14)


def parameters(**options: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ESEN(read(ESENConfig, options, "options"), cutoff=6.0).parameters())


def test_sizes_have_the_published_numbers_of_parameters() -> None:
    """Public tables of elements end at 100, ours at 118; the public readout is two hidden layers of the same width."""
    tables, readout = 19 * 3 * 128, 2 * (128 * 128 + 128) + 129
    assert round((parameters() - tables + readout) / 1e6, 2) == 6.33  # eSEN-sm
    large = parameters(system="none", n_layers=10, l_max=3, m_max=2)
    assert round((large - tables + readout) / 1e6, 1) == 30.2  # eSEN-30M


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"l_max": 99}, "l_max can be at most"),
        ({"m_max": 3}, "m_max must be from 0 to l_max = 2, got 3"),
        ({"n_gaussians": 1}, "n_gaussians must be at least 2"),
        ({"feed_forward": "grid", "grid_resolution": 5}, "grid_resolution must be even and at least 6, got 5"),
        ({"system": "waves", "channels": 7}, "even number of channels"),
        ({"charge": 101}, "charge must be from -100 to 100"),
        ({"spin": -1}, "spin must be from 0"),
        ({"system": "none", "charge": 1}, "knows no charge"),
        ({"datasets": ("a", "b")}, "dataset must be one of a, b; got None"),
        ({"dataset": "a"}, "datasets names none"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ESEN(ESENConfig(**options), cutoff=6.0)  # type: ignore[arg-type]
