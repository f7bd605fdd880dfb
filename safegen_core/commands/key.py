# SPDX-License-Identifier: GPL-3.0-or-later
"""`safegen key`: keys with which patches are signed."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `key` and its action to the command line."""
    parser = subparsers.add_parser("key", help="make a key with which patches are signed")
    actions = parser.add_subparsers(title="actions", metavar="<action>", required=True)
    new = actions.add_parser(
        "new",
        help="an Ed25519 key pair: keep one file, give the other away",
        description="Write a private key to OUT and its public key beside it, as NAME.pub.pem. "
        "The private key is not encrypted: whoever can read it can sign in your name.",
    )
    new.add_argument("out", help="file to write, as my-key.pem")
    new.set_defaults(run=_new, extra="sign")


def _new(args: argparse.Namespace) -> int:
    from ..header import printable
    from ..trust import Ledger, default_path
    from ..trust.signature import new_key

    public = new_key(args.out)
    print(f"wrote {args.out}, keep it to yourself")
    print(f"wrote {public}, give it away; whoever trusts it copies it into their keys folder")
    print(f"keys trusted here: {printable(Ledger(default_path()).keys_folder, 1000)}")
    return 0
