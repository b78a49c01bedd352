"""What everything speaks of: boxes, masks, images, and the tables of a data set."""
