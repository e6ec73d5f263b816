"""One file per pruner: pure tensor maths first, then one class.

    Pruner(model, example, keep)      finds what can be removed
    .observe()                        after each backward of a calibration batch
    .scores                           a tensor, summed over the workers by the caller
    .remove(fraction)                 changes the model; returns units kept by layer
"""
