"""What a pickled torch module of another project holds, read without that project and without running any of its code.

``torch.save(model)`` names classes and functions. Those that make tensors and plain containers are what they are; for any
other a stand-in is made, which keeps what it was given. So an attribute of a module is found although its class is not here.
"""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triforces_deploy.errors import UserError
from triforces_deploy.files import existing

KEPT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
"""What a pickle may really call, beside the storages that torch itself looks up: (module, name) → the thing."""


class StandIn:
    """An object of a class that is not here, or what a function that is not here would have given."""

    path = ""
    """'module.Name' of the class or function."""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_named: Any) -> StandIn:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, {}
        return made

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        """Everything is kept by ``__new__``, which alone the pickle calls in most cases."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """Items of a foreign mapping are not needed."""

    def append(self, _item: Any) -> None:
        """Nor are those of a foreign list."""

    def extend(self, _items: Any) -> None:
        """See append."""

    @property
    def name(self) -> str:
        """Of the class, without its module."""
        return self.path.rpartition(".")[2]

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, parameter, buffer or submodule by name; ``a.b.c`` goes down."""
        first, _, rest = attribute.partition(".")
        found = default
        for place in (self.state, *(self.state.get(group, {}) for group in ("_parameters", "_buffers", "_modules"))):
            if first in place:
                found = place[first]
        return found.get(rest, default) if rest and isinstance(found, StandIn) else default if rest else found

    def tensors(self, group: str, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor of ``group`` ('_parameters' or '_buffers') with its full name, as in a state dict."""
        for key, value in self.state.get(group, {}).items():
            if isinstance(value, Tensor):
                yield prefix + key, value.detach()
        for key, module in self.state.get("_modules", {}).items():
            if isinstance(module, StandIn) and isinstance(module.state, dict):
                yield from module.tensors(group, f"{prefix}{key}.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KEPT:
            return KEPT[module, name]
        return type("StandIn", (StandIn,), {"path": f"{module}.{name}"})


def read_object(path: Path, what: str) -> StandIn:
    """The pickled object in a file.

    Args:
        path: the file.
        what: what is expected, e.g. 'a MACE model'.

    Raises:
        UserError: no such file, no pickled object, or damaged.
    """
    content = _loaded(path, what)
    if isinstance(content, dict):
        raise UserError(f"{path} holds weights without the model they belong to; give the file of the whole model")
    if not isinstance(content, StandIn) or not isinstance(content.state, dict):
        raise UserError(f"{path} holds no model; expected {what}")
    return content


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """The state dict in a file, tensors by name; UserError as :func:`read_object` raises it, and where it is none."""
    content = _loaded(path, what)
    if not isinstance(content, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise UserError(f"{path} holds no weights by name; expected {what}")
    return dict(content)


def _loaded(path: Path, what: str) -> Any:
    existing(path, what)
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a file that torch saved, or it is damaged; expected {what}")
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise UserError(f"{path} is a TorchScript program, which has lost its parts; give the file it was compiled from")
    reader = types.SimpleNamespace(Unpickler=_Unpickler, __name__="stand-ins")
    load: Callable[..., Any] = torch.load
    try:
        return load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # a damaged archive fails in its own way at every byte
        raise UserError(f"{path} is damaged ({type(error).__name__} while reading it); copy it again") from error


def read(path: Path, what: str) -> StandIn:
    """The pickled module in a file; UserError as :func:`read_object` raises it, and where it is no module."""
    content = read_object(path, what)
    if "_modules" not in content.state:
        raise UserError(f"{path} holds no model; expected {what}")
    return content
