"""`python -m lc_ray` is `lc-ray`."""

from lc_ray.cli import main

main()
