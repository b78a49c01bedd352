"""Layouts: which are used, how they are written as prompts, how they are drawn."""
