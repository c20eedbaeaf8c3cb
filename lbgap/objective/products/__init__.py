"""Products of matrices of second derivatives with many vectors at once, by the engine or the general way."""
