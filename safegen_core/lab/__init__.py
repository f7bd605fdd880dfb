# SPDX-License-Identifier: GPL-3.0-or-later
"""The miniature world: a tiny Stable Diffusion in which every claim can be measured on a CPU.

Its forbidden concept is harmless, a *striped star*. Striped things and stars on their own are
allowed, so the concept is a conjunction with near neighbours, as it is in life.
"""
