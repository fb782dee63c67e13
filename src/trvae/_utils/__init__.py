"""Arguments, seeds and blocks of matrices."""
