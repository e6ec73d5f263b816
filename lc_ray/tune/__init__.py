"""Population-based search: members train in segments, and after each the worst go on from the best.

    space        which genes there are, how they are drawn and perturbed: pure
    population   Ray Tune's PBT over segments
    lineage      who inherited from whom
"""
