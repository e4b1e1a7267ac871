"""The benchmark's arithmetic: bounds by hand, parts that add up, profiles, ratios that fell, where pruning pays."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from transformers import AutoConfig

from multimodal import FlowpruneError, PruningConfig, PruningStep, prune
from multimodal.benchmark.bounds import Weights, Work, decoding_work, prefill_work, tower_work
from multimodal.benchmark.comparing import Ratio, fallen, pruning_share, ratios
from multimodal.benchmark.device import Peaks
from multimodal.benchmark.inputs import planned, random_inputs
from multimodal.benchmark.models import Shape, read_size
from multimodal.benchmark.parts import EVIDENCE, PARTS, PREFILL, REST, SELECTION, TOWER, Timeline, shares, told_parts
from multimodal.benchmark.profiling import MARK, Profile, limited_by, read_events, union
from multimodal.benchmark.report import Case, Report, Row
from multimodal.benchmark.sweep import Cell, Sweep, advice, break_even
from multimodal.benchmark.tables import on_host, overview
from multimodal.benchmark.variants import COMPILED, PRUNED, RECORDED, UNPRUNED, Variant, at_retention, released_config
from multimodal.costs import retention
from multimodal.families import modules_of
from multimodal.layout import Layout
from multimodal.testing.oracles import tiny

TEXT = AutoConfig.for_model(
    "llama", hidden_size=8, intermediate_size=10, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
LAYER = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 10  # queries, keys, values, output, gated MLP
WEIGHTS = Weights(tower=100, layers=2 * LAYER * 2, head=8 * 50 * 2, element=2)


def test_bounds_by_hand():
    first = prefill_work(TEXT, [(6, 3), (4, 4)], WEIGHTS)
    attention = 2 * 8 * (6 * 6 + 3 * 3 + 4 * 4 + 4 * 4)  # two products of half the square, a multiply-add is two
    assert first.flops == 2 * LAYER * (6 + 3 + 4 + 4) + attention + 2 * (2 * 8 * 50)
    cached = 2 * 4 * 2 * (6 + 3 + 4 + 4)  # keys and values of one head of 4
    assert first.bytes == 2 * LAYER * 2 + 8 * 50 * 2 + cached
    token = decoding_work(TEXT, [(6, 3), (4, 4)], WEIGHTS)
    assert token.flops == 2 * (2 * LAYER * 2) + 4 * 8 * (6 + 3 + 4 + 4) + 2 * (2 * 8 * 50)
    assert token.bytes == first.bytes
    assert Work(flops=100, bytes=30).seconds(Peaks(flops=50, bandwidth=10)) == 3
    assert Work(flops=200, bytes=30).seconds(Peaks(flops=50, bandwidth=10)) == 4


def test_the_tower_is_counted_as_it_runs():
    modules = modules_of(tiny("llava_clip"))
    config, inputs = modules.model.config, random_inputs(modules, None, 2, 6)
    tower, text = config.vision_config, config.text_config
    patches = (tower.image_size // tower.patch_size) ** 2
    tokens, width = patches + 1, tower.hidden_size
    layer = 2 * tokens * (4 * width * width + 2 * width * tower.intermediate_size) + 4 * tokens * tokens * width
    embedding = 2 * patches * 3 * tower.patch_size**2 * width
    projector = 2 * patches * (width * text.hidden_size + text.hidden_size**2)
    found = tower_work(modules, inputs, Weights.of(modules))
    assert found.flops == 2 * (tower.num_hidden_layers * layer + embedding + projector)
    others = {id(each) for each in modules.text_model.parameters()}
    assert found.bytes == sum(each.nbytes for each in modules.base.parameters() if id(each) not in others)


def test_random_inputs_hold_no_placeholder_but_the_images():
    modules = modules_of(tiny("llava_clip"))
    inputs = random_inputs(modules, None, 3, 10)
    [layout] = set(modules.geometry.layouts(inputs))
    assert (inputs["input_ids"] == modules.geometry.image_token_id).sum(1).tolist() == [layout.visual_tokens] * 3
    rows = planned(modules, inputs, [PruningStep(layer=0, keep_ratio=0.5)]).rows
    assert [(row.text_tokens, row.visual_tokens) for row in rows] == [(10, layout.visual_tokens)] * 3
    assert rows[0].kept == (round(layout.visual_tokens / 2),)


def test_a_model_is_as_it_was_after_its_parts_were_told():
    modules, told = modules_of(tiny("llava_clip")), []
    before = str(vars(modules.base)), [len(each._forward_pre_hooks) for each in modules.model.modules()]
    config = released_config(modules.geometry.text_layers, 0.5)
    way = Variant(PRUNED, config, partial(prune, modules.model, config))
    with pytest.raises(KeyError), told_parts(modules, way, told.append):
        modules.model(**random_inputs(modules, None, 1, 6))
        raise KeyError
    steps = [SELECTION, PREFILL] * len(config.schedule)
    assert told == [TOWER, TOWER, EVIDENCE, REST, *steps, REST]
    assert (str(vars(modules.base)), [len(each._forward_pre_hooks) for each in modules.model.modules()]) == before


def test_parts_add_up_to_their_call(monkeypatch):
    times = iter([0, 1, 4, 6, 9, 10])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    timeline = Timeline(torch.device("cpu"))
    for part in (REST, TOWER, EVIDENCE, PREFILL, REST):
        timeline.begin(part)
    run = timeline.stop()
    assert run == {REST: 2, TOWER: 3, EVIDENCE: 2, PREFILL: 3}
    found = shares([{PREFILL: 99}, run, {PREFILL: 1}])  # the median run's
    assert found == {TOWER: 0.3, EVIDENCE: 0.2, SELECTION: 0, PREFILL: 0.3, REST: 0.2} and tuple(found) == PARTS


def event(name, start, end, device=DeviceType.CPU, kernels=(), parent=None):
    span = SimpleNamespace(start=start, end=end)
    durations = [SimpleNamespace(duration=each) for each in kernels]
    return SimpleNamespace(name=name, time_range=span, device_type=device, kernels=durations, cpu_parent=parent)


def test_a_gpu_profile_counts_launches_and_waits_inside_the_call():
    events = [
        event("aten::add", 0, 2, kernels=[50]),  # before the call
        event("cudaLaunchKernel", 1, 2),
        event(MARK + TOWER, 10, 20),
        event("aten::mm", 11, 13, kernels=[30, 5]),
        event("cudaLaunchKernel", 12, 13),
        event(MARK + PREFILL, 20, 40),
        event("cudaGraphLaunch", 21, 22),
        event("aten::_local_scalar_dense", 23, 39, kernels=[2]),
        event("cudaStreamSynchronize", 24, 38),
        event("cudaDeviceSynchronize", 50, 60),  # after the call
        event(MARK + TOWER, 15, 45, device=DeviceType.CUDA),  # the profiler's own range
        event("gemm", 15, 45, device=DeviceType.CUDA),
        event("copy", 40, 50, device=DeviceType.CUDA),
        event("copy", 60, 62, device=DeviceType.CUDA),
    ]
    found = read_events(events, on_gpu=True)
    assert found.counts == {"kernels": 1, "graphs": 1, "waits": 1, "values read": 1}
    assert found.busy == pytest.approx(37e-6) and found.busy_parts == pytest.approx({TOWER: 35e-6, PREFILL: 2e-6})
    assert union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7


def test_a_cpu_profile_counts_operators_and_not_what_they_call():
    outer = event("aten::linear", 11, 15)
    inner = event("aten::addmm", 12, 14, parent=outer)
    events = [event(MARK + REST, 10, 20), outer, inner, event("aten::add", 16, 17), event("aten::add", 30, 31)]
    assert read_events(events, on_gpu=False) == Profile(counts={"operators": 2})


def test_what_holds_a_call_is_said_in_words():
    assert limited_by(0.010, 0.009) == "device-bound, 90% busy"
    assert limited_by(0.026, 0.008) == "host-bound, 31% busy"


def test_a_gpu_table_has_launches_and_floors():
    case = report(first=5, decoding=1).cases[0]
    host = Profile(
        counts={"kernels": 1954, "waits": 22}, busy=4.5, busy_parts={TOWER: 2, EVIDENCE: 0.1, SELECTION: 0.1}
    )
    rows = [row.model_copy(update={"first_token_host": host, "decoding_busy": 0.2}) for row in case.rows[1:2]]
    grid = on_host(case.model_copy(update={"rows": [*rows, case.rows[3]]}))
    assert grid.columns[1:] == ("kernels", "waits", "device busy, ms", "held by", "a token more: busy", "held by")
    assert grid.rows == [
        ("pruned", "1,954", "22", "4,500.0", "device-bound, 90% busy", "200.0", "host-bound, 20% busy")
    ]
    assert pruning_share(rows[0]) == pytest.approx(0.1)  # of the device's time, not of the clock's
    page = overview(report(first=5, decoding=0.8)).markdown()
    assert (
        "| m (9), 1 | 10,000.0 ms | 5,000.0 ms (2.00×) | 2,000.0 ms (5.00×) | – | 1,000.0 ms | 500.0 ms (2.00×) | – |"
        in page
    )
    assert page.endswith("Compiled: no.")


def test_a_config_is_changed_to_meet_a_retention():
    layout = Layout(grids=((100, 100),), views=(10000,))
    assert [round(step.keep_ratio, 4) for step in released_config(28, 0.1).schedule] == [0.1166, 1, 0.6011]
    for share in (0.1, 0.25, 0.5):
        assert retention([layout], released_config(32, share).schedule, 32) == pytest.approx(share, abs=1e-3)
    inner = PruningConfig(method={"name": "fastv"}, schedule=[PruningStep(layer=2, keep_ratio=0.5)])
    assert at_retention(inner, 8, 0.4).schedule[0].keep_ratio == pytest.approx((0.4 * 8 - 2) / 6)
    with pytest.raises(FlowpruneError, match=r"retention of 0.2 cannot be met .* from 0.25 to 1\."):
        at_retention(inner, 8, 0.2)


def report(first, decoding, evidence=1.0, failed=None):
    """Of one case: an unpruned model of 10 s and 1 s a token, whose tower takes 4 s."""
    pruned = Row(variant=PRUNED, first_token=first, decoding=decoding, parts={TOWER: 4, EVIDENCE: evidence})
    recorded = Row(variant=RECORDED, failed=failed) if failed else Row(variant=RECORDED, first_token=2, decoding=0.5)
    rows = [Row(variant=UNPRUNED, first_token=10, decoding=1), pruned, recorded, Row(variant=COMPILED, failed="no")]
    case = Case(model="m", image="i", batch=1, visual_tokens=9, text_tokens=3, retention=0.1, rows=rows)
    where = {"device": "d", "kind": "k", "dtype": "float32", "attention": "sdpa", "torch": "1", "transformers": "2"}
    return Report(**where, peaks=Peaks(flops=1, bandwidth=1), cases=[case])


def test_ratios_that_fell_are_named():
    kept = ratios(report(first=5, decoding=1))
    assert kept["m (i), batch 1, pruned: speed-up of the first token"] == Ratio(2)
    assert kept["m (i), batch 1, pruned: evidence, selection and merging ÷ vision tower"] == Ratio(0.25, True)
    assert fallen(kept, kept, 0.1) == {}
    assert fallen(ratios(report(first=6, decoding=1, evidence=1.2)), kept, 0.25) == {}  # within tolerance
    worse = fallen(ratios(report(first=8, decoding=0.5, evidence=2, failed="it broke")), kept, 0.25)
    assert list(worse.values()) == [
        "m (i), batch 1, pruned: speed-up of the first token fell from 2.00 to 1.25, more than 25%.",
        "m (i), batch 1, pruned: evidence, selection and merging ÷ vision tower grew from 0.25 to 0.50, more than 25%.",
        "m (i), batch 1, recorded: speed-up of the first token was 5.00 and could not be measured: it broke.",
        "m (i), batch 1, recorded: speed-up of decoding was 2.00 and could not be measured: it broke.",
    ]
    assert Report.model_validate_json(report(5, 1).model_dump_json()) == report(5, 1)


def test_the_break_even_lies_between_what_was_measured():
    assert break_even([(1000, 0.5), (4000, 2.0)]) == pytest.approx(2000)
    assert break_even([(500, 0.25), (1000, 0.5), (4000, 2.0), (8000, 3.0)]) == pytest.approx(2000)
    assert break_even([(1000, 1.5), (4000, 0.8), (8000, 1.25)]) == pytest.approx(5657, abs=1)  # the last crossing
    assert break_even([(1000, 1.5), (4000, 2.0)]) == 0
    assert break_even([(1000, 0.5), (4000, 0.9)]) is None and break_even([]) is None


def test_advice_says_what_prune_should_be_told():
    def cell(tokens, batch, retention, eager, recorded=None):
        seconds = {PRUNED: 1 / eager} | ({RECORDED: 1 / recorded} if recorded else {})
        return Cell(image="i", visual_tokens=tokens, batch=batch, retention=retention, unpruned=1, seconds=seconds)

    cells = [cell(1000, 1, 0.5, 0.4, 0.5), cell(4000, 1, 0.5, 0.9, 2.0)]
    cells += [cell(1000, 1, 0.1, 0.5), cell(4000, 1, 0.1, 2.0)]
    cells += [cell(1000, 4, each, 1.5) for each in (0.5, 0.1)]
    cells += [cell(1000, 8, each, 0.8, 0.9) for each in (0.5, 0.1)]
    assert advice(Sweep(model="m", cells=cells)) == [
        "Batch 1, retention 0.5: prune(…, recordings=Recordings()) from 2,000 visual tokens on, none below.",
        "Batch 1, retention 0.1: prune(…) from 2,000 visual tokens on, none below; recordings= could not be measured.",
        "Batch 4, retention 0.5 and 0.1: prune(…) at every size that was measured; recordings= could not be measured.",
        "Batch 8, retention 0.5 and 0.1: do not prune, which pays at no size that was measured.",
    ]


def test_shapes_are_read_as_they_are_typed(tmp_path):
    shape = Shape.read("llava_next_7b@672x336")
    assert (shape.name, shape.size, str(shape)) == ("llava_next_7b", (672, 336), "llava_next_7b@672x336")
    assert shape.architecture["text_config"]["rms_norm_eps"] == 1e-5 and read_size("336") == (336, 336)
    (tmp_path / "mine.yaml").write_text("path: elsewhere")
    for text, said in (
        ("nosuch", "There is no model file .*nosuch.yaml: give a YAML file, or one of dino, gemma3_4b"),
        (f"{tmp_path}/mine.yaml", "names no architecture.model_type"),
        ("llava_next_7b@672", None),
        ("llava_next_7b@672x", "image size '672x' is none"),
        ("tiny", "names no architecture.model_type"),
    ):
        if said is None:
            assert Shape.read(text).size == (672, 672)
        else:
            with pytest.raises(FlowpruneError, match=said):
                Shape.read(text)
