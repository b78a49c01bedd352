"""Graphs of steps, and how a step's artifact is obtained."""
