"""``xnorc index build`` and ``xnorc index search``: binary retrieval from a file of embeddings to hits on a device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import targets
from ..errors import InputError
from .common import FILE, check_writable, debug_option, device_options, examples, many, progress, size, verb, write_json

if TYPE_CHECKING:
    import numpy as np


@debug_option
@click.group(
    "index",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    short_help="Pack a corpus of embeddings, and search it.",
    epilog=examples(
        "xnorc index build corpus.npy --target rpi4 --rerank 100 -o corpus.xnorc",
        "xnorc index search corpus.xnorc --input queries.npy -o hits.npz --device ssh://pi@raspberrypi.local",
    ),
)
def index_verb() -> None:
    """Pack a corpus of embeddings into a package, and search it on a device."""


@verb(
    "build",
    "Pack a corpus and compile it into a package.",
    "xnorc index build corpus.npy --target rpi4 --rerank 100 -o corpus.xnorc",
    "xnorc index build corpus.npy --code bebr --binarizer trained.npz",
)
@click.argument("embeddings", type=FILE)
@click.option("--target", default="host", show_default=True, metavar="NAME", help="What to compile for.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="The package (default: EMBEDDINGS ending in .xnorc).")
@click.option(
    "--code",
    default="hamming",
    show_default=True,
    metavar="hamming|bebr",
    help="hamming: one bit a number, its sign. bebr: two bits a number and a length.",
)
@click.option("-k", type=click.IntRange(1), default=10, show_default="10", metavar="N", help="Hits of a query.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default="1", metavar="N", help="Queries of a run.")
@click.option(
    "--rerank",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Order the N nearest again by the query's own numbers (hamming).",
)
@click.option("--asymmetric", is_flag=True, help="Do not code the query: tables of its own numbers (bebr).")
@click.option("--packed-queries", is_flag=True, help="Queries will come as packed bits (hamming).")
@click.option("--binarizer", type=FILE, metavar="FILE", help="Trained matrices: .npz with w, and b and r for bebr.")
@click.option("--name", default="index", show_default=True, metavar="NAME", help="Name of the C library.")
def build_verb(
    embeddings: Path,
    target: str,
    output: Path | None,
    code: str,
    k: int,
    batch: int,
    rerank: int,
    asymmetric: bool,
    packed_queries: bool,
    binarizer: Path | None,
    name: str,
    json_file: Path | None,
) -> None:
    """Pack a corpus and compile it into a package.

    EMBEDDINGS is a .npy file: float32 [documents, numbers], or packed bits uint8 [documents, bytes].
    """
    chosen = targets.get(target)
    destination = output or embeddings.with_suffix(".xnorc")
    check_writable(destination, json_file)
    start = time.perf_counter()
    with progress(f"indexing {embeddings.name} for {chosen.name}") as say:
        say("loading the compiler")
        from .. import retrieval

        index = retrieval.build(
            read_rows(embeddings),
            target=chosen,
            code=code,
            k=k,
            batch=batch,
            rerank=rerank,
            asymmetric=asymmetric,
            packed_queries=packed_queries,
            binarizer=None if binarizer is None else retrieval.Binarizer.read(binarizer),
            name=name,
            output=destination,
            progress=say,
        )
    facts = index.facts
    seconds = time.perf_counter() - start
    given = 4 * facts.channels
    click.echo(f"{destination}: {many(facts.documents, 'document')} for {chosen.name}, {seconds:.1f} s")
    click.echo(
        f"{code}: {facts.code_bytes} bytes a document, {given / facts.code_bytes:.0f} times smaller than float32"
    )
    click.echo(f"on the device: {size(index.package.device_bytes())}")
    write_json(
        json_file,
        {
            "output": destination,
            "target": chosen.name,
            "seconds": round(seconds, 3),
            "device_bytes": index.package.device_bytes(),
            "index": index.package.manifest["index"],
        },
    )


@verb(
    "search",
    "Search an index on a device.",
    "xnorc index search corpus.xnorc --input queries.npy -o hits.npz --device qemu",
)
@click.argument("index", type=FILE)
@click.option("--input", "input_file", type=FILE, metavar="FILE", required=True, help="Queries: a .npy of rows.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    required=True,
    help="Hits: .npz with int32 arrays documents and values [queries, k], best first.",
)
@device_options
def search_verb(index: Path, input_file: Path, output: Path, device: str, threads: int, json_file: Path | None) -> None:
    """Search an index on a device."""
    from .. import retrieval
    from ..files import atomic_write, npz_bytes

    check_writable(output, json_file)
    loaded = retrieval.load(index)
    queries = read_rows(input_file)
    with progress(f"searching {index.name} on {device}") as say:
        values, documents = loaded.search(queries, device, threads, lambda done, total: say(f"{done} of {total}"))
    atomic_write(output, npz_bytes({"documents": documents, "values": values}))
    queried = "1 query" if len(documents) == 1 else f"{len(documents):,} queries"
    click.echo(f"{output}: {queried}, {many(documents.shape[1], 'hit')} each")
    facts = {"index": index, "device": device, "threads": threads, "queries": len(documents), "k": documents.shape[1]}
    write_json(json_file, facts)


def read_rows(path: Path) -> np.ndarray:
    """The one array of a .npy. Raises ``InputError``."""
    from ..files import read_arrays

    array = read_arrays(path)
    if isinstance(array, dict):
        if len(array) != 1:
            raise InputError(f"'{path}' holds {len(array)} arrays ({', '.join(sorted(array)[:5])}): give a .npy of one")
        array = next(iter(array.values()))
    return array


index_verb.add_command(build_verb)
index_verb.add_command(search_verb)
