# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in, verdicts out: what `safegen check` does.

`walk` finds the files, `tasks` goes through them and through ZIPs (`archive`), `media` and `video`
give the pictures of one file, `ahead` decodes before they are wanted, `run` asks the guard and
keeps its answers in the `journal`; `copies` and `quarantine` act on them, and `report` tells.
Whatever fails, fails for one file, and a file that could not be judged counts as one that may not
be released. Every file of the queue ends in a result.

Not looked at: documents that are no ZIP (PDF), pictures inside of other pictures' metadata, what
lies behind the end of a JPEG or PNG (a note says how much), and frames of videos between those
that are looked at.
"""
