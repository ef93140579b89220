"""How a user names defects and how many of them: the grammar of `tfdeploy defect --defect`, which its --help describes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from triforces_deploy.defects.edits import VACANCY, number_of
from triforces_deploy.defects.holes import ANYWHERE, SITES, Site
from triforces_deploy.defects.kinds import Antisite, Complex, Frenkel, Kind, SplitVacancy, Term, Void
from triforces_deploy.errors import UserError

EXAMPLES = "V_Si, Ge_Si, Si_i, V_Si+Ge_Si, 4V, antisite, split_Ge, frenkel_Si, void_8"


@dataclasses.dataclass(frozen=True)
class Request:
    """One kind of defect and how many."""

    kind: Kind
    amount: str

    def count(self, atoms: Atoms) -> int:
        """How many that is in a perfect supercell; UserError for an amount that is none."""
        value, unit = _amount(self.amount, self.kind.name)
        if unit == "":
            return int(value)
        if unit == "/cm3":
            exact = value * atoms.get_volume() * 1e-24
        else:
            exact = value * (0.01 if unit == "%" else 1e-6) * int(self.kind.suits(atoms.numbers).sum())
        if value > 0 and exact < 0.5:
            raise UserError(f"{self.kind.name}:{self.amount} is less than one defect in {len(atoms)} atoms; use a larger cell")
        return int(np.rint(exact))


def parse(texts: Sequence[str], elements: Sequence[str]) -> list[Request]:
    """Requests as the user wrote them.

    Args:
        texts: each ``NAME`` or ``NAME:AMOUNT``.
        elements: of the perfect crystal; an antisite needs exactly two.

    Raises:
        UserError: a name or an amount outside the grammar.
    """
    requests = []
    for text in texts:
        name, _, amount = text.partition(":")
        request = Request(_kind(name, elements), amount or "1")
        _amount(request.amount, name)
        requests.append(request)
    return requests


def vacancies(text: str) -> str:
    """The name for ``--vacancies``: '100' or '0.1%' of any atom, 'Si:0.1%' of one element."""
    element, colon, amount = text.rpartition(":")
    return f"V_{element}:{amount}" if colon else f"V:{amount}"


def _amount(text: str, name: str) -> tuple[float, str]:
    match = re.fullmatch(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)(%|ppm|/cm3)?", text)
    if match is None or (match[2] is None and not match[1].isdecimal()):
        raise UserError(f"{name}: '{text}' is no amount; expected a count such as 100, or 0.1%, 20ppm, 1e18/cm3")
    value = float(match[1])
    if match[2] in ("%", "ppm") and value > (100 if match[2] == "%" else 1e6):
        raise UserError(f"{name}: {text} is more than all atoms")
    return value, match[2] or ""


def _kind(name: str, elements: Sequence[str]) -> Kind:
    words = name.split("_")
    if name == "antisite":
        if len(elements) != 2:
            raise UserError(f"an antisite needs a host of two elements; this one has {', '.join(elements)}; use a substitution")
        return Antisite(tuple(elements))
    if words[0] == "void" and len(words) == 2:
        return Void(_length(words[1], name))
    if words[0] == "split" and len(words) == 2:
        number_of(words[1])
        return SplitVacancy(words[1])
    if words[0] == "frenkel" and len(words) in (2, 3):
        number_of(words[1])
        return Frenkel(words[1], *(_length(x, name) for x in words[2:]))
    return Complex(tuple(term for part in name.split("+") for term in _terms(part, name)))


def _terms(part: str, name: str) -> list[Term]:
    match = re.fullmatch(r"(\d*)([A-Z][a-z]?)(?:_(i|[A-Z][a-z]?)(?:_(\w+))?)?", part)
    if match is None or (match[4] and match[3] != "i") or match[1] == "0":
        raise UserError(f"'{name}' is no defect; expected a name such as {EXAMPLES}")
    times, species, site, hole = match.groups()
    if species != VACANCY or site == "i":  # V_i would be vanadium between the atoms
        number_of(species)
    if site and site != "i":
        number_of(site)
    if site == species:
        raise UserError(f"'{name}' puts {species} on its own place; expected another element")
    return [Term(species, site or "", _site(hole, name))] * int(times or 1)


def _site(text: str | None, name: str) -> Site:
    for site in (*ANYWHERE, *SITES):
        if site == (text or "hole"):
            return site
    raise UserError(f"interstitial site '{text}' of {name} is unknown; choose one of {', '.join((*ANYWHERE, *SITES))}")


def _length(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1000 or not np.isfinite(value):
        raise UserError(f"'{name}': '{text}' is no length; expected Å, 1 to 1000")
    return value
