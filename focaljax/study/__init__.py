"""The main job, `python -m focaljax`: train a classifier with and without focal loss and compare.

`cli` reads the command line, `data` and `table` make a problem and its splits, `settings` says
which losses run, `train` runs them all in one compiled program, `evaluate` measures, `compare`
weighs the differences, `outcome` holds all of it, `console` prints, `pictures` (made of `panels`)
draws and `report` writes the folder.
"""
