"""Sizes of the search."""

SIZE = 224  # of views
FINE = 56  # of measured heatmaps
CROPS = 2  # kept of a training image
BATCH = 32  # images a step
IMAGES = {"train": 640, "val": 320, "test": 560}
