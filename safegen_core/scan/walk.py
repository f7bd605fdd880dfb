# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files there are to look at: files, folders and patterns, one after the other.

Nothing is kept a file (the journal sorts them), only the folders that were entered: a folder is
entered once, whatever links and overlapping arguments lead to it.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileError, SafeGenError
from .opening import check_regular, identity, is_something, refusal_of


@dataclass(frozen=True)
class Found:
    """One file to be looked at, or the reason why it cannot be.

    Attributes:
        path: absolute.
        place: where its copies go inside a folder of copies, with forward slashes.
        size: bytes.
        mtime_ns: time of the last change; with `size` it tells whether a file is still the same.
        problem: why it cannot be looked at, else None.
    """

    path: str
    place: str
    size: int = 0
    mtime_ns: int = 0
    problem: SafeGenError | None = None


@dataclass(frozen=True)
class Root:
    """One argument: a folder and what of it is meant.

    Attributes:
        folder: absolute.
        file: the one file that was named; None for a folder or a pattern.
        pattern: parts a path below `folder` must fit; empty fits everything.
    """

    folder: str
    file: str | None = None
    pattern: tuple[str, ...] = ()


class Walk:
    """Iterates over everything that `paths` mean; files of a folder in no particular order.

    Args:
        paths: files, folders, and patterns with `*`, `?`, `[...]` and `**`. A name that exists is
            that file, whatever signs are in it. A file that is named is looked at whatever it is
            called and even if it is a link; in folders only what is a picture, a video or a ZIP, by
            its name or by its first bytes.
        follow_links: enter linked folders and files, too.
        exclude: folders that are not entered (where copies and flagged files go).
    """

    def __init__(
        self, paths: Sequence[str], *, follow_links: bool = False, exclude: Sequence[Path] = ()
    ) -> None:
        self.ignored = 0
        """Files in the folders that are neither pictures nor videos nor ZIPs, so far."""
        self.roots = list(dict.fromkeys(_root(path) for path in paths))
        self._follow_links = follow_links
        self._exclude = exclude
        self._label_of = _labels([root.folder for root in self.roots])

    def __iter__(self) -> Iterator[Found]:
        self.ignored = 0
        self._entered = {identity(str(folder)) for folder in self._exclude if folder.is_dir()}
        for root in self.roots:
            if root.file is not None:
                yield self._file(os.path.join(root.folder, root.file), root)
            else:
                yield from self._folder(root)

    def _folder(self, root: Root) -> Iterator[Found]:
        # A pattern's folder is not entered for good: another argument may want more of it.
        entered = set(self._entered) if root.pattern else self._entered
        waiting, fits = [root.folder], not root.pattern
        while waiting:
            folder = waiting.pop()
            below: list[str] = []
            try:
                if (known := identity(folder)) in entered:
                    continue
                entered.add(known)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        found = self._entry(entry, root)
                        if isinstance(found, Found):
                            fits = True
                            yield found
                        elif found:
                            below.append(entry.path)
            except OSError as error:
                fits = True
                yield Found(folder, self._place(folder, root), problem=refusal_of(error))
            # In one order always: of several links to a folder, the same one leads into it.
            waiting += sorted(below, reverse=True)
        if not fits:
            path = os.path.join(root.folder, *root.pattern)
            problem = FileError("file_missing", "No picture, video or ZIP fits this pattern.")
            yield Found(path, self._place(path, root), problem=problem)

    def _entry(self, entry: os.DirEntry[str], root: Root) -> Found | bool:
        """A file, or whether to enter this folder."""
        parts = tuple(_below(entry.path, root.folder).split(os.sep))
        try:
            is_link, is_folder = entry.is_symlink(), entry.is_dir()
        except OSError as error:  # a loop of links, or gone
            problem = refusal_of(error)
            return Found(entry.path, self._place(entry.path, root), problem=problem)
        if is_folder and not (is_link and not self._follow_links):
            return _leads_to_match(parts, root.pattern)
        if not _fits(parts, root.pattern):
            return False
        if not is_folder and not is_something(entry.path):
            self.ignored += 1
            return False
        if is_link and not self._follow_links:
            problem = FileError(
                "file_link", "It is a link, which was not followed; see --follow-links."
            )
            return Found(entry.path, self._place(entry.path, root), problem=problem)
        return self._file(entry.path, root)

    def _file(self, path: str, root: Root) -> Found:
        place = self._place(path, root)
        try:
            # Not the folder's own record of the file, which Windows brings up to date late.
            seen = os.stat(path)
            check_regular(seen)
        except FileError as error:
            return Found(path, place, problem=error)
        except (OSError, ValueError) as error:
            return Found(path, place, problem=refusal_of(error))
        return Found(path, place, seen.st_size, seen.st_mtime_ns)

    def _place(self, path: str, root: Root) -> str:
        label = self._label_of[root.folder]
        below = _below(path, root.folder).replace(os.sep, "/")
        return "/".join(part for part in (label, below) if part)


def _root(path: str) -> Root:
    if not path:  # an empty variable of a script must not mean the folder it runs in
        raise FileError("file_missing", "One of the paths is empty; name a file or a folder.")
    if not os.path.lexists(path) and glob.has_magic(path):
        parts = Path(path).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        return Root(os.path.abspath(os.path.join("", *parts[:first])), pattern=parts[first:])
    whole = os.path.abspath(path)
    if os.path.isdir(whole):
        return Root(whole)
    return Root(*os.path.split(whole))


def _labels(folders: Sequence[str]) -> dict[str, str]:
    """A folder of its own for every root, so that copies do not meet; none for a single root."""
    different = list(dict.fromkeys(folders))
    if len(different) == 1:
        return {different[0]: ""}
    label_of: dict[str, str] = {}
    for folder in different:
        name = os.path.basename(folder) or "root"
        taken = {label.casefold() for label in label_of.values()}
        tries = (name if n == 1 else f"{name}-{n}" for n in range(1, len(different) + 1))
        label_of[folder] = next(label for label in tries if label.casefold() not in taken)
    return label_of


def _below(path: str, folder: str) -> str:
    return path[len(folder) :].lstrip(os.sep)


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the pattern means this path, or a folder it lies in."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _leads_to_match(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something below this folder may fit."""
    if not parts or not pattern or pattern[0] == "**":
        return True
    return fnmatch.fnmatch(parts[0], pattern[0]) and _leads_to_match(parts[1:], pattern[1:])
