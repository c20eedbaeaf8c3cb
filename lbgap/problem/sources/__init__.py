"""What a user may pass as data, each kind as batches in a fixed order."""
