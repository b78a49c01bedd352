"""How the thing classes of Scenes are drawn."""

from collections.abc import Callable

import numpy as np


def rgb(red: int, green: int, blue: int) -> np.ndarray:
    """A colour, float64 (3,) in 0 to 255."""
    return np.array([red, green, blue], dtype=np.float64)


def _paint(*layers: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack (mask, colour) layers bottom to top; the first mask is the outline."""
    outline = layers[0][0]
    colour = np.zeros((*outline.shape, 3))
    for mask, value in layers:
        colour[mask] = value
    return outline, colour


# Each sprite maps coordinates in [-1, 1]² (v points down) to an outline and its colours. Outlines
# touch all four sides, so that boxes are tight, and are symmetric, so that flipping keeps the class.


def _ball(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius = np.hypot(u, v)
    return _paint(
        (radius < 1, rgb(245, 245, 240)), ((radius < 1) & (np.abs(v) < 0.42), rgb(215, 45, 45))
    )


def _crate(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = np.maximum(np.abs(u), np.abs(v)) < 1
    frame = inside & (np.maximum(np.abs(u), np.abs(v)) > 0.68)
    cross = inside & (np.minimum(np.abs(u - v), np.abs(u + v)) < 0.26)
    return _paint((inside, rgb(222, 168, 96)), (cross | frame, rgb(128, 78, 36)))


def _pine(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tier = np.select([v < -0.35, v < 0.2], [(v + 1) / 1.0, (v + 0.75) / 1.15], (v + 0.4) / 1.1)
    crown = (np.abs(u) < tier) & (v < 0.7) & (v > -1)
    trunk = (np.abs(u) < 0.2) & (v >= 0.7) & (v < 1)
    snow = crown & (v < -0.5)
    return _paint(
        (crown | trunk, rgb(20, 96, 56)), (trunk, rgb(110, 70, 40)), (snow, rgb(235, 245, 245))
    )


def _house(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    roof = (np.abs(u) < (v + 1) / 0.9) & (v < -0.1)
    wall = (np.abs(u) < 0.82) & (v >= -0.1) & (v < 1)
    door = (np.abs(u) < 0.26) & (v > 0.3) & (v < 1)
    return _paint(
        (roof | wall, rgb(240, 226, 190)), (roof, rgb(160, 52, 62)), (door, rgb(70, 80, 140))
    )


def _star(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle, radius = np.arctan2(u, -v), np.hypot(u, v)
    sector = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * 2
    outline = radius < 1.05 / (1 + 1.1 * sector**0.8)
    return _paint((outline, rgb(250, 205, 40)), (outline & (radius < 0.34), rgb(245, 150, 30)))


def _mushroom(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cap = (np.hypot(u, (v - 0.15) / 1.15) < 1) & (v < 0.15)
    stem = (np.abs(u) < 0.36) & (v >= 0.15) & (v < 1)
    dots = cap & (np.hypot(np.abs(u) - 0.45, v + 0.25) < 0.24)
    return _paint(
        (cap | stem, rgb(238, 224, 205)),
        (cap, rgb(150, 50, 160)),
        (dots, rgb(250, 235, 250)),
    )


def _flower(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle, radius = np.arctan2(v, u), np.hypot(u, v)
    petals = radius < 0.8 + 0.22 * np.cos(4 * angle)
    return _paint((petals, rgb(250, 130, 190)), (petals & (radius < 0.38), rgb(255, 225, 90)))


def _kite(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outline = np.abs(u) < np.where(v < -0.2, (v + 1) / 0.8, (1 - v) / 1.2)
    spars = outline & ((np.abs(u) < 0.09) | (np.abs(v + 0.2) < 0.09))
    return _paint(
        (outline, rgb(30, 190, 190)),
        (outline & (v > -0.2), rgb(110, 230, 200)),
        (spars, rgb(30, 60, 110)),
    )


Sprite = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From coordinates u, v in [-1, 1] to an outline, bool, and colours with three channels."""

SPRITES: tuple[Sprite, ...] = (_ball, _crate, _pine, _house, _star, _mushroom, _flower, _kite)
"""In the order of the thing classes."""

ASPECTS = (1.0, 1.0, 0.72, 1.0, 1.0, 1.0, 1.0, 0.85)
"""Width over height of each thing class."""
