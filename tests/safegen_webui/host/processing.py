# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests. A "latent" is a picture in -1..1: what the test wants generated, `p.drawn`."""

from __future__ import annotations

import numpy as np
import torch
from modules import images, scripts, sd_samplers, shared
from modules.shared import opts, state
from PIL import Image


class DecodedSamples(list):
    already_decoded = True


class Processed:
    def __init__(self, p, images_list, infotexts=(), extra_images_list=None):
        self.images, self.infotexts = images_list, list(infotexts)
        if extra_images_list is not None:
            self.extra_images = extra_images_list


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    if check_for_nans and bool(torch.isnan(batch).any()):
        raise ValueError("NaN")
    return DecodedSamples(sample.to(target_device) for sample in batch)


class StableDiffusionProcessing:
    def __init__(self, drawn, outpath, n_iter=1, scripts=None, **fields):
        self.drawn, self.n_iter, self.scripts = drawn, n_iter, scripts
        self.outpath_samples, self.outpath_grids = f"{outpath}/samples", f"{outpath}/grids"
        self.init_images, self.mask_for_overlay, self.overlay_images = [], None, None
        self.color_corrections, self.restore_faces, self.extra_result_images = None, False, None
        self.sd_model, self.prompt = shared.sd_model, "a square"
        for name, value in fields.items():
            setattr(self, name, value)

    def init(self):
        for image in self.init_images:
            if opts.save_init_img:
                images.save_image(image, f"{self.outpath_samples}-init", "")

    def sample(self):
        state.current_latent = self.drawn
        state.set_current_image()
        return self.drawn


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr = False
    latent_scale_mode = None
    second_passes = 0

    def sample(self):
        samples = super().sample()
        if not self.enable_hr:
            return samples
        decoded = None
        if self.latent_scale_mode is None:
            decoded = torch.stack(
                decode_latent_batch(self.sd_model, samples, torch.device("cpu"), True)
            )
        return self.sample_hr_pass(samples, decoded, [1], [1], 0, [self.prompt])

    def sample_hr_pass(self, samples, decoded_samples, seeds, subseeds, subseed_strength, prompts):
        if state.interrupted:
            return samples
        self.second_passes += 1
        for one in samples if decoded_samples is None else decoded_samples:
            if opts.save_images_before_highres_fix:
                image = sd_samplers.sample_to_image([one])
                images.save_image(image, self.outpath_samples, "", suffix="-before-highres-fix")
        size = [2 * side for side in samples.shape[2:]]
        larger = torch.nn.functional.interpolate(samples, size=size)
        return decode_latent_batch(self.sd_model, larger, torch.device("cpu"), True)


def apply_overlay(image, overlay):
    original = image.copy()
    if overlay is None:
        return image, original
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return image.convert("RGB"), original


def process_images(p):
    return process_images_inner(p)


def process_images_inner(p):
    output_images, infotexts = [], []
    p.init()
    for n in range(p.n_iter):
        samples = p.sample()
        if getattr(samples, "already_decoded", False):
            decoded = samples
        else:
            decoded = decode_latent_batch(p.sd_model, samples, torch.device("cpu"), True)
        decoded = torch.clamp((torch.stack(decoded).float() + 1.0) / 2.0, min=0.0, max=1.0)
        state.nextjob()
        if p.scripts is not None:
            args = scripts.PostprocessBatchListArgs(list(decoded))
            p.scripts.postprocess_batch_list(p, args, batch_number=n)
            decoded = args.images
        for i, sample in enumerate(decoded):
            p.batch_index = i
            pixels = 255.0 * np.moveaxis(sample.cpu().numpy(), 0, 2)
            image = Image.fromarray(pixels.astype(np.uint8))
            if p.restore_faces:
                if opts.save_images_before_face_restoration:
                    images.save_image(image, p.outpath_samples, "", suffix="-before-face")
                image = p.restore_faces(image)
            if p.scripts is not None:
                args = scripts.PostprocessImageArgs(image)
                p.scripts.postprocess_image(p, args)
                image = args.image
            overlay = p.overlay_images[i] if p.overlay_images else None
            if p.color_corrections is not None:
                if opts.save_images_before_color_correction:
                    before, _ = apply_overlay(image, overlay)
                    images.save_image(before, p.outpath_samples, "", suffix="-before-color")
                image = p.color_corrections(image)
            image, denoised = apply_overlay(image, overlay)
            if p.scripts is not None:
                args = scripts.PostprocessImageArgs(image)
                p.scripts.postprocess_image_after_composite(p, args)
                image = args.image
            if opts.samples_save:
                images.save_image(image, p.outpath_samples, "", info=p.prompt, p=p)
            image.info["parameters"] = p.prompt
            infotexts.append(p.prompt)
            output_images.append(image)
            mask = p.mask_for_overlay
            if mask is not None:
                shown = mask.convert("RGB")
                if opts.save_mask:
                    images.save_image(shown, p.outpath_samples, "", suffix="-mask")
                if opts.return_mask:
                    output_images.append(shown)
                nothing = Image.new("RGBa", denoised.size)
                coloured = denoised.convert("RGBA").convert("RGBa")
                composite = Image.composite(coloured, nothing, mask.resize(denoised.size))
                composite = composite.convert("RGBA")
                if opts.save_mask_composite:
                    images.save_image(composite, p.outpath_samples, "", suffix="-mask-composite")
                if opts.return_mask_composite:
                    output_images.append(composite)
    if len(output_images) > 1:
        grid = images.image_grid(output_images, len(output_images))
        if opts.grid_save:
            images.save_image(grid, p.outpath_grids, "grid")
        if opts.return_grid:
            output_images.insert(0, grid)
    processed = Processed(p, output_images, infotexts, p.extra_result_images)
    if p.scripts is not None:
        p.scripts.postprocess(p, processed)
    return processed
