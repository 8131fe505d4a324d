"""Mutation testing of the kernels: wrong ones, made from the sources by one small change each, must fail the tests.

`python -m tests.tools.mutants TARGET` samples mutants by seed, runs the target's tests on each of them in a copy of the
tree, and tells which were killed. What is changed, for Python: `python_source`; for C++ and CUDA: `cpp_source`.
"""
