"""Perception-aware attributes: easy or hard, and why."""
