"""What a compiled form carries besides energies and forces, and the repulsion that export lays over a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.export.conftest import SMALLER
from tests.test_overlay import crowded
from tests.tiny import tiny_model
from triforces_deploy import artifact, checkpoint
from triforces_deploy.errors import UserError
from triforces_deploy.export.exporting import ExportOptions, export
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.training.uncertainty import with_spread


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_compiled_form_has_repulsion_uncertainty_and_embeddings(
    tmp_path: Path, precision: Literal["float64", "float32"]
) -> None:
    """Where atoms are so close that both parts of the energy count; verification itself never comes there."""
    model = tiny_model(SMALLER)
    spread = torch.diag(torch.linspace(0.01, 0.03, model.head.n_features, dtype=torch.float64))
    checkpoint.save(tmp_path / "a.ckpt", with_spread(model, spread), {})
    options = ExportOptions(precision=precision, backends=("torchscript",), embeddings=True, zbl="1.3,2.1")
    made = export(tmp_path / "a.ckpt", tmp_path / "a.pt", options)
    assert made.metadata.payloads[0].outputs[2:] == ("composition", "structure", "interaction", "uncertainty")
    assert all(row.uncertainty is not None and row.uncertainty < 1e-4 for row in made.metadata.parity)
    graph = graph_from_atoms(crowded(), SMALLER.cutoff)
    compiled, eager = (artifact.load(tmp_path / "a.pt", name) for name in ("torchscript", "eager"))
    new, old = compiled.evaluate(graph), eager.evaluate(graph)
    assert new.uncertainty is not None
    assert old.uncertainty is not None
    digits = 1e-11 if precision == "float64" else 1e-5
    torch.testing.assert_close(new.energies, old.energies, rtol=digits, atol=digits)
    torch.testing.assert_close(new.edge_forces, old.edge_forces, rtol=digits, atol=100 * digits)
    torch.testing.assert_close(new.uncertainty, old.uncertainty, rtol=10 * digits, atol=digits)
    plain = model(graph) - model.references[graph.numbers]
    faded = new.energies - model.references[graph.numbers]
    assert (faded - plain).abs().min() > 0.1  # of every atom
    features = torch.cat(list(compiled.embeddings(graph).values()), dim=1)
    assert features.shape == (8, 48)


def test_outputs_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.ckpt", tiny_model(SMALLER), {})
    made = export(tmp_path / "a.ckpt", tmp_path / "a.pt", ExportOptions(backends=("torchscript",)))
    for outputs in (("energies",), ("energies", "edge_forces", "uncertainty"), ("edge_forces", "energies")):
        info = dataclasses.replace(made.metadata.payloads[0], outputs=outputs)
        artifact.write(
            tmp_path / "b.pt", dataclasses.replace(made, metadata=dataclasses.replace(made.metadata, payloads=(info,)))
        )
        with pytest.raises(UserError, match="its outputs are not those of the model in it"):
            artifact.load(tmp_path / "b.pt")
