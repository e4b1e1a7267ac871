"""The drawn scenes: reproducible, split cleanly, and honest about where the answer is."""

import numpy as np
import pytest

from pipelines.data.scenes import (
    COLOURS,
    GREY,
    KINDS,
    SIZE,
    SPLIT_SEEDS,
    ask,
    describe,
    render,
    scene_rng,
    scenes,
)

SCENES = [describe(scene_rng("test", index)) for index in range(60)]


def pixels(sample) -> bytes:
    return sample.image.tobytes()


def test_same_split_and_index_give_the_same_sample():
    later = next(scenes("heldout", 1, start=5))
    assert list(scenes("heldout", 6))[5] == later
    assert pixels(list(scenes("heldout", 6))[5]) == pixels(later)


def test_splits_share_no_picture():
    seen = {pixels(sample) for split in SPLIT_SEEDS for sample in scenes(split, 20)}
    assert len(seen) == 20 * len(SPLIT_SEEDS)


def test_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'validation'.*train, calibration, heldout, test"):
        next(scenes("validation", 1))


def test_kinds_take_turns():
    assert [sample.kind for sample in scenes("train", 2 * len(KINDS))] == list(KINDS) * 2


def test_pictures_are_rgb_and_square():
    for sample in scenes("calibration", 5):
        assert (sample.image.mode, sample.image.size) == ("RGB", (SIZE, SIZE))


def test_items_lie_inside_and_apart():
    for scene in SCENES:
        boxes = np.array([item.box for item in scene.objects + scene.distractors])
        assert boxes.min() >= 0 and boxes.max() <= SIZE
        for index, (left, top, right, bottom) in enumerate(boxes):
            others = np.delete(boxes, index, axis=0)
            beside = (others[:, 0] >= right) | (others[:, 2] <= left)
            above = (others[:, 1] >= bottom) | (others[:, 3] <= top)
            assert (beside | above).all()


def test_what_is_asked_by_is_unique():
    for scene in SCENES:
        shapes = [item.shape for item in scene.objects + scene.distractors if item.shape]
        assert len(set(shapes)) == len(shapes)
        assert len({item.colour for item in scene.objects} - {GREY}) == len(scene.objects)


def test_regions_show_the_colour_of_the_object():
    for scene in SCENES[:20]:
        image = np.asarray(render(scene)).astype(int)
        for item in scene.objects:
            left, top, right, bottom = item.box
            off = np.abs(image - COLOURS[item.colour]).max(axis=-1) < 25
            assert off[top:bottom, left:right].mean() > 0.2


def test_answers_follow_from_the_description():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        by_box = {item.box: item for item in scene.objects}
        for kind in KINDS:
            question = ask(scene, kind, rng)
            asked = [by_box[box] for box in question.regions]
            if kind == "existence":
                assert (question.answer == "yes") == any(item.colour in question.text for item in scene.objects)
            else:
                (item,) = asked
                facts = {item.colour, item.shape, item.glyph, " ".join(item.place)}
                assert question.answer in facts
                assert item.colour in question.text or item.shape in question.text


def test_items_cover_a_fifth_of_the_picture():
    """Little enough for pruning to be possible, too much for a question-blind map to keep all of at a tenth."""
    shares = [sum(item.size**2 for item in scene.objects + scene.distractors) / SIZE**2 for scene in SCENES]
    assert 0.15 < np.mean(shares) < 0.25
