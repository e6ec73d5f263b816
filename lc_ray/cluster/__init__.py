"""A job on a Ray cluster that is not this machine.

    clusters  where clusters are, by name
    package   what the job needs of this machine, in one file
    check     whether the cluster can run it, by what probe finds there
    submit    both sent, followed as if it ran here, and its result fetched
    jobs      the cluster's jobs, through its dashboard
    remote    what runs there
    launch    brings a cluster up and down
"""
