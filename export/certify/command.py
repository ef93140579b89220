"""`tfdeploy certify`: open a file, ask everything, store the answers in the file and on a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ase import Atoms

from triforces_deploy.artifact import read_artifact, remember, write
from triforces_deploy.certificate import Certificate, subject

from . import page
from .certifying import SECONDS, Report, certify
from .opening import open_subject


def certify_file(
    path: Path,
    checkpoint: Path | None = None,
    own: Mapping[str, Atoms] | None = None,
    out: Path | None = None,
    trust: bool = False,
    report: Report = lambda _line: None,
    seconds: float = SECONDS,
) -> Certificate:
    """Certify a file as it is; whoever trusts it goes on trusting it, since neither model nor code changes.

    Args:
        path: the artifact; rewritten with its certificate.
        checkpoint: what it was made from; its model is the reference then.
        own: structures of the user's, on which forms are compared too.
        out: where the page goes, if anywhere.
        trust: let compiled code of the file run, now and in future.
        report: called with a line at each stage.
        seconds: about how long everything may take.

    Raises:
        UserError: a file that cannot be read or written.
    """
    artifact = read_artifact(path)
    if trust:
        remember(artifact, str(path))
    report("opening every form")
    outcome = certify(open_subject(artifact, path, checkpoint, own), subject(artifact.metadata), report, seconds)
    if out is not None:
        page.write(outcome, path.name, out)
    write(path, dataclasses.replace(artifact, metadata=dataclasses.replace(artifact.metadata, certificate=outcome.certificate)))
    return outcome.certificate
