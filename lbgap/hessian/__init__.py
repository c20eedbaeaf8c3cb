"""Second derivatives of the loss: Hessian-vector products, and what is built on them.

The objective imports from here, so this file imports nothing.
"""
