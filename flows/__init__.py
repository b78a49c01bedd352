"""Order: one flow per stage, the end-to-end flow, presets and the command line."""
