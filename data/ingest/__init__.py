"""From COCO files to checked tables, with an account of what was refused."""
