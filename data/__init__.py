"""What the data is: records, boxes, COCO files, Parquet tables, prompts and the artifact store."""
