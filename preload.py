# SPDX-License-Identifier: GPL-3.0-or-later
"""A1111's family calls this before it reads its flags. They show in its API: no secrets here."""


def preload(parser):
    """Add our flags."""
    parser.add_argument(
        "--safegen-dir",
        default=None,
        help="SafeGen: one more folder with patches, detectors/ and policies/",
    )
    parser.add_argument(
        "--safegen-policy",
        default=None,
        help="SafeGen: a policy file that every request has to meet; users can only raise it",
    )
