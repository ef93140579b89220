"""Damaged and forged files against the readers: an error of one line or an equal result, never a crash or a wrong number.

    python benchmarks/fuzz.py 10000

Artifacts and checkpoints of a tiny model are changed at random, read and evaluated in worker processes of limited memory.
Changes of the kind 'forged' come with right hashes: such a file is another model, and its numbers are its own; it may still
not crash, hang, or take memory.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk

from triforces_deploy import artifact, checkpoint
from triforces_deploy.contents import hash_weights
from triforces_deploy.derivatives import Evaluation
from triforces_deploy.errors import UserError
from triforces_deploy.neighbours import graph_from_atoms
from triforces_deploy.potential import Potential
from triforces_deploy.unified import Unified

MEMORY = 2 << 30
"""Bytes a reader may take beyond what the process has at its start."""
SLOW = 60.0
"""Seconds for one file."""
BATCH = 1000
"""Files between two starts of a process."""
GRAPH = graph_from_atoms(bulk("Si", "diamond", 5.3, cubic=True), 4.0)

Mutation = Callable[[bytes, bytes, random.Random], bytes]


def flip_bits(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_bits_of_the_directory(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    """Where sizes, offsets and names are."""
    changed, start = bytearray(content), content.find(b"PK\x01\x02")
    for _ in range(rng.choice((1, 2, 4))):
        changed[rng.randrange(start, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def zero_a_range(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    size = min(len(content) - start, rng.choice((1, 16, 512, 8192)))
    return content[:start] + bytes(size) + content[start + size :]


def splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    at = rng.randrange(min(len(content), len(other)))
    return content[:at] + other[at:]


def cut_out(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 2, 64, 4096)) :]


def entries_of(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def archive_of(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an entry twice is meant
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def edit_archive(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Entries removed, doubled, exchanged, renamed, taken from another file, cut, grown or compressed; right checksums."""
    entries, method = entries_of(content), zipfile.ZIP_STORED
    for _ in range(rng.choice((1, 1, 2))):
        k, j = rng.randrange(len(entries)), rng.randrange(len(entries))
        (name, data), action = entries[k], rng.randrange(9)
        if action == 0 and len(entries) > 1:
            del entries[k]
        elif action == 1:
            entries.append((name, entries[j][1]))
        elif action == 2:
            entries[k], entries[j] = (name, entries[j][1]), (entries[j][0], data)
        elif action == 3:
            entries[k] = (rng.choice((f"../{name}", f"/{name}", name.upper(), "", name + "x")), data)
        elif action == 4:
            entries[k] = (name, rng.choice(entries_of(other))[1])
        elif action == 5:
            entries[k] = (name, data[: rng.randrange(len(data) + 1)])
        elif action == 6:
            entries[k] = (name, data + bytes(rng.choice((1, 8, 100_000))))
        elif action == 7:
            method = zipfile.ZIP_DEFLATED
        else:
            entries[k] = (name, flip_bits(data, b"", rng) if data else b"x")
    return archive_of(entries, method)


