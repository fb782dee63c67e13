"""What a cell would be under another condition: pure functions of arrays."""
