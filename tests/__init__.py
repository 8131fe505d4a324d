"""The tests, in rooms that mirror the product.

loss: what the stages and the whole loss compute, in every backend; `golden` are the released code's own outputs.
operators: how a call finds its kernel: backends, operators, host path, autograd, torch.compile.
cuda: the CUDA kernels, in the emulator of `simt`, on a GPU, and as machine code.
triton: the Triton kernels, in the interpreter (`interpreted`), and as machine code.
metrics: the measures of heatmaps, on maps with known answers.
grad_cam: GradCAM on models as people have them, wrapped and compiled; pictures and recipes.
driver: the training driver, python/.
tools: bench/, the mutants, installation and wheels.
support: what several rooms use; `from tests.support.compare import assert_close` is the way to import.
"""
