# SPDX-License-Identifier: GPL-3.0-or-later
"""How the hosts read a prompt, as far as tests ask: AND, [a:b:when], [a|b], (emphasis:1.2), BREAK.

Names, arguments and structures are those of the hosts' `modules.prompt_parser`.
"""

from __future__ import annotations

import re
from collections import namedtuple

ScheduledPromptConditioning = namedtuple("ScheduledPromptConditioning", ["end_at_step", "cond"])


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None):
        super().__init__(prompts)
        other = prompts if copy_from is None else copy_from
        negative = getattr(other, "is_negative_prompt", False)
        self.is_negative_prompt = is_negative_prompt or negative
        self.width = width or getattr(other, "width", None)
        self.height = height or getattr(other, "height", None)


class ComposableScheduledPromptConditioning:
    def __init__(self, schedules, weight=1.0):
        self.schedules, self.weight = schedules, weight


class MulticondLearnedConditioning:
    def __init__(self, shape, batch):
        self.shape, self.batch = shape, batch


_EDIT = re.compile(r"\[([^\[\]:|]*):([^\[\]:|]*):([\d.]+)\]")
_TURNS = re.compile(r"\[([^\[\]:]*\|[^\[\]:]*)\]")


def get_learned_conditioning_prompt_schedules(
    prompts, base_steps, hires_steps=None, use_old_scheduling=False
):
    second = hires_steps is not None and not use_old_scheduling
    steps = hires_steps if second else base_steps

    def when(told):
        if use_old_scheduling:
            at = float(told)
            return min(steps, int(at * steps if at < 1 else at))
        if "." in told:
            return min(steps, int((float(told) - second) * steps))
        return min(steps, int(told) - (base_steps if second else 0))

    def at_step(prompt, step):
        prompt = _EDIT.sub(lambda m: m[1] if step <= when(m[3]) else m[2], prompt)
        return _TURNS.sub(lambda m: (t := m[1].split("|"))[(step - 1) % len(t)], prompt)

    def schedule(prompt):
        ends = {steps} | {at for m in _EDIT.finditer(prompt) if (at := when(m[3])) >= 1}
        if _TURNS.search(prompt):
            ends |= set(range(1, steps + 1))
        return [[end, at_step(prompt, end)] for end in sorted(ends)]

    return [schedule(prompt) for prompt in prompts]


def get_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    schedules = get_learned_conditioning_prompt_schedules(
        prompts, steps, hires_steps, use_old_scheduling
    )
    found = []
    for schedule in schedules:
        texts = SdConditioning([text for _, text in schedule], copy_from=prompts)
        conds = model.get_learned_conditioning(texts)
        found.append(
            [
                ScheduledPromptConditioning(
                    end,
                    {k: v[i] for k, v in conds.items()} if isinstance(conds, dict) else conds[i],
                )
                for i, (end, _) in enumerate(schedule)
            ]
        )
    return found


def get_multicond_prompt_list(prompts):
    flat = SdConditioning(prompts)
    flat.clear()
    indexes, known = [], {}
    for prompt in prompts:
        own = []
        for part in re.split(r"\bAND\b", prompt):
            text, weight = re.match(r"^((?:\s|.)*?)(?:\s*:\s*([-+]?[\d.]+))?\s*$", part).groups()
            if text not in known:
                known[text] = len(flat)
                flat.append(text)
            own.append((known[text], 1.0 if weight is None else float(weight)))
        indexes.append(own)
    return indexes, flat, known


def get_multicond_learned_conditioning(
    model, prompts, steps, hires_steps=None, use_old_scheduling=False
):
    indexes, flat, _ = get_multicond_prompt_list(prompts)
    learned = get_learned_conditioning(model, flat, steps, hires_steps, use_old_scheduling)
    batch = [
        [ComposableScheduledPromptConditioning(learned[i], weight) for i, weight in own]
        for own in indexes
    ]
    return MulticondLearnedConditioning((len(prompts),), batch)


def parse_prompt_attention(text, emphasis="Original"):
    """(word:1.2) only."""
    if emphasis == "None":
        return [[text, 1.0]]
    found = []
    for part in re.split(r"(\([^()]*:[\d.]+\)|\bBREAK\b)", text):
        told = re.fullmatch(r"\(([^()]*):([\d.]+)\)", part)
        if part == "BREAK":
            found.append(["BREAK", -1])
        elif told:
            found.append([told[1], float(told[2])])
        elif part:
            found.append([part, 1.0])
    return found or [["", 1.0]]
