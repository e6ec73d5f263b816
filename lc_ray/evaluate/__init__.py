"""How good and how costly a model is, side by side with others.

    quality   metrics on held-out rows
    cost      parameters, bytes, latency and throughput, measured in interleaved rounds
    gate      whether the final model may be promoted
    report    the table in the terminal and report.html
"""
