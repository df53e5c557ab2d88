"""The main job, `python -m focaljax`: it finds which gamma and which alpha suit the data, or that none does.

`cli` reads the command line, `data` says what a problem is and `table` (with `tables`) makes one of a file.
`folds` says who trains and who is held out, `blocks` reads the rows, `settings` says which losses run,
`train` runs them all in one compiled program on the `network`, `tally` adds up what rows are worth and
`checkpoint` keeps what is unfinished. `compare` weighs the differences, `recommend` draws the conclusion,
`outcome` holds all of it. `words` says it, `console` prints, `pictures` (made of `panels`) draws, `page`
makes the HTML of it and `report` writes the folder.
"""
