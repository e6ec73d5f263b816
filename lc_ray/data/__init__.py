"""Ray Data in, sharded batches out.

    read      files → rows with the file and number they came from
    prepare   rows → checked, split, tokenised Parquet parts, written once per dataset; bad rows kept in rejects/
    batch     parts → the batches of one worker, the same for the same seed
"""
