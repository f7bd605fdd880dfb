# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Policy: a policy written on a node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safegen_comfy import folders, policies
from ..safegen_comfy.types import PolicyType
from ..safegen_core.errors import coded
from ..safegen_core.policy import Policy


class PolicyNode(io.ComfyNode):
    """From which score on each label counts, and what is done about it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenPolicy",
            display_name="SafeGen Policy",
            category="SafeGen",
            description="Say yourself what SafeGen Check Image looks for, and from which score.",
            search_aliases=["threshold", "nsfw settings", "censor settings", "labels"],
            inputs=[
                io.String.Input("name", default="my policy",
                                tooltip="What reports call this policy. No cost."),
                *(_threshold(label, 0.25) for label in policies.EXPLICIT),
                io.Combo.Input(
                    "found", options=["censor", "withhold"], default="censor",
                    tooltip="What is done when a label above reaches its threshold: hide the "
                    "region, or hold the whole image back.",
                ),
                io.Combo.Input(
                    "hide_with", options=["mosaic", "blur", "fill"], default="mosaic",
                    tooltip="How a region is hidden. All three take its content away for good; "
                    "fill paints it over with one colour.",
                ),
                io.Combo.Input(
                    "shape", options=["box", "ellipse"], default="box", optional=True,
                    advanced=True,
                    tooltip="Shape of a hidden region; the ellipse lies around the box and hides "
                    "a little more.",
                ),
                *(_threshold(label, policies.LET_THROUGH) for label in policies.OTHERS),
                io.String.Input(
                    "detectors", default="nudenet", optional=True, advanced=True,
                    tooltip="Who looks, separated by commas: nudenet, or the name of a .json file "
                    "in models/safegen/detectors. Each one costs its time for every image.",
                ),
                io.String.Input(
                    "more_labels", default="", multiline=True, optional=True,
                    advanced=True,
                    tooltip="Labels of other detectors, one a line: WD_EXPLICIT = 0.6 withhold. "
                    "A line wins over a threshold above.",
                ),
            ],
            outputs=[
                PolicyType.Output(
                    "policy", tooltip="For custom_policy of SafeGen Check Image; a change repeats "
                    "only the check."
                )
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, **inputs: Any) -> bool:
        """When the graph is queued: can this policy be followed here?

        It raises where others answer with a sentence: ComfyUI would repeat that for every input.
        """
        if None not in inputs.values():  # a linked value is not known yet
            with coded():
                _ready(inputs)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> tuple[str, ...]:
        """Check again when a detector was replaced."""
        return () if None in inputs.values() else _ready(inputs)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """The policy as a document."""
        with coded():
            return io.NodeOutput(_document(inputs))


def _threshold(label: str, default: float) -> io.Float.Input:
    return io.Float.Input(
        label.lower(), default=default, min=0.0, max=1.0, step=0.01,
        optional=default == policies.LET_THROUGH, advanced=default == policies.LET_THROUGH,
        tooltip="The lowest score that counts. Lower it to find more, raise it against false "
        "alarms; 1 lets this label through. No cost in speed.",
    )  # fmt: skip


def _document(inputs: dict[str, Any]) -> dict[str, Any]:
    thresholds = {label: inputs[label.lower()] for label in policies.EXPLICIT}
    for label in policies.OTHERS:
        thresholds[label] = inputs.get(label.lower(), policies.LET_THROUGH)
    rest = ("name", "found", "hide_with", "shape", "detectors", "more_labels")
    given = {key: inputs[key] for key in rest if key in inputs}
    return policies.document(thresholds=thresholds, **given)


def _ready(inputs: dict[str, Any]) -> tuple[str, ...]:
    return policies.ready(Policy.from_values(_document(inputs)), folders.shelf())
