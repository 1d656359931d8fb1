"""Captions of scenes. Every word comes from the tables here, so that the vocabulary is closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .colours import GROUND_COLOURS, MANNEQUIN_COLOUR, OBJECT_COLOURS, SKIES
from .mannequin import POSES, Mannequin
from .scene import Camera, SceneObject

# A phrase that is listed several times is chosen more often.
_PREFIXES = ("", "", "", "a photo of ", "a picture of ", "a render of ", "an image of ")
_GROUND_PHRASES = (" on {ground} ground", " on a {ground} floor", " standing on {ground} ground")
_SKY_PHRASES = (" under a {sky} sky", " with a {sky} sky", ", {sky} sky")
_PAIR_PHRASES = (" and ", " and ", " next to ", " beside ")
_LEFT_PHRASES = (" to the left of ", " left of ")
_RIGHT_PHRASES = (" to the right of ", " right of ")
_DEPTH_PHRASES = (" in front of ", " behind ")
_NOUNS: Mapping[str, tuple[str, ...]] = {
    "sphere": ("sphere", "sphere", "ball"),
    "box": ("box", "box", "cube"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "person": ("person", "person", "figure", "mannequin"),
}


def write_caption(
    rng: np.random.Generator, camera: Camera, ground: str, sky: str, objects: Sequence[SceneObject]
) -> str:
    """A random true sentence about a scene."""
    things = [objects[i] for i in rng.permutation(len(objects))]
    people = [t for t in things if t.kind == "person"]
    # People are usually named first.
    if people and rng.random() < 0.7:
        things = people + [t for t in things if t.kind != "person"]
    names = [_describe_object(rng, t) for t in things]
    if len(names) == 2:
        text = names[0] + _relation(rng, camera, things[0], things[1]) + names[1]
    else:
        text = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    text = str(rng.choice(_PREFIXES)) + text
    if rng.random() < 0.75:
        text += str(rng.choice(_GROUND_PHRASES)).format(ground=ground)
    if rng.random() < 0.45:
        text += str(rng.choice(_SKY_PHRASES)).format(sky=sky)
    return text


def _describe_object(rng: np.random.Generator, thing: SceneObject) -> str:
    noun = str(rng.choice(_NOUNS[thing.kind]))
    if isinstance(thing, Mannequin):
        colour = f"{MANNEQUIN_COLOUR} " if rng.random() < 0.35 else ""
        pose = f" {POSES[thing.pose].words}" if rng.random() < 0.8 else ""
        return f"a {colour}{noun}{pose}"
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {noun}"


def _relation(rng: np.random.Generator, camera: Camera, a: SceneObject, b: SceneObject) -> str:
    """Words between two objects."""
    xa, _, da = camera.project(np.array([[a.x, 0.0, a.z]]), 1)[0]
    xb, _, db = camera.project(np.array([[b.x, 0.0, b.z]]), 1)[0]
    choices: list[str] = [*_PAIR_PHRASES]
    # Left, right, front and back are said only where the picture shows them clearly.
    if abs(xa - xb) > 0.15:
        choices += _LEFT_PHRASES if xa < xb else _RIGHT_PHRASES
    if abs(da - db) > 1.1:
        choices.append(_DEPTH_PHRASES[0 if da < db else 1])
    return str(rng.choice(choices))


def caption_words(caption: str) -> tuple[str, ...]:
    """The words of a caption; a comma counts as a word."""
    return tuple(caption.replace(",", " , ").split())


def vocabulary() -> tuple[str, ...]:
    """All words (and the comma) that captions can contain, sorted."""
    phrases = [
        *(*_PREFIXES, *_GROUND_PHRASES, *_SKY_PHRASES, *_PAIR_PHRASES),
        *(*_LEFT_PHRASES, *_RIGHT_PHRASES, *_DEPTH_PHRASES),
        *(*OBJECT_COLOURS, *GROUND_COLOURS, *SKIES, MANNEQUIN_COLOUR),
        "a an and ,",
        *(pose.words for pose in POSES.values()),
        *(noun for nouns in _NOUNS.values() for noun in nouns),
    ]
    words = {word for phrase in phrases for word in caption_words(phrase) if "{" not in word}
    return tuple(sorted(words))
