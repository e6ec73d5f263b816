"""One segment of fine-tuning, on several workers.

    plan        memory and placement, decided before anything starts
    segment     what a segment is: where it starts from, which steps it takes, what it is named
    loop        what each worker does, on a page; clock books where its time goes
    deepspeed   job → DeepSpeed's configuration
    checkpoint  the state of a worker group on disk
    trainer     gives groups of workers one segment after the other
    worker      starts such a group with Ray Train, and the loop in it
"""
