"""What is estimated from products with a symmetric matrix alone, one estimator a module."""
