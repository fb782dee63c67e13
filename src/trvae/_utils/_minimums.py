"""How many labels, and cells of each, it takes to learn from them."""

# Labels under both conditions that it takes to learn what differs between labels.
MIN_LABELS = 3

# Means over fewer cells are mostly noise.
MIN_CELLS = 20
