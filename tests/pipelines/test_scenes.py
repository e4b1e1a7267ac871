"""The drawn scenes: reproducible, split cleanly, and honest about where the answer is."""

import numpy as np
import pytest
from PIL import Image

from pipelines.data.scenes import (
    COLOURS,
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
        boxes = np.array([item.box for item in scene.items])
        assert boxes.min() >= 0 and boxes.max() <= SIZE
        for index, (left, top, right, bottom) in enumerate(boxes):
            others = np.delete(boxes, index, axis=0)
            beside = (others[:, 0] >= right) | (others[:, 2] <= left)
            above = (others[:, 1] >= bottom) | (others[:, 3] <= top)
            assert (beside | above).all()


def test_what_is_asked_by_is_unique():
    for scene in SCENES:
        assert len({item.colour for item in scene.objects} & set(COLOURS)) == len(scene.objects)
        assert len({item.glyph for item in scene.items}) == len(scene.items)


def test_regions_show_the_colour_of_the_object():
    for scene in SCENES[:20]:
        image = np.asarray(render(scene)).astype(int)
        for item in scene.objects:
            left, top, right, bottom = item.box
            off = np.abs(image - COLOURS[item.colour]).max(axis=-1) < 30
            assert off[top:bottom, left:right].mean() > 0.2


def test_a_background_picture_shows_around_the_items():
    scene = SCENES[0]
    image = np.asarray(render(scene, Image.new("L", (50, 80), 100))).astype(int)
    items = np.zeros((SIZE, SIZE), bool)
    for left, top, right, bottom in (item.box for item in scene.items):
        items[max(top - 2, 0) : bottom + 3, max(left - 2, 0) : right + 3] = True
    assert np.abs(image[~items] - 100).max() < 20
    assert np.abs(image[items] - 100).max() > 100


def facts(kind: str, asked: list) -> str:
    """The answer, found by another way than the asker's: from the objects that the regions point at."""
    first, last = asked[0], asked[-1]
    return {
        "colour": first.colour,
        "shape": first.shape,
        "digit": first.glyph,
        "shape_by_digit": first.shape,
        "where": " ".join(first.place),
        "two_digits": f"{first.glyph} {last.glyph}",
    }[kind]


def test_answers_follow_from_the_objects_in_the_regions():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        by_box = {item.box: item for item in scene.items}
        for kind in KINDS:
            question = ask(scene, kind, rng)
            asked = [by_box[box] for box in question.regions]
            assert question.answer == facts(kind, asked)
            assert all(item.colour in question.text or item.glyph in question.text.split() for item in asked)


def test_no_answer_is_much_likelier_than_the_others():
    """A model that does not look at the picture is wrong most of the time, and never right more often than half."""
    answers: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for index in range(40 * len(KINDS)):
        rng = scene_rng("test", index)
        question = ask(describe(rng), KINDS[index % len(KINDS)], rng)
        answers[question.kind].append(question.answer)
    commonest = {kind: max(map(given.count, given)) / len(given) for kind, given in answers.items()}
    assert max(commonest.values()) < 0.5
    assert np.mean(list(commonest.values())) < 0.3


def test_objects_do_not_fit_the_budget_of_a_tenth():
    """The patches that lie for the most part in an object are more than twice the 26 that a tenth of 256 keeps."""
    covered = [sum(item.size**2 for item in scene.objects) / 14**2 for scene in SCENES]
    assert min(covered) > 2 * 26
