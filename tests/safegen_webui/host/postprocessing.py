# SPDX-License-Identifier: GPL-3.0-or-later
"""Extras: pictures that are given, made larger, saved and returned."""

from __future__ import annotations

from modules import images, shared


def run_postprocessing(
    extras_mode,
    image,
    image_folder,
    input_dir,
    output_dir,
    show_extras_results,
    *args,
    save_output=True,
):
    shared.state.begin(job="extras")
    outputs = []
    for one in image_folder if extras_mode == 1 else [image]:
        larger = one.resize([2 * side for side in one.size])
        shared.state.assign_current_image(larger)
        if save_output:
            images.save_image(larger, output_dir, "")
        outputs.append(larger)
    shared.state.end()
    return outputs, "<p></p>", ""
