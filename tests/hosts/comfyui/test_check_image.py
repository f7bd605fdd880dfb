# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen Check Image with a stand-in detector that flags red pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.hosts.comfyui.client import Refused

COLORS = "gbrw"  # the third is flagged
RED = COLORS.index("r")


def outputs(graph, check) -> list:
    """Show every output but the images."""
    return [graph.show(check.output(number)) for number in range(1, 6)]


def is_red(picture: np.ndarray) -> bool:
    red, green, blue = picture.reshape(-1, 3).mean(axis=0)
    return bool(red > 1.5 * max(green, blue, 1))


@pytest.fixture
def checked(client, graph):
    """Check the batch and save it; gives the run, the check's id and what was saved."""

    def run_it(colors=COLORS, **how):
        images = graph.picture(colors)
        check = graph.check(images, **how)
        before, saved = graph.save(images), graph.save(check)
        told = outputs(graph, check)
        run = client.run(graph)
        assert run.ok, run.error
        values = [run.ui(node, "value") for node in told]
        return run, check, run.images(before), run.images(saved), values

    return run_it


def test_censor_hides_the_one_and_leaves_the_others_as_they_are(checked):
    run, check, before, after, values = checked()
    withheld, is_safe, count, report, regions = values
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(one, other) == (number != RED)
    assert withheld == [False] * 4
    assert (is_safe, count) == ([False], [1])
    assert regions[0]["shape"] == [4, 64, 64]
    assert regions[0]["mean"] == pytest.approx(1 / 4)
    told = json.loads(report[0])
    assert [picture["left"] for picture in told["pictures"]] == [
        "censored" if n == RED else "as it is" for n in range(4)
    ]
    assert run.ui(check, "safegen_check") == [told]
    assert told["policy"]["name"] == "red"


def test_withhold_puts_a_sign_in_its_place(checked):
    run, check, before, after, (withheld, is_safe, count, *_) = checked(action="withhold")
    assert withheld == [n == RED for n in range(4)]
    assert (is_safe, count) == ([False], [1])
    assert not is_red(after[RED])
    assert all(np.array_equal(before[n], after[n]) for n in range(4) if n != RED)
    assert not any(map(is_red, run.images(check)))  # the node's previews


def test_withheld_pictures_can_be_dropped(checked):
    _, _, before, after, (withheld, *_) = checked(action="withhold", batch="drop withheld")
    assert len(after) == 3
    assert withheld == [n == RED for n in range(4)]
    assert all(map(np.array_equal, after, [p for n, p in enumerate(before) if n != RED]))


def test_replace_lets_another_picture_go_on(client, graph):
    check = graph.check(graph.picture(COLORS), action="replace", replacement=graph.picture("b", 32))
    saved = graph.save(check)
    run = client.run(graph)
    assert run.ok, run.error
    after = run.images(saved)
    assert len(after) == 4
    red, green, blue = after[RED].reshape(-1, 3).mean(axis=0)
    assert blue > 3 * max(red, green)


def test_raise_stops_the_run_with_a_code(client, graph):
    saved = graph.save(graph.check(graph.picture(COLORS), action="raise"))
    run = client.run(graph)
    assert run.status == "error"
    assert run.error.startswith("SafeGenCheckImage: ")
    assert "[check_flagged]" in run.error
    assert saved not in run.executed


@pytest.mark.parametrize(
    ("colors", "how"),
    [("r", {}), ("gr", {"scope": "whole clip"}), ("rr", {"batch": "drop withheld"})],
)
def test_a_blocked_output_runs_nothing_after_it(client, server, graph, colors, how):
    check = graph.check(graph.picture(colors), action="withhold", **how)
    saved = graph.save(check, prefix="never")
    is_safe = graph.show(check.output(2))
    run = client.run(graph)
    assert run.ok, run.error
    assert saved not in run.outputs  # ComfyUI announces it, and does not run it
    assert not list((server.base / "output").glob("never*"))
    # The history of an API user tells what happened, and the other outputs go on.
    (report,) = run.ui(check, "safegen_check")
    assert {picture["left"] for picture in report["pictures"]} == {"blocked"}
    assert run.ui(is_safe, "value") == [False]
    assert not any(map(is_red, run.images(check)))


def test_harmless_pictures_pass_bit_for_bit(checked):
    _, _, before, after, (withheld, is_safe, count, *_) = checked("gbw", action="withhold")
    assert all(map(np.array_equal, before, after))
    assert (withheld, is_safe, count) == ([False] * 3, [True], [0])


def test_whole_clip_counts_one_frame_for_all(checked):
    _, _, before, after, (_, is_safe, *_) = checked(scope="whole clip")
    assert is_safe == [False]
    assert not any(map(np.array_equal, before, after))


def test_another_policy_repeats_only_the_check(client, graph):
    latent = graph.sample(graph.unet(), seed=31)
    images = graph.decode(latent)
    check = graph.check(images)
    saved = graph.save(check)
    assert client.run(graph).ok
    graph[check]["inputs"]["policy"] = "blind.json"
    run = client.run(graph)
    assert run.ok, run.error
    assert {latent, images} <= run.cached
    assert run.executed == {check, saved}


