"""What is measured: a loss, as sums over samples and their weights."""
