# SPDX-License-Identifier: GPL-3.0-or-later
"""Censor Regions: hide what a mask or a report names."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safegen_comfy import regions
from ..safegen_core.detect.censor import Style
from ..safegen_core.errors import coded

_COLOR = "#202020"  # Style's own
_UNLINKED = object()  # linked values arrive as None in the hook below


class CensorRegions(io.ComfyNode):
    """Mosaic, blur or fill where somebody says so; it looks for nothing itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as ComfyUI shows it."""
        return io.Schema(
            node_id="SafeGenCensorRegions",
            display_name="Censor Regions",
            category="SafeGen",
            description="Hide regions of images for good: those of a mask, or those that SafeGen "
            "Check Image has found.",
            search_aliases=["mosaic", "pixelate", "blur", "censor", "redact", "hide faces"],
            inputs=[
                io.Image.Input("images", tooltip="What to hide regions in; it is not changed."),
                io.Combo.Input(
                    "hide_with", options=["mosaic", "blur", "fill"], default="mosaic",
                    tooltip="mosaic: coarse cells; blur: softer, and as far beyond recovery; fill: "
                    "one colour. Costs little.",
                ),
                io.Combo.Input(
                    "shape", options=["box", "ellipse"], default="box",
                    tooltip="Shape of the report's regions; the ellipse lies around the box and "
                    "hides a little more. A mask keeps its own shape.",
                ),
                io.Mask.Input("mask", optional=True,
                              tooltip="White is hidden, grey partly. One mask for all images, or "
                              "one each; of any size."),
                io.String.Input("report", optional=True, force_input=True,
                                tooltip="From SafeGen Check Image, about these same images."),
                io.Float.Input(
                    "grow", default=Style.grow, min=0.0, max=2.0, step=0.05, optional=True,
                    advanced=True,
                    tooltip="Share of its size that each of the report's regions gains on every "
                    "side. Raise it if something shows at the edges.",
                ),
                io.Float.Input(
                    "feather", default=Style.feather, min=0.0, max=0.25, step=0.005, optional=True,
                    advanced=True,
                    tooltip="Soft edge outside the report's regions, as a share of the image's "
                    "longer side. It looks gentler and hides a little more.",
                ),
                io.Float.Input(
                    "strength", default=Style.strength, min=0.015625, max=1.0, step=0.001,
                    round=False, optional=True, advanced=True,
                    tooltip="Smallest mosaic cell or blur, as a share of the image's longer side; "
                    "large regions get larger cells by themselves. Raise it to show even less.",
                ),
                io.String.Input("color", default=_COLOR, optional=True, advanced=True,
                                tooltip="Colour of 'fill', as #rrggbb. No effect otherwise."),
            ],
            outputs=[io.Image.Output("censored", tooltip="The images with the regions hidden.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls, color: str | None = _COLOR, mask: Any = _UNLINKED, report: Any = _UNLINKED
    ) -> bool:
        """When the graph is queued: is anything named to hide, and with what?

        It raises where others answer with a sentence: ComfyUI would repeat that for every input.
        """
        with coded():
            regions.required(mask is not _UNLINKED, report is not _UNLINKED)
            if color is not None:
                regions.rgb(color)
        return True

    @classmethod
    def execute(
        cls,
        images: io.Image.Type,
        hide_with: str,
        shape: str,
        mask: io.Mask.Type | None = None,
        report: str | None = None,
        grow: float = Style.grow,
        feather: float = Style.feather,
        strength: float = Style.strength,
        color: str = _COLOR,
    ) -> io.NodeOutput:
        """Hide the regions in copies of the images."""
        with coded():
            style = regions.style(hide_with, shape, grow, feather, strength, color)
            return io.NodeOutput(regions.hidden(images, style, mask, report))
