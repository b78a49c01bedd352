"""COCO's JSON files: reading them in chunks, writing them, results files."""