def edit_pickle(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    """Opcodes, arguments and sizes of the description, under a right checksum."""
    entries = entries_of(content)
    k = next(k for k, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    code = bytearray(entries[k][1])
    for _ in range(rng.choice((1, 1, 2, 6))):
        at, action = rng.randrange(len(code)), rng.randrange(4)
        if action == 0:
            code[at] = rng.choice(b"(.0QRbcio}])tu\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x93\x95\x96hjqrKJMNGXU")
        elif action == 1:
            code[at] = rng.randrange(256)
        elif action == 2:
            code[at:at] = rng.choice((b"0", b"2", b"h\x01", b"J\xff\xff\xff\x7f", b"cos\nsystem\n", b"\x8b\xff\xff\xff\x7f"))
        else:
            del code[at : at + rng.choice((1, 2, 5, 40))]
    entries[k] = (entries[k][0], bytes(code))
    return archive_of(entries)


def edit_sizes(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    """Small integers of the description, which are sizes, strides and offsets of tensors."""
    entries = entries_of(content)
    k = next(k for k, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    code = bytearray(entries[k][1])
    places = [at for at in range(len(code) - 2) if code[at : at + 1] == b"K"]
    at = rng.choice(places)
    if rng.random() < 0.5:
        code[at + 1] = rng.randrange(256)
    else:
        code[at : at + 2] = b"J" + struct.pack("<i", rng.choice((-1, -(2**31), 2**31 - 1, 0, 1 << 20)))
    entries[k] = (entries[k][0], bytes(code))
    return archive_of(entries)


ODD_NUMBERS = (True, -1, 0, 1, 3, 10**9, 10**40, 1e300, 0.5, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (*ODD_NUMBERS, None, "", "Si", "aoti", [], [[]], {})


def forge(content: bytes, _other: bytes, rng: random.Random) -> bytes:
    """One or two values of the file's JSON or tensors changed, and every hash made right again."""
    loaded = torch.load(io.BytesIO(content), weights_only=False)
    state = loaded.state if isinstance(loaded, Unified) else loaded
    texts = [key for key in ("metadata", "config", "provenance") if key in state]
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.85:
            key = rng.choice(texts)
            data = json.loads(state[key])
            holder, name = rng.choice(list(places_in(data)))
            if rng.random() < 0.15 and isinstance(holder, dict):
                del holder[name]
            else:
                holder[name] = rng.choice(ODD)
            state[key] = json.dumps(data)
        else:
            change_tensor(state["weights" if "weights" in state else "state"], rng)
    return resealed(state)


def places_in(data: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield data, key
        yield from places_in(data[key])


def change_tensor(weights: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(list(weights))
    tensor = weights[name]
    weights[name] = rng.choice(
        (
            tensor.to(torch.float16),
            tensor[None],
            torch.full_like(tensor, float("nan")),
            tensor.flatten()[:1].expand(1 << 33) if tensor.numel() else tensor,
            "text",
        )
    )


def resealed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    if "metadata" not in state:
        del state["sha256"]
        torch.save(state, buffer)
        return buffer.getvalue()
    data = json.loads(state["metadata"])
    weights = state["weights"]
    if all(isinstance(tensor, torch.Tensor) and tensor.numel() < 1 << 30 for tensor in weights.values()):
        data["weights_sha256"] = hash_weights(weights)
    facts = data.get("facts")
    if isinstance(facts, dict) and isinstance(facts.get("elements"), list):
        state["element_types"], state["cutoff"] = facts["elements"], facts.get("cutoff")
    state["metadata"] = json.dumps(data)
    state["metadata_sha256"] = hashlib.sha256(state["metadata"].encode()).hexdigest()
    unified = Unified.__new__(Unified)
    unified.state = state
    torch.save(unified, buffer)
    return buffer.getvalue()


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits_of_the_directory,
    truncate,
    zero_a_range,
    splice,
    cut_out,
    edit_archive,
    edit_pickle,
    edit_sizes,
    forge,
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    seed: int
    mutation: str
    kind: str
    """'error', 'equal', 'forged' (another model, finite or not), or a failure: 'wrong', 'exception', 'slow', 'memory'."""
    detail: str = ""


FAILURES = ("wrong", "exception", "slow", "memory", "crash")


def evaluate(path: Path, is_artifact: bool) -> Evaluation:
    if is_artifact:
        return artifact.load(path).evaluate(GRAPH)
    model, _ = checkpoint.load(path)
    return Potential(model.facts(), model.run, "eager").evaluate(GRAPH)


_expected: dict[Path, tuple[bytes, Evaluation]] = {}


def attempt(seed: int, sources: tuple[Path, ...], folder: Path) -> Outcome:
    """Change a file as the seed says, and read it."""
    rng = random.Random(seed)
    for source in sources:
        if source not in _expected:
            _expected[source] = source.read_bytes(), evaluate(source, source.suffix == ".pt")
    source, other = rng.choice(sources), rng.choice(sources)
    mutate = MUTATIONS[seed % len(MUTATIONS)]
    content, _ = _expected[source]
    path = folder / f"{os.getpid()}{source.suffix}"
    path.write_bytes(mutate(content, _expected[other][0], rng))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    kind, detail = _judged(path, [found for _, found in _expected.values()], mutate is forge)
    if time.perf_counter() - start > SLOW:
        kind, detail = "slow", f"{time.perf_counter() - start:.0f} s"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > MEMORY:
        kind, detail = "memory", "resident"
    return Outcome(seed, mutate.__name__, kind, detail)


def _judged(path: Path, known: list[Evaluation], forged: bool) -> tuple[str, str]:
    try:
        found = evaluate(path, path.suffix == ".pt")
    except UserError as error:
        return ("error", str(error)) if "\n" not in str(error) else ("exception", f"several lines: {error}")
    except MemoryError:
        return "memory", traceback.format_exc()
    except Exception:
        return "exception", traceback.format_exc()
    if any(torch.equal(found.energies, e.energies) and torch.equal(found.edge_forces, e.edge_forces) for e in known):
        return "equal", ""
    return ("forged", "") if forged else ("wrong", "")


def limit_memory() -> None:
    """Address space: a request for terabytes fails at once instead of being granted and never touched."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def fuzz(seeds: range, sources: tuple[Path, ...], folder: Path, workers: int) -> list[Outcome]:
    """All seeds, each in a process that may die; what kills a process is named by trying its batch one by one."""
    outcomes: list[Outcome] = []
    for first in range(seeds.start, seeds.stop, BATCH):
        batch = range(first, min(first + BATCH, seeds.stop))
        try:
            outcomes += _in_processes(batch, sources, folder, workers)
        except BrokenProcessPool:
            print(f"a process died on one of seeds {batch.start} to {batch.stop - 1}", file=sys.stderr, flush=True)
            for seed in batch:
                try:
                    outcomes += _in_processes(range(seed, seed + 1), sources, folder, 1)
                except BrokenProcessPool:
                    outcomes.append(Outcome(seed, MUTATIONS[seed % len(MUTATIONS)].__name__, "crash"))
    return outcomes


def _in_processes(seeds: range, sources: tuple[Path, ...], folder: Path, workers: int) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=limit_memory) as pool:
        return list(pool.map(attempt, seeds, [sources] * len(seeds), [folder] * len(seeds), chunksize=10))


def make_sources(folder: Path) -> tuple[Path, ...]:
    """Two checkpoints and their artifacts, the second with another size."""
    from triforces_deploy.config import BackboneConfig, CompositionConfig, ModelConfig, StructureConfig
    from triforces_deploy.export.exporting import ExportOptions, export
    from triforces_deploy.model import Model

    sources = []
    for k, layers in enumerate((2, 1)):
        options = {"latent": 4, "n_layers": layers, "mlp_hidden": 6, "n_bessel": 2, "l_max": 1}
        config = ModelConfig(
            elements=("Si", "Ge"),
            cutoff=4.0,
            backbone=BackboneConfig("orb_v3", options),
            composition=CompositionConfig(width=4, heads=2, layers=1, hidden=4),
            structure=StructureConfig(width=4, hidden=6, n_radial=2, n_channels=2, l_max=1),
            head_hidden=(4,),
        )
        torch.manual_seed(k)
        model = Model(config)
        model.set_network_dtype(torch.float64)
        checkpoint.save(folder / f"{k}.ckpt", model, {"data": "random weights"})
        export(folder / f"{k}.ckpt", folder / f"{k}.pt", ExportOptions(backends=()))
        sources += [folder / f"{k}.ckpt", folder / f"{k}.pt"]
    return tuple(sources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int, help="how many")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TFDEPLOY_HOME"] = str(folder / "home")
        start, sources = time.perf_counter(), make_sources(folder)
        seeds = range(arguments.first, arguments.first + arguments.files)
        outcomes = fuzz(seeds, sources, folder, arguments.workers)
    table = collections.Counter((o.mutation, o.kind) for o in outcomes)
    for (mutation, kind), count in sorted(table.items()):
        print(f"{mutation:28} {kind:10} {count}")
    failures = [o for o in outcomes if o.kind in FAILURES]
    for outcome in failures:
        print(f"seed {outcome.seed}: {outcome.mutation}: {outcome.kind}\n{outcome.detail}")
    print(f"{len(outcomes)} files in {time.perf_counter() - start:.0f} s, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
