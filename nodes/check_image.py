# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Check Image: finished pictures are held against a policy before they go on."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker

from ..safegen_comfy import checking, folders, policies, ways
from ..safegen_comfy.types import PolicyType
from ..safegen_core.errors import coded
from ..safegen_core.policy import Policy

_UNLINKED = object()  # linked values arrive as None in the hooks below


class CheckImage(io.ComfyNode):
    """Images of any model, or the frames of a video, through the guard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenCheckImage",
            display_name="SafeGen Check Image",
            category="SafeGen",
            description="Look for explicit content in finished images and censor, replace or hold "
            "back what is found. Works with every model; needs no patch.",
            search_aliases=["nsfw", "safety checker", "nudity", "nudenet", "filter", "moderation"],
            inputs=[
                io.Image.Input("images", tooltip="What to check: one image, a batch, or the frames "
                               "of a video. Costs about 0.05 to 0.3 s an image on a CPU."),
                io.Combo.Input(
                    "policy", options=folders.policy_names(), default="default",
                    tooltip="What counts as unsafe. art: genitals only; default: nudity is "
                    "censored; strict: also partial nudity, and withheld. Your own files go into "
                    "models/safegen/policies. Changing it repeats only the check.",
                ),
                io.Combo.Input(
                    "action", options=["censor", "withhold", "replace", "raise"], default="censor",
                    tooltip="For flagged images. censor: hide the regions (or what the policy says)"
                    "; withhold: they do not go on, and nothing after this node runs if none is "
                    "left; replace: another image goes on; raise: stop with an error, for API "
                    "users. An image that cannot be checked never goes on.",
                ),
                io.Combo.Input(
                    "scope", options=["each image", "whole clip"], default="each image",
                    tooltip="whole clip: for videos; one flagged frame counts for all, and what is "
                    "hidden in one is hidden in all. Safer, and hides more.",
                ),
                PolicyType.Input("custom_policy", optional=True,
                                 tooltip="From SafeGen Policy; takes the place of 'policy'."),
                io.Image.Input("replacement", optional=True,
                               tooltip="For 'replace': this image, cut to size, stands for flagged "
                               "ones. It is checked too. Without it a grey sign does."),
                io.Combo.Input(
                    "batch", options=["keep length", "drop withheld"], default="keep length",
                    optional=True, advanced=True,
                    tooltip="keep length: a sign stands for each withheld image, so that masks and "
                    "frames still fit. drop withheld: the batch becomes shorter.",
                ),
            ],
            outputs=[
                io.Image.Output("checked", display_name="images", tooltip="What may go on. Save "
                                "and show these, not the images that came in."),
                io.Boolean.Output("withheld", is_output_list=True,
                                  tooltip="For each image: does something else stand for it?"),
                io.Boolean.Output("is_safe", tooltip="True if nothing was flagged."),
                io.Int.Output("count", tooltip="How many images were flagged."),
                io.String.Output("report", tooltip="What was found, as JSON: scores, limits, "
                                 "sentences; no image, no prompt. Goes into Censor Regions."),
                io.Mask.Output("regions", tooltip="Where something was found, for each image that "
                               "came in. Use it for inpainting or Censor Regions."),
            ],
            is_output_node=True,  # also the report of a repeated, cached run reaches an API user
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, policy: str | None, custom_policy: Any = _UNLINKED) -> bool | str:
        """When the graph is queued: can this policy be followed here?"""
        if policy is None or custom_policy is not _UNLINKED:
            return True  # linked, so not known yet; SafeGen Policy looks at its own
        return ways.true_or_sentence(lambda: _known(policy))

    @classmethod
    def fingerprint_inputs(
        cls, policy: str | None, custom_policy: Any = _UNLINKED, **_: Any
    ) -> object:
        """Run again when a policy file or a detector was replaced, or a detector has failed."""
        if custom_policy is not _UNLINKED:
            return checking.failures()  # SafeGen Policy looks at its own
        if policy is None:  # linked, so not known yet
            return float("nan")
        return (*_known(policy), checking.failures())

    @classmethod
    def execute(
        cls,
        images: io.Image.Type,
        policy: str,
        action: str,
        scope: str,
        custom_policy: dict[str, Any] | None = None,
        replacement: io.Image.Type | None = None,
        batch: str = "keep length",
    ) -> io.NodeOutput:
        """Check the pictures; a blocked output stops every branch that depends on it."""
        with coded():
            if custom_policy is None:
                opened = folders.open_policy(policy)
            else:  # not Policy.open: an API user could have any file of the server read
                opened = Policy.from_values(custom_policy)
            done = checking.check(images, opened, action, scope, batch, replacement)
        return io.NodeOutput(
            ExecutionBlocker(None) if done.images is None else done.images,
            done.withheld,
            done.is_safe,
            done.count,
            json.dumps(done.report),
            done.regions,
            ui={
                "safegen_check": [done.report],
                "images": ui.PreviewImage(done.previews).as_dict()["images"],
            },
        )


def _known(policy: str) -> tuple[str, ...]:
    return policies.ready(folders.open_policy(policy), folders.shelf())
