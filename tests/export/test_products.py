"""What Inductor makes of products with large matrices: calls of oneDNN with matrices as they are, and the same numbers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from triforces_deploy.export.backends.products import by_onednn


class Products(nn.Module):
    """A matrix, its transpose, a piece of one, a bias, and a sum that Inductor takes for a bias with rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(160, 384)), nn.Parameter(torch.randn(160))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, _ = self.weight.chunk(3, dim=1)
        hidden = torch.addmm(self.bias, x, first.t())
        wide = torch.mm(hidden, self.weight)
        narrow = torch.mm(wide, self.weight.t())
        return torch.mm(narrow, second) + x, torch.mm(x, self.weight[:4, :128].t())


@pytest.mark.filterwarnings("ignore")  # Inductor's remarks on its own internals
def test_compiled_products_are_those_of_torch(tmp_path: Path) -> None:
    module, package = Products(), tmp_path / "model.pt2"
    rows = {0: torch.export.Dim("rows", min=0)}
    with by_onednn():
        exported = torch.export.export(module, (torch.randn(9, 128),), dynamic_shapes=(rows,))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
    with zipfile.ZipFile(package) as archive:
        source = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("wrapper.cpp"))
    assert source.count(b"__linear_pointwise(") == 4  # all but the last, whose matrix is small
    run = torch._C._aoti.AOTIModelPackageLoader(str(package), "model", True, 1, -1).run
    for n in (0, 1, 77):
        x = torch.randn(n, 128)
        exact = [t.float() for t in module.double()(x.double())]
        module.float()
        for found, expected in zip(run([x]), exact, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max() if n else 0))
