"""Ray Data in, sharded batches out.

    given     data of a Python program → a file
    files     a path or URI → the files that hold rows
    read      files → rows with the file and number they came from; each of tables (CSV), documents (JSON), stored (Parquet, ORC, Arrow), sheets,
              lines, coco, conll, folders, boxes knows some of their formats, packed how they are compressed
    classes   what lies beside data → names of classes whose labels are numbers
    cells     rows → checked, decoded cells on disk, and an index of where they are; pixels and sounds lie in blobs
    sides     the index → training and validation rows; split decides which rows are held out
    prepare   sides → shuffled, tokenised Parquet parts, written once per dataset; bad rows kept in rejects/
    batch     parts → the batches of one worker, the same for the same seed
"""