def test_a_policy_file_that_was_edited_is_read_again(client, server, graph):
    from tests.hosts.comfyui.detector import write_policy

    folder = server.base / "models" / "safegen" / "policies"
    write_policy(folder, "edited", threshold=1.0)
    try:
        check = graph.check(graph.picture("r"), policy="edited.json")
        shown = graph.show(check.output(2))
        first = client.run(graph)
        assert first.ok, first.error
        assert first.ui(shown, "value") == [True]
        write_policy(folder, "edited", threshold=0.25)
        again = client.run(graph)
        assert check in again.executed
        assert again.ui(shown, "value") == [False]
    finally:
        (folder / "edited.json").unlink()


@pytest.mark.parametrize("policy", ["default", "strict", "art"])
def test_without_its_detector_a_check_is_refused_before_anything_runs(client, graph, policy):
    sampled = graph.decode(graph.sample(graph.unet(), seed=33))
    graph.save(graph.check(sampled, policy=policy))
    with pytest.raises(Refused) as caught:
        client.run(graph)
    assert caught.value.status == 400
    told = caught.value.sentences
    assert "pip install --no-deps nudenet" in told
    assert "detectors" in told


@pytest.mark.parametrize("policy", ["nobody.json", "absent.json"])
def test_a_policy_that_cannot_be_followed_is_refused_by_name(client, graph, policy):
    graph.save(graph.check(graph.picture("g"), policy=policy))
    with pytest.raises(Refused, match=policy.removesuffix(".json")) as caught:
        client.run(graph)
    assert caught.value.status == 400


def test_policies_of_the_folder_are_offered_after_the_presets(client):
    choices = client.object_info("SafeGenCheckImage")["input"]["required"]["policy"]
    names = choices[1]["options"] if choices[0] == "COMBO" else choices[0]
    assert set(names[:3]) == {"default", "strict", "art"}
    assert {"red.json", "blind.json"} <= set(names[3:])


def test_a_check_can_be_interrupted(client, graph):
    check = graph.check(graph.picture("g" * 256, size=128))
    saved = graph.save(check)

    def stop(event, data):
        if event == "executing" and data.get("node") == check:
            client.interrupt()

    run = client.run(graph, on_event=stop)
    assert run.interrupted, run.messages
    assert saved not in run.executed


class TestPolicyNode:
    def inputs(self, **changed):
        told = {"name": "mine", "detectors": "red", "more_labels": "TEST_RED = 0.5 withhold"}
        explicit = ("female_breast_exposed", "female_genitalia_exposed", "male_genitalia_exposed",
                    "anus_exposed", "buttocks_exposed")  # fmt: skip
        return {"found": "censor", "hide_with": "mosaic", "shape": "box",
                **dict.fromkeys(explicit, 1.0), **told, **changed}  # fmt: skip

    def policy(self, client, graph, **changed):
        known = client.object_info("SafeGenPolicy")["input"]["required"]
        inputs = self.inputs(**changed)
        others = {k: 1.0 for k, v in known.items() if v[0] == "FLOAT" and k not in inputs}
        return graph.add("SafeGenPolicy", **others, **inputs)

    def test_it_takes_the_place_of_the_named_policy(self, client, graph):
        policy = self.policy(client, graph)
        # the preset's detector is not installed, and need not be
        check = graph.check(graph.picture(COLORS), policy="default", custom_policy=policy)
        shown = graph.show(check.output(1))
        run = client.run(graph)
        assert run.ok, run.error
        assert run.ui(shown, "value") == [n == RED for n in range(4)]
        assert run.ui(check, "safegen_check")[0]["policy"]["name"] == "mine"

    @pytest.mark.parametrize("changed", [{"more_labels": "TEST_RED is bad"},
                                         {"detectors": "nobody"}])  # fmt: skip
    def test_a_policy_that_cannot_be_followed_is_refused(self, client, graph, changed):
        policy = self.policy(client, graph, **changed)
        graph.save(graph.check(graph.picture("g"), custom_policy=policy))
        with pytest.raises(Refused) as caught:
            client.run(graph)
        assert caught.value.status == 400
        assert caught.value.sentences.strip()


HIDE = {"hide_with": "fill", "shape": "box", "grow": 0.0, "feather": 0.0, "strength": 0.03125,
        "color": "#ffffff"}  # fmt: skip


class TestCensorRegions:
    def test_a_report_and_its_mask_say_where(self, client, graph):
        images = graph.picture(COLORS)
        check = graph.check(images)
        by_report = graph.add("SafeGenCensorRegions", images=images, report=check.output(4),
                              **HIDE)  # fmt: skip
        by_mask = graph.add("SafeGenCensorRegions", images=images, mask=check.output(5), **HIDE)
        before = graph.save(images)
        saved = [graph.save(node) for node in (by_report, by_mask)]
        run = client.run(graph)
        assert run.ok, run.error
        for node in saved:
            after = run.images(node)
            assert after[RED].min() >= 254
            for n, picture in enumerate(run.images(before)):
                assert np.array_equal(picture, after[n]) == (n != RED)

    def test_nothing_to_hide_is_refused_when_it_is_queued(self, client, graph):
        graph.save(graph.add("SafeGenCensorRegions", images=graph.picture("g"), **HIDE))
        with pytest.raises(Refused) as caught:
            client.run(graph)
        assert "mask" in caught.value.sentences
        assert "report" in caught.value.sentences
