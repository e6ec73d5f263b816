"""How good and how costly a model is, side by side with others.

    quality   metrics on held-out rows
    labelled  metrics on rows of any source
    cost      parameters, bytes, latency and throughput, measured in interleaved rounds
    drift     what rows are later compared with
    gate      whether the final model may be promoted
    hardware  what figures were measured on
    report    the table in the terminal and report.html, with its plots
"""
