"""A job on a Ray cluster that is not this machine: packed, checked against the cluster, submitted, followed and fetched."""
