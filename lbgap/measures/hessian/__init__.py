"""What is estimated from products with a matrix of second derivatives alone, one estimator a module."""
