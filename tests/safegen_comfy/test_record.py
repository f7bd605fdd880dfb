# SPDX-License-Identifier: GPL-3.0-or-later
"""What pictures record, as ComfyUI's queue and nodes see it."""

from __future__ import annotations

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

ENTRY = {"patch": "p", "strength": 0.75}


@pytest.fixture(scope="module")
def record(pack):
    host = ModuleType("nodes")
    host.NODE_CLASS_MAPPINGS = {
        "SaveImage": SimpleNamespace(OUTPUT_NODE=True),
        "KSampler": SimpleNamespace(),
        "SafeGenApply": SimpleNamespace(OUTPUT_NODE=False),
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "nodes", host)
        yield pack("safegen_comfy.record")


def graph(model="2", strength=0.75):
    """Load -> Apply -> sample -> save; with `model="1"` the sampler goes around Apply."""
    return {
        "1": {"class_type": "Load", "inputs": {"name": "m"}},
        "2": {"class_type": "SafeGenApply", "inputs": {"model": ["1", 0], "strength": strength}},
        "3": {"class_type": "KSampler", "inputs": {"model": [model, 0], "steps": 2}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }


def queued(record, prompt, **extra):
    request = {"prompt": prompt, "extra_data": extra} if extra else {"prompt": prompt}
    return record._queued(request)["extra_data"].get("extra_pnginfo")


def test_what_ran_is_recorded_when_it_comes_from_the_cache(record):
    info = {"workflow": {}}
    record.put(ENTRY, "2", graph(), info)
    assert info == {"workflow": {}, "safegen": {"2": ENTRY}}
    assert queued(record, graph()) == {"safegen": {"2": ENTRY}}
    assert queued(record, graph(strength=0.5)) == {}  # it will run, and then say so
    later = graph()
    later["3"]["inputs"]["steps"] = 9  # after the node: it comes from the cache all the same
    assert queued(record, later) == {"safegen": {"2": ENTRY}}


def test_a_node_that_stands_beside_the_way_protects_nothing(record):
    record.put(ENTRY, "2", graph(), {})
    assert queued(record, graph(model="1"), extra_pnginfo={"workflow": 1}) == {"workflow": 1}


@pytest.mark.parametrize("prompt", [graph(strength=0.1), {}, {"4": graph()["4"]}])
def test_a_client_cannot_claim_a_protection(record, prompt):
    claimed = {"safegen": {"2": ENTRY}, "workflow": 1}
    assert queued(record, prompt, extra_pnginfo=claimed) == {"workflow": 1}


def test_nodes_of_others_find_what_the_client_sent(record):
    prompt = {"4": graph()["4"]}
    assert queued(record, prompt) is None


def test_memory_is_bounded(record):
    for number in range(2 * record._KEPT):
        record.put(ENTRY, "2", graph(strength=number), None)
    assert len(record._last) == record._KEPT
    assert max(map(len, record._last)) == 64


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    request=st.fixed_dictionaries({}, optional={"prompt": json_values, "extra_data": json_values})
    | json_values
    | st.fixed_dictionaries(
        {
            "prompt": st.dictionaries(
                st.sampled_from("12"),
                st.fixed_dictionaries(
                    {},
                    optional={
                        "class_type": st.sampled_from(["SafeGenApply", "SaveImage"]) | json_values,
                        "inputs": st.dictionaries(
                            st.text(max_size=2), st.just(["1", 0]) | st.just(["2", 0]) | json_values
                        )
                        | json_values,
                    },
                ),
            ),
            "extra_data": st.fixed_dictionaries({}, optional={"extra_pnginfo": json_values}),
        }
    )
)
def test_whatever_a_client_sends_is_left_for_comfyui_to_refuse(record, request):
    before = copy.deepcopy(request)
    after = record._queued(request)
    if isinstance(before, dict):
        assert after.get("prompt") == before.get("prompt")
    else:
        assert after == before
