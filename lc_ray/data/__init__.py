"""Ray Data in, sharded batches out.

    read      files → rows with the file and number they came from
    cells     rows → checked, decoded cells on disk, and an index of where they are
    split     the index → training and validation rows
    prepare   both → shuffled, tokenised Parquet parts, written once per dataset; bad rows kept in rejects/
    batch     parts → the batches of one worker, the same for the same seed
"""
