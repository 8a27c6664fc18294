"""The decoder on CUDA cards: paged keys and values, kernels with a torch reference beside each, a captured decode step.

Nothing here has run on a card yet, and the engine does not use it. The references and the step are tested on the CPU;
the kernels were compiled for sm_90 and held against their references in the interpreter of Triton 3.5.1, by hand; and
``tests/gpu`` waits for a machine that has a card.
"""
