"""The classes of Scenes."""

THINGS = ("ball", "crate", "pine", "house", "star", "mushroom", "flower", "kite")
STUFF = ("sky", "grass", "water", "sand")
FIRST_STUFF_ID = 92
"""Stuff ids start where COCO-Stuff's do."""
