# SPDX-License-Identifier: GPL-3.0-or-later
"""A request, from what it asks for to what it returns.

`process_images_inner` is the one way to a picture, whoever asks: the page, the API, scripts, other
extensions whose `p` has no scripts at all. What is raised here ends the request with our sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from safegen_core.errors import coded
from safegen_core.guard.verdict import said

from . import checking, exits, jobs, last_batch, record, settings, weights
from .protection import Asked, Protection
from .wraps import Wrap

_MOST_LETTERS = 100  # of a page's secret


def protection_of(p: Any, arguments: Any = None) -> tuple[Protection, str]:
    """What is done for a request of the host, and the secret of the page that asks.

    Args:
        p: its processing object.
        arguments: of all scripts; `p.script_args` if None.

    Raises:
        ConfigError: what was asked for is none of what can be (`Asked.read`).
        PolicyError: a policy cannot be read.
    """
    script = _ours(getattr(p, "scripts", None))
    arguments = getattr(p, "script_args", None) if arguments is None else arguments
    if script is None or script.args_from is None or not arguments:
        return settings.standing(), ""
    given = list(arguments)[script.args_from : script.args_to]
    asked, page = given[: len(fields(Asked))], given[len(fields(Asked)) :]
    secret = page[0] if page and isinstance(page[0], str) and len(page[0]) < _MOST_LETTERS else ""
    return settings.protection(Asked.read(asked, settings.defaults())), secret


def _ours(runner: Any) -> Any:
    scripts = getattr(runner, "alwayson_scripts", None) or ()
    return next((script for script in scripts if getattr(script, "is_safegen", False)), None)


def _generate(original: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    with _begun(p) as job:
        checking.ready(job.protection)
        weights.ensure(_model(), job.protection)
        record.write(p, job)
        return exits.sweep(original(p, *args, **kwargs))


def _script(original: Any, runner: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    """X/Y/Z, loopback and their like make one picture of the pictures of many passes."""
    if not args or not args[0]:  # none is chosen
        return original(runner, p, *args, **kwargs)
    with _begun(p, args) as job:
        checking.ready(job.protection)
        return exits.sweep(original(runner, p, *args, **kwargs))


@contextlib.contextmanager
def _begun(p: Any, arguments: Any = None) -> Iterator[jobs.Job]:
    """The job of a request; of a pass within one the request's, whatever the pass itself says.

    Errors show their stable code.
    """
    running = jobs.current()
    with coded():
        if running is None:
            last_batch.drop()
            protection, page = protection_of(p, arguments)
        else:
            protection, page = running.protection, running.page
        with jobs.begun(protection, _task(), page) as job:
            try:
                yield job
            except Exception as error:
                job.refused = getattr(error, "message", "") or said(error)
                raise


def _model() -> Any:
    from modules import shared

    return shared.sd_model


def _task() -> str:
    """The random name that the page, or a user of the API, gave to what is running."""
    from modules import progress

    return str(progress.current_task or "")


WRAPS = (
    Wrap(
        "modules.processing:process_images_inner",
        _generate,
        "a request would not be protected at all",
    ),
    Wrap(
        "modules.scripts:ScriptRunner.run",
        _script,
        "what a script makes of the pictures of several passes would not be checked",
    ),
)
