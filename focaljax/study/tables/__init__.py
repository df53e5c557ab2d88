"""How files become a problem: two passes over their rows, in memory that does not grow with them.

`delimited`, `columnar` and `arrays` are sources (CSV, Parquet, npz): they give chunks of rows as `cells`.
`survey` is the first pass: of every column its kinds, the `moments` of its numbers and the counts of its
levels. `plan` decides what each column becomes and says what is left out. `encode` is the second pass.
"""
