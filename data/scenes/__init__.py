"""Scenes, the embedded data set."""
