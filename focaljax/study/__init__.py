"""The main job, `python -m focaljax` and `compare`: which gamma and alpha suit the data, or that none does.

`run` does it all. `tables` reads files, `data` makes a problem of features and labels, `folds` says who
trains and who is held out, `settings` which losses run; `network` trains them all in one compiled program,
`measures` says what each run is worth. `verdict` weighs the differences and draws the conclusion, `outcome`
holds all of it, `words` say it. `console` prints, `pictures` draw, `page` makes HTML of it and `report`
writes the folder.
"""

from focaljax.study.errors import StudyError
from focaljax.study.outcome import Outcome
from focaljax.study.run import compare

__all__ = ["Outcome", "StudyError", "compare"]
