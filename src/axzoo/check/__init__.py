"""Checks of a built bundle against the fp32 oracle: level 1 layer by layer, level 2 by generating."""
