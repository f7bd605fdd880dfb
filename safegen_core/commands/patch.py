# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen patch`: extract, inspect, combine, compress, expand, sign and trust patch files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..compress import Compression
    from ..extract import ExtractReport
    from ..patch import Patch
    from ..trust import Ledger, Trust


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `patch` and its actions to the command line."""
    parser = subparsers.add_parser(
        "patch", help="extract, inspect, combine, compress, sign or trust a patch"
    )
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)

    extract = actions.add_parser("extract", help="the patch that turns one model into another")
    extract.add_argument(
        "--base", required=True, help="model before: .safetensors or diffusers folder"
    )
    extract.add_argument("--safe", required=True, help="model after")
    extract.add_argument("--rank", type=int, help="store low-rank factors of this rank")
    extract.add_argument("--title", help="name for people")
    _writes(extract)
    extract.set_defaults(run=_extract)

    info = actions.add_parser("info", help="what a patch is for and where it came from")
    info.add_argument("patch")
    info.add_argument("--model", help="also tell how it fits this model")
    info.add_argument("--json", action="store_true", help="print JSON")
    _names_family(info)
    info.set_defaults(run=_info)

    combine = actions.add_parser("combine", help="weighted sum of patches")
    combine.add_argument(
        "patches", nargs="+", metavar="PATCH[=WEIGHT]", help="weight 1 if not given"
    )
    _writes(combine)
    combine.set_defaults(run=_combine)

    compress = actions.add_parser("compress", help="keep only the largest singular vectors")
    compress.add_argument("patch")
    compress.add_argument("--rank", type=int, required=True)
    _names_family(compress)
    _writes(compress)
    compress.set_defaults(run=_compress)

    expand = actions.add_parser("expand", help="low-rank factors to whole deltas")
    expand.add_argument("patch")
    _names_family(expand)
    _writes(expand)
    expand.set_defaults(run=_expand)

    trust = actions.add_parser(
        "trust",
        help="let hosts choose this patch by themselves",
        description="Patches made here are trusted already, and so are those signed by a key in "
        "the keys folder. Naming an untested patch in a host needs no trust.",
    )
    trust.add_argument("patch")
    trust.add_argument(
        "--tested-on", metavar="MODEL", help="only on this model, on which you have tried it"
    )
    _names_family(trust)
    trust.set_defaults(run=_trust)

    untrust = actions.add_parser("untrust", help="take it back: hosts need this patch's name again")
    untrust.add_argument("patch")
    _names_family(untrust)
    untrust.set_defaults(run=_untrust)

    sign = actions.add_parser("sign", help="write a signature beside a patch: PATCH.sig")
    sign.add_argument("patch")
    sign.add_argument("--key", required=True, help="private key that `safegen key new` made")
    sign.add_argument("--overwrite", action="store_true", help="replace an existing signature")
    _names_family(sign)
    sign.set_defaults(run=_sign, extra="sign")


def _writes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="patch file to write")
    parser.add_argument(
        "--dtype", choices=("fp16", "bf16", "fp32"), default="fp16", help="default: %(default)s"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _names_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family", help="for a file without SafeGen metadata: the family it is for"
    )


def _read(path: str, family: str | None) -> Patch:
    from ..families import family as family_named
    from ..patch import Patch

    return Patch.read(path, family=family_named(family) if family else None)


def _check_output(args: argparse.Namespace, patch: str) -> None:
    from ..atomic import check_output

    check_output(args.out, Path(patch), overwrite=args.overwrite)


def _write(patch: Patch, args: argparse.Namespace, *parents: tuple[str, Patch]) -> None:
    patch.write(args.out, _dtype(args.dtype), overwrite=args.overwrite)
    _wrote(args.out, *parents)


def _wrote(out: str, *parents: tuple[str, Patch]) -> None:
    """Tell of a new patch, and remember that it was made here."""
    from ..trust import remember_made

    print(f"wrote {out}")
    judged = ((path, _judge(parent, path)) for path, parent in parents)
    remember_made(_read(out, None), _ledger(), judged)


def _ledger() -> Ledger:
    from ..trust import Ledger, default_path

    return Ledger(default_path())


def _judge(patch: Patch, path: str, digest: Callable[[], str] | None = None) -> Trust:
    from ..trust import judge

    ledger = _ledger()
    return judge(patch, path, ledger, ledger.keys_folder, digest)


def _dtype(name: str) -> torch.dtype:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def _extract(args: argparse.Namespace) -> int:
    from ..extract import extract
    from ..progress import tensor_bar

    with tensor_bar("comparing") as progress:
        report = extract(
            args.base,
            args.safe,
            args.out,
            rank=args.rank,
            dtype=_dtype(args.dtype),
            title=args.title,
            overwrite=args.overwrite,
            progress=progress,
        )
    _tell_extract(report)
    _wrote(args.out)
    return 0


def _tell_extract(report: ExtractReport) -> None:
    from ..header import printable

    changed, same = len(report.changed), report.same
    print(f"self-attention: {changed} of {changed + same} tensors differ")
    if report.outside:
        examples = ", ".join(map(printable, report.outside[:3])) + (
            ", ..." if len(report.outside) > 3 else ""
        )
        print(
            f"warning: {len(report.outside)} tensors outside self-attention differ too, which a "
            f"patch cannot hold ({examples})"
        )
    else:
        print(f"outside self-attention: {report.outside_same} tensors agree")
    if report.not_compared:
        print(f"not compared: {report.not_compared} tensors that only one model has")
    if report.compression:
        _tell_compression(report.compression)


def _tell_compression(compression: Compression) -> None:
    worst = min(compression.layers, key=compression.layers.__getitem__)
    print(
        f"rank {compression.rank} keeps {compression.energy:.1%} of the change "
        f"(least: {compression.layers[worst]:.1%} in {worst})"
    )
    if compression.bias_share:
        print(f"dropped biases: {compression.bias_share:.2%} of the change")


def _info(args: argparse.Namespace) -> int:
    from ..header import printable

    patch = _read(args.patch, args.family)
    told = patch.describe()
    digest: Callable[[], str] | None = None
    if args.model:
        from ..fingerprint import Fingerprint, SelfAttention
        from ..fit import require_fit

        model = SelfAttention.of(args.model)
        digest = lambda: Fingerprint.of(model).digest  # noqa: E731
        fit = require_fit(model, patch, any_base=True)
        told["match"] = fit.match or "unknown"
        if fit.distance is not None:
            told["distance"] = f"{fit.distance:.4f}"
        if fit.carried is not None:
            told["carried"] = f"{fit.carried.amount:.2f} ± {fit.carried.error:.2f}"
    trust = _judge(patch, args.patch, digest)
    told["trust"] = f"{trust.level}: {trust.reason}"
    if args.json:
        print(json.dumps(told, indent=2))
    else:
        width = max(map(len, told))
        for label, text in told.items():
            print(f"{label:<{width}}  {printable(text, 10_000)}")
    return 0


def _combine(args: argparse.Namespace) -> int:
    from ..combine import bases_differ, combine

    parts, parents = [], []
    for text in args.patches:
        path, weight = _weighted(text)
        _check_output(args, path)
        patch = _read(path, None)
        parts.append((patch, weight))
        parents.append((path, patch))
    if bases_differ(patch for patch, _ in parts):
        print("warning: the patches were made for different or unknown bases")
    _write(combine(parts), args, *parents)
    return 0


def _weighted(text: str) -> tuple[str, float]:
    path, _, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:  # no "=", or one that belongs to the path
        return text, 1.0
    return (path, number) if path else (text, 1.0)


def _compress(args: argparse.Namespace) -> int:
    _check_output(args, args.patch)
    parent = _read(args.patch, args.family)
    patch, compression = parent.compress(args.rank)
    _tell_compression(compression)
    _write(patch, args, (args.patch, parent))
    return 0


def _expand(args: argparse.Namespace) -> int:
    _check_output(args, args.patch)
    parent = _read(args.patch, args.family)
    _write(parent.expand(), args, (args.patch, parent))
    return 0


def _trust(args: argparse.Namespace) -> int:
    from ..trust import remember

    patch = _read(args.patch, args.family)
    digest = None
    if args.tested_on:
        from ..fingerprint import Fingerprint

        digest = Fingerprint.of(args.tested_on, patch.family).digest
    remember(patch, "tested" if digest else "chosen", _ledger(), digest)
    trust = _judge(patch, args.patch, (lambda: digest) if digest else None)
    print(f"{trust.level}: {trust.reason}")
    return 0 if trust.trusted else 1


def _untrust(args: argparse.Namespace) -> int:
    patch = _read(args.patch, args.family)
    if not _ledger().remove(patch.id()):
        print("it was not in the ledger")
    trust = _judge(patch, args.patch)
    print(f"{trust.level}: {trust.reason}")
    return 1 if trust.trusted else 0  # still signed by a key in the keys folder


def _sign(args: argparse.Namespace) -> int:
    from ..trust.signature import sign

    signature = sign(
        args.patch, _read(args.patch, args.family).id(), args.key, overwrite=args.overwrite
    )
    print(f"wrote {signature}")
    return 0
