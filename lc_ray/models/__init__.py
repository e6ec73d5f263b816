"""Pretrained weights in, one `FusionModel` out, whatever the columns; and the shapes that pruning gave it."""
